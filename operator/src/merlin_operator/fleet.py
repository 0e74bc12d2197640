"""The agents that are there: who announced itself, what it can take, and whose silence means loss.

Silence is measured by the operator's monotonic clock and only while both sides could have heard each other: after an
outage of the broker on this side every agent's clock starts again, so that nobody is called lost for our own absence.
Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from merlin_study import shape, subjects, wire
from merlin_study.plan import Plan


@dataclass(slots=True)
class Member:
    """An agent and when it was last heard, in monotonic seconds."""

    heartbeat: wire.Heartbeat
    heard: float


Audience = frozenset[tuple[str, int, int, int, int, frozenset[str] | None]]
"""Agents with their sizes, and those of some queues that each serves (None: all)."""


class Fleet:
    """All agents of a namespace, by agent id."""

    def __init__(self, timing: wire.Timing) -> None:
        self.members: dict[str, Member] = {}
        self.changes = 0
        """How often what an agent offers has changed."""
        self.resting: frozenset[tuple[str, str]] = frozenset()
        """Hosts (site, name) that get no work for the time being."""
        self._timing = timing
        self._listening_since = 0.0

    def hear(self, heartbeat: wire.Heartbeat, now: float) -> bool:
        """Note a heartbeat; return whether it changes what may be issued (a new agent, other queues, one that leaves)."""
        old = self.members.get(heartbeat.agent)
        self.members[heartbeat.agent] = Member(heartbeat, now)
        has_changed = old is None or _offered(old.heartbeat) != _offered(heartbeat)
        self.changes += has_changed
        return has_changed

    def start_clocks(self, now: float) -> None:
        """Start every silence anew: from here on agents could be heard again."""
        self._listening_since = now

    def silence(self, agent: str, now: float) -> float:
        """Return for how many seconds an agent could have been heard and was not; an unknown one counts from the start."""
        member = self.members.get(agent)
        heard = member.heard if member is not None else 0.0
        return now - max(heard, self._listening_since)

    def last(self, agent: str) -> tuple[wire.Heartbeat | None, float]:
        """Return an agent's last heartbeat and when it was heard; None where there was none."""
        member = self.members.get(agent)
        return (None, 0.0) if member is None else (member.heartbeat, member.heard)

    def listened(self, since: float, now: float) -> float:
        """Return for how many of the seconds since a moment agents could be heard."""
        return now - max(since, self._listening_since)

    def is_gone(self, agent: str, now: float) -> bool:
        """Whether an agent said its last word, or has been silent for too long."""
        member = self.members.get(agent)
        if member is not None and member.heartbeat.left:
            return True
        return self.silence(agent, now) > self._timing.lost_after

    def live(self, now: float) -> Iterator[wire.Heartbeat]:
        """Yield the last heartbeat of each agent that is there and takes work."""
        for name, member in self.members.items():
            beat = member.heartbeat
            if (beat.site, beat.host) not in self.resting and self.works(name, now):
                yield beat

    def works(self, agent: str, now: float) -> bool:
        """Whether an agent is there and would take work, were it not for a quarantine of its host."""
        beat = self.members[agent].heartbeat
        return not beat.leaving and not beat.left and not self.is_gone(agent, now)

    def hosts(self, now: float) -> set[tuple[str, str]]:
        """Return (site, name) of all hosts with an agent that `works`."""
        return {
            (member.heartbeat.site, member.heartbeat.host)
            for name, member in self.members.items()
            if self.works(name, now)
        }

    def known(self, agent: str) -> wire.Heartbeat | None:
        """Return an agent's last heartbeat, None where none is remembered."""
        member = self.members.get(agent)
        return member.heartbeat if member is not None else None

    def forget_long_gone(self, now: float) -> None:
        """Drop agents that have been gone for ten times the time after which they count as lost."""
        limit = 10 * self._timing.lost_after
        self.members = {name: member for name, member in self.members.items() if now - member.heard < max(limit, 60.0)}


def _offered(heartbeat: wire.Heartbeat) -> tuple[object, ...]:
    return (heartbeat.leaving, heartbeat.queues, heartbeat.slots, heartbeat.memory, heartbeat.nodes)


def serves(heartbeat: wire.Heartbeat, *, site: str | None, queue: str, needs: str) -> bool:
    """Whether an agent may run tasks of a queue and shape, for a study bound to ``site`` (None: to none yet)."""
    if site is not None and heartbeat.site != site:
        return False
    if heartbeat.queues and queue not in heartbeat.queues:
        return False
    there = shape.parse(needs).on(cores=heartbeat.slots, memory=heartbeat.memory)
    return there.fits(nodes=heartbeat.nodes, cores=heartbeat.slots, gpus=heartbeat.gpus)


def serving(agents: Iterable[wire.Heartbeat], at: str, wants: Iterable[tuple[str, str]]) -> int:
    """Return how many agents could run something of a study at a site (`subjects.ANY_SITE`: at any) that ``wants`` these."""
    site = None if at == subjects.ANY_SITE else at
    wanted = list(wants)
    return sum(any(serves(agent, site=site, queue=queue, needs=needs) for queue, needs in wanted) for agent in agents)


def audience(agents: Iterable[wire.Heartbeat], at: str, wants: Iterable[tuple[str, str]]) -> Audience:
    """Return all that agents have to do with studies at a site (`subjects.ANY_SITE`: at any) that ``wants`` these.

    Whether they are served, and what is said of that, changes with it only.
    """
    queues = frozenset(queue for queue, _ in wants)
    return frozenset(
        (beat.agent, beat.nodes, beat.slots, beat.gpus, beat.memory, common if beat.queues else None)
        for beat in agents
        if at in (subjects.ANY_SITE, beat.site)
        if (common := queues & frozenset(beat.queues)) or not beat.queues
    )


def unserved(agents: Iterable[wire.Heartbeat], *, site: str | None, step: str, queue: str, needs: str) -> str:
    """Say in one sentence what is missing where none of ``agents`` `serves` tasks of a step: any agent, or a large enough one."""
    where = f" at site {site}" if site is not None else ""
    smallest = shape.Shape().token
    there = [agent for agent in agents if serves(agent, site=site, queue=queue, needs=smallest)]
    if not there:
        return f"no agent serves queue '{queue}'{where}; start merlin-agent in an allocation"
    largest = max(there, key=lambda agent: (agent.nodes, agent.slots, agent.gpus))
    wanted = shape.parse(needs)
    return (
        f"no agent of queue '{queue}'{where} has room for a task of step '{step}': expected {_size(wanted)}, the largest has "
        f"{_size(_of(largest, wanted))}; start merlin-agent in a larger allocation, or lower nodes, "
        f"procs, cores per task{', memory' if wanted.memory else ''} or gpus"
    )


def _of(agent: wire.Heartbeat, wanted: shape.Shape) -> shape.Shape:
    """Return what an agent has; its memory only where that was asked for."""
    memory = agent.memory // shape.MEMORY_UNIT if wanted.memory else 0
    return shape.Shape(agent.nodes, agent.slots, agent.gpus, memory)


def _size(room: shape.Shape) -> str:
    parts = [(room.nodes, "host"), (room.cores, "core"), (room.gpus, "GPU")]
    told = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in parts if count]
    told += [f"{room.memory * shape.MEMORY_UNIT} MiB"] if room.memory else []
    return f"{told[0]} of {' and '.join(told[1:])}{' each' if room.nodes > 1 else ''}"


def room(heartbeat: wire.Heartbeat, needs: str) -> int:
    """Return how many tasks of a shape an agent that `serves` it runs at once."""
    each = shape.parse(needs).on(cores=heartbeat.slots, memory=heartbeat.memory)
    on_each_node = heartbeat.slots // each.cost(cores=heartbeat.slots, gpus=heartbeat.gpus)
    return on_each_node if each.nodes == 1 else on_each_node * heartbeat.nodes // each.nodes


def routes(studies: Iterable[tuple[str, Plan]], agents: Sequence[wire.Heartbeat]) -> dict[str, set[subjects.Route]]:
    """Return, for each site with agents, the routes that they should pull.

    A study that is bound to a site has its chunks there; chunks issued before it was bound still wait at
    `subjects.ANY_SITE`, so agents of its site keep pulling both.

    Args:
        studies: the site (or `subjects.ANY_SITE`) and the plan of each study with work left.
        agents: the last heartbeat of each agent that takes work.
    """
    found: dict[str, set[subjects.Route]] = {agent.site: set() for agent in agents}
    for site, queue, needs in {(site, *want) for site, plan in studies for want in plan.wants}:
        bound = None if site == subjects.ANY_SITE else site
        for agent in agents:
            if serves(agent, site=bound, queue=queue, needs=needs):
                found[agent.site] |= {
                    subjects.Route(each, queue, needs, band)
                    for each in (site, subjects.ANY_SITE)
                    for band in ("urgent", "bulk")
                }
    return found
