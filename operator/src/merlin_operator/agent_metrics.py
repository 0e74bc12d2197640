"""Metrics of the agents, by site, from what their heartbeats tell: compute nodes are never scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from merlin_operator import families
from merlin_operator.board import AgentView
from merlin_operator.measures import MAX_SITES, OTHER, Figures, Tally
from merlin_study.outcome import Outcome

AGENT_STATES: Final = ("active", "draining", "silent")
_ATTEMPTS: Final = {outcome: outcome.value.replace("-", "_") for outcome in Outcome if outcome is not Outcome.LOST}
"""How an agent sees an execution end. That one was lost nobody there can tell."""


def executions(tally: Tally) -> Iterator[Metric]:
    """Return what became of executions: how they ended, how long they ran and waited, what was lost."""
    labels = ["site", "queue"]
    text = "Executions of tasks that ended, as agents saw them, by outcome"
    attempts = CounterMetricFamily("merlin_task_attempts", text, labels=[*labels, "outcome"])
    ran = HistogramMetricFamily("merlin_task_duration_seconds", "How long executions of tasks ran", labels=labels)
    text = "How long tasks waited from the publication of their chunk to their start"
    waited = HistogramMetricFamily("merlin_task_queue_wait_seconds", text, labels=labels)
    for pair, figures in sorted(tally.figures.items()):
        _add_figures(attempts, pair, figures)
        families.add(ran, pair, figures.ran)
        families.add(waited, pair, figures.waited)
    yield from (attempts, ran, waited)
    lost = CounterMetricFamily(
        "merlin_lost_chunks", "Chunks called lost with their agent and issued again", labels=["site"]
    )
    for site, chunks in sorted(tally.lost.items()):
        lost.add_metric([site], chunks)
    yield lost


def _add_figures(attempts: CounterMetricFamily, pair: tuple[str, str], figures: Figures) -> None:
    for outcome, name in _ATTEMPTS.items():
        attempts.add_metric([*pair, name], figures.outcomes[outcome])


def presence(agents: Sequence[AgentView], now: float, silent_after: float) -> Iterator[Metric]:
    """Return who is there, with how many slots, and for how long."""
    known = GaugeMetricFamily("merlin_agents", "Agents by state", labels=["site", "state"])
    slots = GaugeMetricFamily("merlin_agent_slots", "Slots of agents that are heard of", labels=["site", "state"])
    quarantined = _of_site("quarantined_hosts", "Hosts that get no work because all that ran there failed")
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
        held = {agent.quarantine.host for agent in here if agent.quarantine is not None}
        quarantined.add_metric([site], len(held))
    yield from (known, slots, quarantined, seen, first, last)


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
