"""The metrics of one operator, read off the engine and the board whenever they are scraped: nothing is counted twice.

Names and units follow Prometheus' conventions: one prefix, base units, ``_total`` for counters. The number of series is
bounded: those of a study exist for at most `MAX_STUDIES` of them, unfinished ones first, and none has a label of a step,
a task or a host. Every state has a series from the start, so that a rate or an alert does not wait for the first event.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from merlin_operator import conditions
from merlin_operator.board import AgentView
from merlin_operator.cluster import Traffic
from merlin_operator.view import StepView, StudyView

MAX_STUDIES: Final = 200
KEPT_AFTER_END: Final = 600.0
"""Seconds that a finished study keeps its series, so that a last scrape sees how it ended."""
SILENT_AFTER: Final = 60.0
AGENT_STATES: Final = ("active", "draining", "silent")


class Counters(Protocol):
    """What the engine counts; see `merlin_operator.engine.Counters`."""

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
    def broker_reconnects(self) -> int:
        """Connections to the broker after the first one."""

    @property
    def broker_connected(self) -> bool:
        """Whether there is one now."""


class Counted(Protocol):
    """What of the engine can be measured."""

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
        self, engine: Counted, board: Shown, namespace: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._board = board
        self._namespace = namespace
        self._clock = clock
        self._redundant: dict[str, int] = {}
        self._redundant_total = 0

    def collect(self) -> Iterator[Metric]:
        """Return every family."""
        yield _gauge("build_info", "Version of the operator; always 1", {"version": version("merlin-operator")}, 1)
        yield from _of_studies(self._board.views, self._namespace, self._clock())
        yield from _of_agents(self._board.agents)
        yield from self._of_engine()
        yield from self._of_cluster()

    def _of_engine(self) -> Iterator[Metric]:
        counts = self._engine.counters()
        yield _counter("issued_tasks", "Tasks handed out in chunks, first tries and later ones", counts.issued_tasks)
        yield _counter("issued_chunks", "Chunks handed out", counts.issued_chunks)
        yield _counter("reports", "Entries of the studies' logs that were folded", counts.reports)
        redundant = "Results that came after a final outcome and were not applied"
        yield _counter("redundant_results", redundant, self._count_redundant())
        yield _counter("refused_messages", "Messages that did not open or made no sense", counts.refused)
        yield _counter("lost_chunks", "Chunks called lost with their agent and issued again", counts.lost_fences)
        yield _counter("broker_reconnects", "Connections to the broker after the first one", counts.broker_reconnects)
        yield _gauge("broker_connected", "Whether the operator is connected to the broker", {}, counts.broker_connected)
        age = "Seconds since the engine's loop last went round"
        yield _gauge("engine_loop_age_seconds", age, {}, self._engine.quiet_seconds())

    def _of_cluster(self) -> Iterator[Metric]:
        traffic = self._board.traffic
        yield _counter("status_writes", "Writes of a study's status to the API server", traffic.status_writes)
        yield _counter("allocation_writes", "Writes of allocations to the API server", traffic.allocation_writes)
        yield _counter("api_conflicts", "Writes that the API server refused as outdated", traffic.conflicts)
        yield _counter("api_errors", "Requests that the API server refused or did not answer", traffic.errors)

    def _count_redundant(self) -> int:
        # Studies come and go with their counts; a counter only ever grows.
        now = {view.ref.uid: view.redundant for view in self._board.views}
        self._redundant_total += sum(max(0, count - self._redundant.get(uid, 0)) for uid, count in now.items())
        self._redundant = now
        return self._redundant_total


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
    labels = ["namespace", "study", "state"]
    tasks = GaugeMetricFamily("merlin_tasks", "Tasks of unfinished studies by state", labels=labels)
    doubled = GaugeMetricFamily(
        "merlin_doubled_executions", "Executions that ran again without a reason; must stay 0", labels=labels[:2]
    )
    for view in shown_studies(views, now):
        for name, count in _tasks(view.steps):
            tasks.add_metric([view.ref.namespace, view.ref.name, name], count)
        doubled.add_metric([view.ref.namespace, view.ref.name], view.doubled)
    yield tasks
    yield doubled


def shown_studies(views: Iterable[StudyView], now: float) -> list[StudyView]:
    """Return the studies that have series of their own: unfinished ones first, the latest first."""
    kept = [view for view in views if view.steps and now - (view.finished_at or now) <= KEPT_AFTER_END]
    return sorted(kept, key=lambda view: (view.finished, -(view.started_at or now), view.ref.uid))[:MAX_STUDIES]


def _tasks(steps: Sequence[StepView]) -> Iterator[tuple[str, int]]:
    states = ("queued", "running", "retrying", "succeeded", "soft_failed", "failed", "timed_out", "cancelled")
    counts = {state: sum(getattr(step, state) for step in steps) for state in states}
    total = sum(step.total or 0 for step in steps)
    yield "waiting", max(0, total - sum(counts.values()))
    yield from counts.items()


def _of_agents(agents: Sequence[AgentView]) -> Iterator[Metric]:
    known = GaugeMetricFamily("merlin_agents", "Agents by state", labels=["site", "state"])
    slots = GaugeMetricFamily("merlin_agent_slots", "Slots of agents that are heard of", labels=["site", "state"])
    present = [agent for agent in agents if not agent.heartbeat.left]
    for site in sorted({agent.heartbeat.site for agent in present}):
        here = [agent for agent in present if agent.heartbeat.site == site]
        found = Counter(_agent_state(agent) for agent in here)
        heard = [agent.heartbeat for agent in here if _agent_state(agent) != "silent"]
        busy = sum(beat.busy for beat in heard)
        for state in AGENT_STATES:
            known.add_metric([site, state], found[state])
        slots.add_metric([site, "busy"], busy)
        slots.add_metric([site, "idle"], max(0, sum(beat.slots for beat in heard) - busy))
    yield known
    yield slots


def _agent_state(agent: AgentView) -> str:
    if agent.silent_for > SILENT_AFTER:
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
