"""The metrics of one operator, read off the engine and the board whenever they are scraped: nothing is counted twice.

Names and units follow Prometheus' conventions: one prefix, base units, ``_total`` for counters. The number of series is
bounded: those of a study exist for at most `MAX_STUDIES` of them, unfinished ones first, those of a site for `MAX_SITES`,
those of a site and queue for `measures.MAX_PAIRS`, and none has a label of a step, a task or a host. Every state has a
series from the start, so that a rate or an alert does not wait for the first event.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from merlin_operator import conditions
from merlin_operator.board import AgentView
from merlin_operator.cluster import Traffic
from merlin_operator.measures import OTHER, Figures, Spread, Tally
from merlin_operator.view import COUNTED, StepView, StudyView
from merlin_study.outcome import Outcome

MAX_STUDIES: Final = 200
MAX_SITES: Final = 100
KEPT_AFTER_END: Final = 600.0
"""Seconds that a finished study keeps its series, so that a last scrape sees how it ended."""
SILENT_AFTER: Final = 60.0
AGENT_STATES: Final = ("active", "draining", "silent")
_TASK_STATES: Final = ("queued", "running", "retrying", "succeeded", "soft_failed", "failed", "timed_out", "cancelled")
_OUTCOMES: Final = COUNTED[:-2]
_ATTEMPTS: Final = {outcome: outcome.value.replace("-", "_") for outcome in Outcome if outcome is not Outcome.LOST}
"""How an agent sees an execution end. That one was lost nobody there can tell."""


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
    def refused(self) -> int:
        """Messages that did not open or made no sense."""

    @property
    def lost_fences(self) -> int:
        """Verdicts of loss."""

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
        self._seen: dict[str, tuple[int, ...]] = {}
        self._totals = [0] * len(COUNTED)

    def collect(self) -> Iterator[Metric]:
        """Return every family."""
        yield _gauge("build_info", "Version of the operator; always 1", {"version": version("merlin-operator")}, 1)
        yield from _of_studies(self._board.views, self._namespace, self._clock())
        yield from self._of_outcomes()
        yield from _of_executions(self._engine.tally)
        yield from _of_agents(self._board.agents, self._clock(), self._silent_after)
        yield from self._of_engine()
        yield from self._of_cluster()

    def _of_outcomes(self) -> Iterator[Metric]:
        totals = dict(zip(COUNTED, self._count(), strict=True))
        text = "Tasks of all studies by final outcome, and executions lost with their agent"
        outcomes = CounterMetricFamily("merlin_task_outcomes", text, labels=["namespace", "outcome"])
        for outcome in _OUTCOMES:
            outcomes.add_metric([self._namespace, outcome], totals[outcome])
        yield outcomes
        redundant = "Results that came after a final outcome and were not applied"
        yield _counter("redundant_results", redundant, totals["redundant"])
        doubled = "Executions of all studies that ran again without a reason; must stay 0"
        yield _counter("duplicate_executions", doubled, totals["doubled"])

    def _count(self) -> list[int]:
        """Add what is new in any study since the last scrape.

        Studies come and go with their counts, and a ledger may be folded anew from its start; a counter only ever grows. So
        what counts is by how much a study exceeds the most that was ever seen of it.
        """
        seen: dict[str, tuple[int, ...]] = {}
        for view in self._board.views:
            if not view.inherited:  # its log was not read yet
                continue
            before = self._seen.get(view.ref.uid, view.inherited)
            seen[view.ref.uid] = tuple(map(max, before, view.counted))
            for at, most in enumerate(seen[view.ref.uid]):
                self._totals[at] += most - before[at]
        self._seen = seen
        return self._totals

    def _of_engine(self) -> Iterator[Metric]:
        counts = self._engine.counters()
        yield _counter("issued_tasks", "Tasks handed out in chunks, first tries and later ones", counts.issued_tasks)
        yield _counter("issued_chunks", "Chunks handed out", counts.issued_chunks)
        yield _counter("reports", "Entries of the studies' logs that were folded", counts.reports)
        yield _counter("refused_messages", "Messages that did not open or made no sense", counts.refused)
        refused = "Messages that agents refused: forged, or of another version"
        yield _counter("agent_refused_messages", refused, self._engine.tally.refused)
        yield _counter("lost_chunks", "Chunks called lost with their agent and issued again", counts.lost_fences)
        yield _counter("broker_reconnects", "Connections to the broker after the first one", counts.broker_reconnects)
        yield _gauge("broker_connected", "Whether the operator is connected to the broker", {}, counts.broker_connected)
        if counts.broker_certificate_ends is not None:
            text = "When the certificate ends that the broker showed at the last connection"
            yield _gauge("broker_certificate_expiry_timestamp_seconds", text, {}, counts.broker_certificate_ends)
        age = "Seconds since the engine's loop last went round"
        yield _gauge("engine_loop_age_seconds", age, {}, self._engine.quiet_seconds())
        rounds = HistogramMetricFamily(
            "merlin_reconcile_duration_seconds", "How long the engine takes to go round once"
        )
        _add(rounds, [], self._engine.rounds)
        yield rounds
        yield _counter("reconcile_errors", "Rounds that ended early because the broker was away", counts.interrupted)

    def _of_cluster(self) -> Iterator[Metric]:
        traffic = self._board.traffic
        yield _counter("status_writes", "Writes of a study's status to the API server", traffic.status_writes)
        yield _counter("allocation_writes", "Writes of allocations to the API server", traffic.allocation_writes)
        yield _counter("api_conflicts", "Writes that the API server refused as outdated", traffic.conflicts)
        yield _counter("api_errors", "Requests that the API server refused or did not answer", traffic.errors)


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


def _of_executions(tally: Tally) -> Iterator[Metric]:
    labels = ["site", "queue"]
    text = "Executions of tasks that ended, as agents saw them, by outcome"
    attempts = CounterMetricFamily("merlin_task_attempts", text, labels=[*labels, "outcome"])
    ran = HistogramMetricFamily("merlin_task_duration_seconds", "How long executions of tasks ran", labels=labels)
    text = "How long tasks waited from the publication of their chunk to their start"
    waited = HistogramMetricFamily("merlin_task_queue_wait_seconds", text, labels=labels)
    for pair, figures in sorted(tally.figures.items()):
        _add_figures(attempts, pair, figures)
        _add(ran, pair, figures.ran)
        _add(waited, pair, figures.waited)
    yield from (attempts, ran, waited)


def _add_figures(attempts: CounterMetricFamily, pair: tuple[str, str], figures: Figures) -> None:
    for outcome, name in _ATTEMPTS.items():
        attempts.add_metric([*pair, name], figures.outcomes[outcome])


def _add(family: HistogramMetricFamily, labels: Sequence[str], spread: Spread) -> None:
    bounds = [*map(floatToGoString, spread.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
    family.add_metric(list(labels), buckets, sum_value=spread.seconds)


def _of_agents(agents: Sequence[AgentView], now: float, silent_after: float) -> Iterator[Metric]:
    known = GaugeMetricFamily("merlin_agents", "Agents by state", labels=["site", "state"])
    slots = GaugeMetricFamily("merlin_agent_slots", "Slots of agents that are heard of", labels=["site", "state"])
    seen = _of_site("agent_last_seen_timestamp_seconds", "When any agent of the site was last heard")
    first = _of_site("first_allocation_end_timestamp_seconds", "When the first allocation with agents ends, if known")
    last = _of_site("last_allocation_end_timestamp_seconds", "When the last allocation with agents ends, if known")
    for site, here in _by_site(agent for agent in agents if not agent.heartbeat.left):
        found = Counter(_agent_state(agent, silent_after) for agent in here)
        heard = [agent.heartbeat for agent in here if agent.silent_for <= silent_after]
        busy = sum(beat.busy for beat in heard)
        for state in AGENT_STATES:
            known.add_metric([site, state], found[state])
        slots.add_metric([site, "busy"], busy)
        slots.add_metric([site, "idle"], max(0, sum(beat.slots for beat in heard) - busy))
        seen.add_metric([site], now - min(agent.silent_for for agent in here))
        ends = [beat.allocation.ends_at for beat in heard if beat.allocation.ends_at]
        if ends:
            first.add_metric([site], min(ends))
            last.add_metric([site], max(ends))
    yield from (known, slots, seen, first, last)


def _of_site(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"merlin_{name}", text, labels=["site"])


def _by_site(agents: Iterable[AgentView]) -> list[tuple[str, list[AgentView]]]:
    """Return agents by site; sites beyond `MAX_SITES`, those with the fewest agents, together."""
    found: dict[str, list[AgentView]] = {}
    for agent in agents:
        found.setdefault(agent.heartbeat.site, []).append(agent)
    order = sorted(found, key=lambda site: (-len(found[site]), site))
    kept = {site: found[site] for site in order[:MAX_SITES]}
    for site in order[MAX_SITES:]:
        kept.setdefault(OTHER, []).extend(found[site])
    return sorted(kept.items())


def _agent_state(agent: AgentView, silent_after: float) -> str:
    if agent.silent_for > silent_after:
        return "silent"
    return "draining" if agent.heartbeat.leaving else "active"


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"merlin_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(f"merlin_{name}", text)
    family.add_metric([], value)
    return family
