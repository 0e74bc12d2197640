"""Carries out what `merlin_operator.quarantine` decides: who rests, what is excused, and that the next operator knows."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Final

from merlin_operator.core import AGENTS_SCOPE, Core
from merlin_operator.quarantine import Told
from merlin_operator.study import Study
from merlin_study import shape, wire
from merlin_study.ledger import EXCUSED
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

log = logging.getLogger(__name__)

FAILURES: Final = frozenset({Outcome.SOFT_FAILED, Outcome.RETRY, Outcome.RESTART})
"""Ends that may be a host's fault. A hard failure and a wish to stop are a script's word, and a timeout is not fast."""
_REST: Final = 10.0
"""Judgements take one part in ten of the time at most."""
_LATE: Final = 600.0
"""Seconds after which a report says nothing of how a host is now."""


class Warden:
    """Watches what every host makes of its chunks; see the module."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._stored: tuple[wire.Quarantine, ...] | None = None
        self._not_before = 0.0
        self._departures = 0

    def connected(self) -> None:
        """Read what stands at the broker again: it may be another one."""
        self._stored = None

    def take(self, study: Study, report: wire.Report, at: float) -> None:
        """Take note of a report of a current fence, before it is folded."""
        core, ledger = self.core, study.ledger
        member = core.fleet.members.get(report.agent)
        if ledger is None or member is None:
            return
        fence = ledger.fences.get(report.fence)
        if fence is None or fence.holder != report.agent:
            return
        if report.serial <= fence.serial or report.serial in fence.ahead:
            return
        untold = fence.chunk.rehearse is not None or fence.chunk.scan
        if untold or shape.parse(ledger.lane(fence.chunk).shape).nodes > 1 or core.now - at > _LATE:
            return
        core.watch.tell(
            Told(
                (member.heartbeat.site, member.heartbeat.host),
                (study.ref.uid, fence.chunk.step),
                report.fence,
                fence.chunk.attempt,
                at,
                succeeded=tuple(each.tasks for each in report.results if each.outcome is Outcome.SUCCEEDED),
                failed=tuple(each.tasks for each in report.results if each.outcome in FAILURES),
                seconds=report.seconds,
            )
        )

    async def judge(self, now: float) -> None:
        """Quarantine and release at ``now`` (monotonic seconds), and have failures judged that were a host's."""
        core, watch = self.core, self.core.watch
        if self._stored is None:
            await self._read()
        if now >= self._not_before:
            watch.judge(core.now, core.fleet.hosts(now))
            if core.studies.departures != self._departures:
                self._departures = core.studies.departures
                watch.forget(core.studies.keys())
            took = time.monotonic() - now
            self._not_before = now + _REST * took
        core.fleet.resting = frozenset(place for place, held in watch.held.items() if core.now < held.until)
        blamed = [study for uid in watch.blamed if (study := core.studies.get(uid)) is not None]
        for study in {each.ref.uid: each for each in (*core.studies.awake(), *blamed)}.values():
            self._excuse(study)
        await self._store()

    def _excuse(self, study: Study) -> None:
        ledger = study.ledger
        if ledger is None:
            return
        if (
            study.ended
            or ledger.stops.cancelled
            or (study.excuse is not None and study.excuse.token in ledger.honoured)
        ):
            study.excuse = None

        def spared(step: int, tasks: TaskSet, fence: int) -> TaskSet | None:
            return ledger.stops.spared(step, tasks, fence=fence, geometry=ledger.geometry)

        if study.excuse is not None or (found := self.core.watch.take(study.ref.uid, spared)) is None:
            return
        if not study.ended and not ledger.stops.cancelled and not study.end_told:
            host, failed = found
            token = f"{EXCUSED}{host}:{secrets.token_hex(4)}"
            study.excuse = wire.Excused(token=token, host=host, failed=failed, below=ledger.next_fence)

    async def _read(self) -> None:
        core, subject = self.core, self.core.space.quarantines
        stored = await core.broker.last(core.space.control_stream, subject)
        said = core.read_own(wire.Quarantines, AGENTS_SCOPE, stored)
        self._stored = said.hosts if said is not None else ()
        for each in self._stored:
            core.watch.held.setdefault((each.site, each.host), each)

    async def _store(self) -> None:
        core, subject = self.core, self.core.space.quarantines
        held = tuple(core.watch.held.values())
        if held != self._stored:
            for each in set(held) - set(self._stored or ()):
                log.warning(
                    "host quarantined site=%s host=%s times=%d why=%s", each.site, each.host, each.times, each.why
                )
            for each in set(self._stored or ()) - set(held):
                if (each.site, each.host) not in core.watch.held:
                    log.info("host released site=%s host=%s", each.site, each.host)
            await core.broker.put(subject, core.seal(AGENTS_SCOPE, subject, wire.Quarantines(hosts=held).encode()))
            self._stored = held
