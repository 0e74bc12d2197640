"""What agents are told to do: to leave, or to serve other queues. From the ``spec`` of an Allocation to a word for each agent.

    Allocation.spec (who may write there, may tell agents) ─► Wishes ─► Assignment, until the agent's heartbeat shows it

Level-triggered: an agent is told as long as its heartbeat does not show what is wished, whoever told it before and
whichever operator did. The word is the operator's, sealed for this agent's own subject, and numbered after the last one that the
agent says it obeyed; what a broker or another agent could repeat of it is not obeyed again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from merlin_operator import allocations
from merlin_operator.core import AGENTS_SCOPE, Core
from merlin_study import wire

log = logging.getLogger(__name__)

KEPT: Final = 3600.0
"""Seconds for which the broker keeps a word: longer than an agent that lives is away, and then it goes by itself."""


WISHES: Final = frozenset({"drain", "queues", "agents"})
"""The keys of an Allocation's ``spec`` that may change."""
MOST_NAMED: Final = 1000
"""Agents of one allocation that are told by their names at once; more are told as the whole allocation."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wished of an agent. ``queues``: what it shall serve (empty: all); None: as it does."""

    drain: bool = False
    queues: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wished of an allocation's agents: of all of them, and of some by their names."""

    every: Wish = Wish()
    agents: Mapping[str, Wish] = field(default_factory=dict)

    def of(self, agent: str) -> Wish:
        """Return what is wished of one agent; what is said of it alone counts first."""
        own = self.agents.get(agent, Wish())
        queues = self.every.queues if own.queues is None else own.queues
        return Wish(self.every.drain or own.drain, queues)


def wishes_of(spec: Mapping[str, Any]) -> Wishes:
    """Read the ``spec`` of an Allocation as the API server has checked it; what is of a wrong type is left out."""
    return Wishes(_wish(spec), {name: _wish(each) for name, each in _entries(spec).items()})


def _entries(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a ``spec`` says of single agents, by their names."""
    listed = spec.get("agents")
    entries = listed if isinstance(listed, list) else ()
    return {str(each["name"]): dict(each) for each in entries if isinstance(each, Mapping) and each.get("name")}


def _wish(raw: Mapping[str, Any]) -> Wish:
    queues = raw.get("queues")
    listed = isinstance(queues, list) and all(isinstance(queue, str) for queue in queues)
    return Wish(raw.get("drain") is True, tuple(queues) if listed and queues is not None else None)


def due(beat: wire.Heartbeat, wish: Wish) -> wire.Assignment | None:
    """Return what an agent has to be told, None where it is as it shall be."""
    told = wire.Assignment(agent=beat.agent, number=beat.assigned + 1, leave=wish.drain, queues=wish.queues)
    if beat.leaving or beat.left:
        return None
    return told if wish.drain or (wish.queues is not None and set(wish.queues) != set(beat.queues)) else None


def drained(spec: Mapping[str, Any], names: Collection[str]) -> list[dict[str, Any]]:
    """Return the ``agents`` of an Allocation's ``spec`` with some more that shall leave."""
    entries = _entries(spec)
    for name in names:
        entries[name] = {**entries.get(name, {"name": name}), "drain": True}
    return list(entries.values())


class Foreman:
    """Tells agents what is wished of them."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._wishes: dict[str, Wishes] = {}
        self._told: dict[str, tuple[wire.Assignment, float]] = {}

    def wish(self, allocation: str, wishes: Wishes) -> None:
        """Take note of what is wished of an allocation's agents."""
        if wishes == Wishes():
            self._wishes.pop(allocation, None)
        else:
            self._wishes[allocation] = wishes

    async def tell(self, now: float) -> None:
        """Tell every agent what it was not told yet, and again what its heartbeats do not show in time.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer; call it again.
        """
        core, again = self.core, 3 * self.core.config.timing.heartbeat
        self._told = {name: told for name, told in self._told.items() if name in core.fleet.members}
        if not self._wishes:
            return
        for beat in list(core.fleet.live(now)):
            wishes = self._wishes.get(allocations.name_of(beat))
            word = due(beat, wishes.of(beat.agent)) if wishes is not None else None
            before, at = self._told.get(beat.agent, (None, now))
            if word is None or (word == before and now - at < again):
                continue
            subject = core.space.assignment(beat.site, beat.agent)
            await core.broker.put(subject, core.seal(AGENTS_SCOPE, subject, word.encode()), keep=KEPT)
            self._told[beat.agent] = word, now
            log.info("agent told agent=%s leave=%s queues=%s", beat.agent, word.leave, word.queues)
