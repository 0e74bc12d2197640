"""What agents tell in their heartbeats, added up for metrics: counters that never fall, whoever comes and goes.

An agent tells totals since its start. Here the growth between two of its heartbeats is added to its site and queue, so
an agent that leaves takes nothing with it, and one that starts anew (under a new name, from zero) adds to what stands.
What an agent told first is where its growth begins: after a restart of the operator nothing is counted twice. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from merlin_study import wire
from merlin_study.outcome import Outcome

MAX_PAIRS: Final = 100
"""Pairs of a site and a queue that are told apart; further ones count as `OTHER`."""
MAX_SITES: Final = 100
"""Sites that are told apart."""
MAX_REMEMBERED: Final = 20_000
"""Agents whose last totals are kept; the one that was silent for longest goes first."""
OTHER: Final = "other"
ROUND_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Upper bounds, in seconds, for rounds of the engine."""


class Spread:
    """A histogram: how many fell into each bucket, and above the last, and their sum."""

    def __init__(self, bounds: Sequence[float] = wire.BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def grow(self, new: wire.Spread, old: wire.Spread) -> None:
        """Add what came between two tellings."""
        for at, (after, before) in enumerate(zip(new.counts, old.counts, strict=True)):
            self.counts[at] += after - before
        self.seconds += new.seconds - old.seconds


@dataclass(slots=True)
class Figures:
    """What became of the executions of a site and queue."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    ran: Spread = field(default_factory=Spread)
    waited: Spread = field(default_factory=Spread)

    def grow(self, new: wire.QueueFigures, old: wire.QueueFigures) -> None:
        """Add what came between two tellings of one agent; where a total fell, it began again at zero."""
        if not _follows(new, old):
            old = wire.QueueFigures(queue=new.queue)
        for outcome, count in new.outcomes.items():
            self.outcomes[outcome] += count - old.outcomes.get(outcome, 0)
        self.ran.grow(new.ran, old.ran)
        self.waited.grow(new.waited, old.waited)


class Tally:
    """The sums over all agents that were ever heard."""

    def __init__(self) -> None:
        self.figures: dict[tuple[str, str], Figures] = {}
        self.refused = 0
        self.lost: Counter[str] = Counter()
        """Chunks called lost with their agent, by site."""
        self._told: OrderedDict[str, wire.Heartbeat] = OrderedDict()

    def hear(self, beat: wire.Heartbeat) -> None:
        """Add what an agent did since it was last heard."""
        before = self._told.get(beat.agent)
        self._lose(beat.site, 0)
        for each in beat.figures:
            figures = self._of(beat.site, each.queue)
            if before is None:
                continue
            old = next((known for known in before.figures if known.queue == each.queue), None)
            figures.grow(each, old or wire.QueueFigures(queue=each.queue))
        if before is not None:
            self.refused += beat.refused - before.refused if beat.refused >= before.refused else beat.refused
        self._told[beat.agent] = beat
        self._told.move_to_end(beat.agent)
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)

    def lose(self, site: str) -> None:
        """Count a chunk that was lost with its agent."""
        self._lose(site, 1)

    def _lose(self, site: str, chunks: int) -> None:
        self.lost[site if site in self.lost or len(self.lost) < MAX_SITES else OTHER] += chunks

    def _of(self, site: str, queue: str) -> Figures:
        pair = (site, queue)
        if pair not in self.figures and len(self.figures) >= MAX_PAIRS:
            pair = (OTHER, OTHER)
        return self.figures.setdefault(pair, Figures())


def _follows(new: wire.QueueFigures, old: wire.QueueFigures) -> bool:
    """Whether no total of an agent fell."""
    pairs = [(new.outcomes.get(outcome, 0), count) for outcome, count in old.outcomes.items()]
    pairs += [
        *zip(new.ran.counts, old.ran.counts, strict=True),
        *zip(new.waited.counts, old.waited.counts, strict=True),
    ]
    sums = new.ran.seconds >= old.ran.seconds and new.waited.seconds >= old.waited.seconds
    return sums and all(after >= before for after, before in pairs)
