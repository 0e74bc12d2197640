"""What the parts of the engine share: configuration, connection, studies, agents, counts, and the operator's own seal.

Nothing is decided here; `merlin_operator.engine` names the parts and calls them in their order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from merlin_operator import control, fleet, quarantine
from merlin_operator.fleet import Audience
from merlin_operator.measures import Tally
from merlin_operator.roll import Roll, Want
from merlin_operator.stream import Broker, Stored
from merlin_operator.study import Study
from merlin_study import subjects, wire
from merlin_study.ledger import Ledger
from merlin_study.seal import Keyring, SealError, Signer

log = logging.getLogger(__name__)

M = TypeVar("M", bound=wire.Message)

AGENTS_SCOPE: Final = "agents"
"""The key scope of what belongs to no study: heartbeats and offers."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know; ``options`` is what `nats.connect` takes for credentials."""

    namespace: str
    server: str
    options: dict[str, Any]
    keyring: Keyring
    timing: wire.Timing = field(default_factory=wire.Timing)
    window_seconds: float = 60.0
    snapshot_entries: int = 2000
    """Log entries of a study after which it is kept anew: what a new operator reads at most, and what came meanwhile."""
    stop_after: float = control.STOP_AFTER
    """Seconds from a task's wish to stop the agents until they do."""
    quarantine_chunks: int = quarantine.LEAST_CHUNKS
    """Chunks that have to fail in a row until a host can be quarantined; 0: none ever is."""
    quarantine_seconds: float = quarantine.PERIOD
    replicas: int = 1
    """Servers of the broker's cluster that keep each stream."""
    renew: Callable[[], dict[str, Any]] | None = None
    """Reads ``options`` again, for each new connection."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Monotonically increasing numbers for metrics, and what is known of the broker."""

    issued_tasks: int = 0
    issued_chunks: int = 0
    reports: int = 0
    refused_signature: int = 0
    refused_schema: int = 0
    loops: int = 0
    interrupted: int = 0
    snapshots_kept: int = 0
    snapshots_found: int = 0
    broker_reconnects: int = 0
    broker_connected: bool = False
    broker_certificate_ends: float | None = None

    @property
    def refused(self) -> int:
        """Messages that did not open or made no sense."""
        return self.refused_signature + self.refused_schema


class Core:
    """The common ground of one engine's parts."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.space = subjects.Space(config.namespace)
        self.broker = Broker(
            self.space, server=config.server, options=config.options, renew=config.renew, replicas=config.replicas
        )
        self.fleet = fleet.Fleet(config.timing)
        self.studies = Roll()
        self._agents: object = None
        """Stands for the agents that are there: what studies wait for."""
        self._live: list[wire.Heartbeat] = []
        """Those that take work."""
        self._full: frozenset[str] = frozenset()
        """Studies in whose workspace some find no room."""
        self._awake: list[Study] = []
        self.wake = asyncio.Event()
        """Set it and the next round comes at once."""
        self.counters = Counters()
        self.strays: set[str] = set()
        """Studies that nobody knows and that something was reported of."""
        self.watch = quarantine.Watch(least=config.quarantine_chunks, period=config.quarantine_seconds)
        self.tally = Tally()
        """What agents told of their work, and what was lost with them."""
        self.broker_clock_ahead = 0.0
        """Seconds by which the broker's clock is ahead of ours."""

    def count(self, **more: int) -> None:
        """Add to the counters of these names."""
        old = self.counters
        self.counters = replace(old, **{name: getattr(old, name) + value for name, value in more.items()})

    def refuse(self, error: Exception) -> None:
        """Count a message that did not open (`SealError`), or that opened and made no sense."""
        self.count(**{"refused_signature" if isinstance(error, SealError) else "refused_schema": 1})

    def all(self) -> Iterator[Study]:
        """Yield the studies of this moment; they may come and go while the caller waits for the broker."""
        yield from self.studies.all()

    def look(self, now: float) -> None:
        """See which studies rest at ``now`` (monotonic seconds), for the round that begins."""
        live = list(self.fleet.live(now))
        there, full = frozenset(beat.agent for beat in live), frozenset(uid for beat in live for uid in beat.full)
        agents = self.fleet.changes, self.fleet.resting, there, full
        if agents != self._agents:
            self._agents, self._live = agents, live
            self.studies.wake_where(lambda wants: fleet.audience(live, *wants))
        for uid in full ^ self._full:
            self.studies.wake(uid)
        self._full = full
        self._awake = self.studies.awake()

    def awake(self) -> Iterator[Study]:
        """Yield the studies that may have something to be done in this round: of ten thousand most are over, or wait."""
        yield from self._awake

    def viewed(self, study: Study, now: float) -> None:
        """Note that a study was shown as it stands at ``now`` (monotonic seconds)."""
        study.viewed_as = study.standing, self._agents, study.rate(now)

    def let_rest(self, now: float) -> None:
        """Let studies rest for which there was nothing to do in this round, which began at ``now`` (monotonic seconds)."""
        audiences: dict[Want, Audience | None] = {}
        for study in self._awake:
            if study.viewed_as != (study.standing, self._agents, study.rate(now)):
                continue
            if not study.is_still(now, kept_after=self.config.snapshot_entries):
                continue
            if study.plan is not None and study.active:
                wants = study.site, study.plan.wants
                if wants not in audiences:
                    is_served = fleet.serving(self._live, *wants) > 0
                    audiences[wants] = None if is_served else fleet.audience(self._live, *wants)
                if (audience := audiences[wants]) is not None:
                    self.studies.let_rest(study, wants=wants, audience=audience)
            else:
                self.studies.let_rest(study)

    @property
    def now(self) -> float:
        """Unix seconds by the broker's clock."""
        return time.time() + self.broker_clock_ahead

    def control(self, study: Study, ledger: Ledger) -> control.Control:
        """Return what a study's switches ask for now."""
        return control.Control(
            study.switches, ledger, self.now, self.config.stop_after, study.excuse, study.past.restarted
        )

    def seal(self, scope: str, subject: str, data: bytes) -> bytes:
        """Seal what is to be stored under a subject."""
        return self.config.keyring.seal(data, scope=scope, context=subject)

    def open_own(self, uid: str, stored: Stored) -> bytes:
        """Open what an operator wrote: a chunk, a cursor, a plan.

        Raises:
            merlin_study.seal.SealError: it was none, or is another study's.
        """
        return self.config.keyring.open(stored.data, scope=uid, context=stored.subject, signer=Signer.OPERATOR)

    def read_own(self, kind: type[M], uid: str, stored: Stored | None) -> M | None:
        """Return what an operator said; None where it said nothing, or what is there is none of it, which is counted and logged."""
        if stored is None:
            return None
        try:
            return kind.model_validate_json(self.open_own(uid, stored))
        except (SealError, ValidationError) as error:
            self.refuse(error)
            log.warning("%s refused subject=%s error=%s", kind.__name__.lower(), stored.subject, error)
            return None
