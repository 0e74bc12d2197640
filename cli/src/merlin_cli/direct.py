"""``merlin stop-workers`` and ``merlin queues``: tell agents what to do, through the Allocations that they belong to.

What is written there is a wish (``spec.drain``, ``spec.queues``, and both for single agents under ``spec.agents``); the operator
passes it on until the agents' heartbeats show it. Whoever may change Allocations may do this, and nobody else: who can't is told
how agents are stopped by who started them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.console import Console

from merlin_cli.crew import Agent, Filter, agents_of, chosen
from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say
from merlin_cli.target import Cluster, There

STOPS: Final[Mapping[str, str]] = {
    "slurm": "scancel {}",
    "flux": "flux cancel {}",
    "lsf": "bkill {}",
    "pbs": "qdel {}",
}
"""What ends an allocation, by its scheduler; agents hand back what they have not started."""
MOST_QUEUES: Final = 64
"""Queues of one agent that an Allocation tells and takes."""

How = Literal["set", "add", "remove"]
Wish = Callable[[Agent], dict[str, Any]]
"""What is wished of an agent, as keys of an Allocation's ``spec``; nothing: it stays as it is."""


@dataclass(frozen=True)
class Group:
    """The agents of one allocation that are meant.

    Attributes:
        name: The allocation.
        agents: Those that are meant.
        others: Agents of it that are not.
        untold: How many more it has than its status names.
    """

    name: str
    agents: tuple[Agent, ...]
    others: tuple[Agent, ...]
    untold: int

    def spec(self, before: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
        """Return the changes to the Allocation's ``spec``; entries of agents that are gone are left out.

        Raises:
            CliError: it has more agents than its status names, and not all of them are to do the same.
        """
        wishes = {agent.name: wish(agent) for agent in self.agents}
        if self.untold:
            first, *rest = wishes.values()
            if self.others or any(each != first for each in rest):
                raise CliError(
                    Exit.REFUSED,
                    f"allocation {self.name} has {self.untold} agents more than its status names, so they can only be told all "
                    "the same; choose all of them, or use `merlin queues set`",
                )
            return first
        there = {agent.name for agent in (*self.agents, *self.others)}
        entries = {str(each["name"]): dict(each) for each in before.get("agents") or () if each["name"] in there}
        for name, changes in wishes.items():
            if changes:
                entries[name] = {"name": name, **entries.get(name, {}), **changes}
        return {"agents": list(entries.values())}


def stop(which: Filter, console: Console, cluster: Cluster | None = None) -> Exit:
    """Have the agents leave that fit: they take nothing more, and go when what they run has ended.

    Raises:
        CliError: wrong usage, the cluster can't be asked, or it refuses.
        SpecError: the specification was refused.
    """
    there = There.of(which.namespace, cluster)
    meant = _meant(which, there, console)
    told = _tell(there, meant, lambda _: {"drain": True}, then=_by_hand(meant))
    if told:
        say(console, f"Told {_count(told)} to leave: they take nothing more, and go when what they run has ended.")
        say(console, "Studies wait for other agents. To have only one study start nothing more: merlin suspend STUDY")
    return Exit.OK


def queues(how: How, names: Sequence[str], which: Filter, console: Console, cluster: Cluster | None = None) -> Exit:
    """Change the queues of the agents that fit.

    Raises:
        CliError: as `stop`, or an agent would serve no queue, or serves all where some are to be removed.
        SpecError: as `stop`.
    """
    there = There.of(which.namespace, cluster)
    told = _tell(there, _meant(which, there, console), lambda agent: _served(agent, how, names))
    if told:
        say(console, f"Told {_count(told)}; `merlin query-workers` shows what they serve. What runs goes on.")
    return Exit.OK


def _served(agent: Agent, how: How, names: Sequence[str]) -> dict[str, Any]:
    """The queues that an agent shall serve; nothing where it does."""
    before = agent.queues
    after = tuple(dict.fromkeys(names))
    if how == "add":
        after = tuple(dict.fromkeys((*before, *names))) if before else ()
    elif how == "remove":
        after = tuple(queue for queue in before if queue not in names)
        if not before:
            raise CliError(
                Exit.REFUSED, f"agent {agent.name} serves all queues; name those that it shall serve: merlin queues set"
            )
        if not after:
            raise CliError(
                Exit.REFUSED, f"agent {agent.name} would serve no queue; have it leave instead: merlin stop-workers"
            )
    if len(after) > MOST_QUEUES or len(before) >= MOST_QUEUES:
        raise CliError(Exit.REFUSED, f"agent {agent.name}: expected at most {MOST_QUEUES} queues by name")
    return {} if set(after) == set(before) else {"queues": list(after)}


def _meant(which: Filter, there: There, console: Console) -> list[Group]:
    """The agents that a filter names and that have not left yet, by allocation; it is said where there are none."""
    found = []
    for each in there.cluster.allocations(there.namespace):
        agents = list(agents_of([each]))
        picked = chosen(which, agents)
        if picked:
            rest = tuple(agent for agent in agents if agent not in picked)
            untold = max(0, int((each.get("status") or {}).get("agentCount", 0)) - len(agents))
            found.append(Group(each["metadata"]["name"], tuple(picked), rest, untold))
    if not found:
        say(console, f"No agent that fits is known in namespace {there.namespace}.")
    return found


def _tell(there: There, groups: Sequence[Group], wish: Wish, *, then: str = "") -> int:
    """Write what is wished; return of how many agents. ``then`` ends the sentence that says that we may not."""
    told = 0
    for group in groups:
        if not any(wish(agent) for agent in group.agents):
            continue

        def changes(before: Mapping[str, Any], group: Group = group) -> dict[str, Any]:
            return group.spec(before, wish)

        there.cluster.direct(there.namespace, group.name, changes, instead=then)
        told += len(group.agents) + (group.untold if not group.others else 0)
    return told


def _by_hand(groups: Sequence[Group]) -> str:
    """How agents are stopped by who started them."""
    lines: dict[str, None] = {}
    for agent in _all(groups):
        how = STOPS.get(agent.scheduler, f"ssh {agent.host} kill $(pgrep merlin-agent)").format(agent.job)
        lines[f"  {how}  # site {agent.site}"] = None
    return "or end their batch jobs where they run:\n" + "\n".join(sorted(lines)) if lines else ""


def _all(groups: Sequence[Group]) -> Iterator[Agent]:
    for group in groups:
        yield from group.agents


def _count(agents: int) -> str:
    return "1 agent" if agents == 1 else f"{agents} agents"
