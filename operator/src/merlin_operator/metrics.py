"""The metrics of one operator, read off the engine and the board whenever they are scraped: nothing is counted twice.

Names and units follow Prometheus' conventions: one prefix, base units, ``_total`` for counters. The number of series is
bounded: those of a study exist for at most `MAX_STUDIES` of them, unfinished ones first, those of a site for `measures.MAX_SITES`,
those of a site and queue for `measures.MAX_PAIRS`, and none has a label of a step, a task or a host. Every state has a
series from the start, so that a rate or an alert does not wait for the first event.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from merlin_operator import agent_metrics, broker_metrics, conditions, families
from merlin_operator.board import AgentView
from merlin_operator.cluster import Traffic
from merlin_operator.load import BrokerLoad
from merlin_operator.measures import Spread, Tally
from merlin_operator.view import COUNTED, StepView, StudyView

MAX_STUDIES: Final = 200
KEPT_AFTER_END: Final = 600.0
"""Seconds that a finished study keeps its series, so that a last scrape sees how it ended."""
SILENT_AFTER: Final = 60.0
_TASK_STATES: Final = ("queued", "running", "retrying", "succeeded", "soft_failed", "failed", "timed_out", "cancelled")
_OUTCOMES: Final = COUNTED[:-2]


class Counters(Protocol):
    """What the engine counts; see `merlin_operator.core.Counters`."""

    @property
    def issued_tasks(self) -> int:
        """Tasks handed out, again or for the first time."""

    @property
    def issued_chunks(self) -> int:
        """Chunks handed out."""

    @property
    def reports(self) -> int:
        """Entries of the log that were folded."""

    @property
    def refused_signature(self) -> int:
        """Messages that did not open: forged, under other keys, or altered."""

    @property
    def refused_schema(self) -> int:
        """Messages that opened and made no sense: of another version."""

    @property
    def interrupted(self) -> int:
        """Rounds that the broker's absence ended early."""

    @property
    def broker_reconnects(self) -> int:
        """Connections to the broker after the first one."""

    @property
    def broker_connected(self) -> bool:
        """Whether there is one now."""

    @property
    def broker_certificate_ends(self) -> float | None:
        """When the broker's certificate ends, in Unix seconds; None without TLS."""


class Counted(Protocol):
    """What of the engine can be measured."""

    @property
    def tally(self) -> Tally:
        """What agents told of their work."""

    @property
    def rounds(self) -> Spread:
        """How long the engine's rounds took."""

    @property
    def load(self) -> BrokerLoad | None:
        """What the broker last said of itself."""

    def counters(self) -> Counters:
        """Return its counts so far."""

    def quiet_seconds(self) -> float:
        """Return how long ago its loop last went round."""


class Shown(Protocol):
    """What a board knows; see `merlin_operator.cluster.ClusterBoard`."""

    views: Sequence[StudyView]
    agents: Sequence[AgentView]

    @property
    def traffic(self) -> Traffic:
        """How much was asked of the API server."""


class MerlinCollector(Collector):
    """Makes all metric families from the present state."""

    def __init__(
        self,
        engine: Counted,
        board: Shown,
        namespace: str,
        *,
        silent_after: float = SILENT_AFTER,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._board = board
        self._namespace = namespace
        self._silent_after = silent_after
        self._clock = clock
        self._seen: dict[str, tuple[StudyView, tuple[int, ...]]] = {}
        """By uid, the view of the last scrape and the most that was ever seen of each count."""
        self._totals = [0] * len(COUNTED)
        self._began = clock()

    def collect(self) -> Iterator[Metric]:
        """Return every family."""
        yield families.gauge(
            "build_info", "Version of the operator; always 1", {"version": version("merlin-operator")}, 1
        )
        yield from _of_studies(self._board.views, self._namespace, self._clock())
        yield from self._of_outcomes()
        yield from agent_metrics.executions(self._engine.tally)
        yield from agent_metrics.presence(self._board.agents, self._clock(), self._silent_after)
        yield from self._of_engine()
        yield from broker_metrics.load(self._engine.load)
        yield from self._of_cluster()

    def _of_outcomes(self) -> Iterator[Metric]:
        totals = dict(zip(COUNTED, self._count(), strict=True))
        text = "Tasks of all studies by final outcome, and executions lost with their agent"
        outcomes = CounterMetricFamily("merlin_task_outcomes", text, labels=["namespace", "outcome"])
        for outcome in _OUTCOMES:
            outcomes.add_metric([self._namespace, outcome], totals[outcome])
        yield outcomes
        redundant = "Results that came after a final outcome and were not applied"
        yield families.counter("redundant_results", redundant, totals["redundant"])
        doubled = "Executions of all studies that ran again without a reason; must stay 0"
        yield families.counter("duplicate_executions", doubled, totals["doubled"])

    def _count(self) -> list[int]:
        """Add what is new in any study since the last scrape.

        Studies come and go with their counts, and a ledger may be folded anew from its start; a counter only ever grows. So
        what counts is by how much a study exceeds the most that was ever seen of it.
        """
        seen: dict[str, tuple[StudyView, tuple[int, ...]]] = {}
        for view in self._board.views:
            if not view.inherited:  # its log was not read yet
                continue
            last, before = self._seen.get(view.ref.uid, (None, view.inherited))
            if last is view:  # nothing has happened to it: of ten thousand most are over, or wait
                seen[view.ref.uid] = view, before
                continue
            counts = tuple(map(max, before, view.counted))
            seen[view.ref.uid] = view, counts
            for at, most in enumerate(counts):
                self._totals[at] += most - before[at]
        self._seen = seen
        return self._totals

    def _of_engine(self) -> Iterator[Metric]:
        counts = self._engine.counters()
        yield families.counter(
            "issued_tasks", "Tasks handed out in chunks, first tries and later ones", counts.issued_tasks
        )
        yield families.counter("issued_chunks", "Chunks handed out", counts.issued_chunks)
        yield families.counter("reports", "Entries of the studies' logs that were folded", counts.reports)
        text = "Messages that the operator refused: not opened (signature), or without sense (schema)"
        refusals = CounterMetricFamily("merlin_refused_messages", text, labels=["reason"])
        refusals.add_metric(["signature"], counts.refused_signature)
        refusals.add_metric(["schema"], counts.refused_schema)
        yield refusals
        refused = "Messages that agents refused: forged, or of another version"
        yield families.counter("agent_refused_messages", refused, self._engine.tally.refused)
        yield families.counter(
            "broker_reconnects", "Connections to the broker after the first one", counts.broker_reconnects
        )
        yield families.gauge(
            "broker_connected", "Whether the operator is connected to the broker", {}, counts.broker_connected
        )
        began = "When this process of the operator began"
        yield families.gauge("operator_start_timestamp_seconds", began, {}, self._began)
        if counts.broker_certificate_ends is not None:
            text = "When the certificate ends that the broker showed at the last connection"
            yield families.gauge(
                "broker_certificate_expiry_timestamp_seconds", text, {}, counts.broker_certificate_ends
            )
        age = "Seconds since the engine's loop last went round"
        yield families.gauge("engine_loop_age_seconds", age, {}, self._engine.quiet_seconds())
        rounds = HistogramMetricFamily(
            "merlin_reconcile_duration_seconds", "How long the engine takes to go round once"
        )
        families.add(rounds, [], self._engine.rounds)
        yield rounds
        yield families.counter(
            "reconcile_errors", "Rounds that ended early because the broker was away", counts.interrupted
        )

    def _of_cluster(self) -> Iterator[Metric]:
        traffic = self._board.traffic
        yield families.counter("status_writes", "Writes of a study's status to the API server", traffic.status_writes)
        yield families.counter(
            "allocation_writes", "Writes of allocations to the API server", traffic.allocation_writes
        )
        yield families.counter("api_conflicts", "Writes that the API server refused as outdated", traffic.conflicts)
        yield families.counter("api_errors", "Requests that the API server refused or did not answer", traffic.errors)


def registry_of(collector: Collector) -> CollectorRegistry:
    """Return a registry with this collector and nothing of the process-wide one."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` series beside each counter would double their number
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _of_studies(views: Sequence[StudyView], namespace: str, now: float) -> Iterator[Metric]:
    studies = GaugeMetricFamily("merlin_studies", "Studies by state", labels=["namespace", "state"])
    found = Counter(conditions.state_of(view) for view in views)
    for state in conditions.STATES:
        studies.add_metric([namespace, state], found[state])
    yield studies
    tasks = GaugeMetricFamily(
        "merlin_tasks", "Tasks of unfinished studies by state", labels=["namespace", "study", "state"]
    )
    doubled = _of_study("doubled_executions", "Executions that ran again without a reason; must stay 0")
    ready = _of_study("unroll_lag_tasks", "Tasks that could be handed out and are not yet, because enough wait")
    unserved = _of_study("study_unserved", "Whether tasks wait in a queue that no agent serves")
    progress = _of_study("study_progress_timestamp_seconds", "When an agent last reported on the study, or it began")
    left = _of_study("study_remaining_seconds", "Estimated time to the study's end, from the last minute's rate")
    for view in shown_studies(views, now):
        labels = [view.ref.namespace, view.ref.name]
        for name, count in _tasks(view.steps):
            tasks.add_metric([*labels, name], count)
        doubled.add_metric(labels, view.doubled)
        ready.add_metric(labels, 0 if view.finished else view.ready)
        unserved.add_metric(labels, bool(view.waiting_for))
        if view.progressed_at is not None:
            progress.add_metric(labels, view.progressed_at)
        if view.remaining_seconds is not None and not view.finished:
            left.add_metric(labels, view.remaining_seconds)
    yield from (tasks, doubled, ready, unserved, progress, left)


def _of_study(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"merlin_{name}", text, labels=["namespace", "study"])


def shown_studies(views: Iterable[StudyView], now: float) -> list[StudyView]:
    """Return the studies that have series of their own: unfinished ones first, the latest first."""
    kept = [view for view in views if view.steps and now - (view.finished_at or now) <= KEPT_AFTER_END]
    return sorted(kept, key=lambda view: (view.finished, -(view.started_at or now), view.ref.uid))[:MAX_STUDIES]


def _tasks(steps: Sequence[StepView]) -> Iterator[tuple[str, int]]:
    counts = {state: sum(getattr(step, state) for step in steps) for state in _TASK_STATES}
    total = sum(step.total or 0 for step in steps)
    yield "waiting", max(0, total - sum(counts.values()))
    yield from counts.items()
