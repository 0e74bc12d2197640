"""What to take, decided from numbers: which consumers fit, when to claim, how much to fetch ahead.

A message that was fetched but not claimed is harmless: it comes back, and whoever wins ``start(fence)`` runs it. A claimed chunk
is ours until it is done. So chunks are claimed when slots are free, or so little before that the claim's round trip does not leave them
idle: measured run times tell. Long tasks are therefore never claimed ahead, short ones by a quarter of a second. Of those that take longer
than that, and are short all the same, one is ready for each slot as long as more chunks wait than we take, and one in all where not: an
agent that has nothing to do has taken what waited.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from merlin_study import shape
from merlin_study.wire import Consumer

CLAIM_AHEAD: Final = 0.25
"""Seconds of work to have ready in claimed chunks."""
SHORT: Final = 2.0
"""Seconds of a task for which others are ready in any case: a slot that waits for a claim loses some percent of it. For so long others are
kept from a task on the average."""
FETCH_AHEAD: Final = 2.0
"""One chunk is fetched ahead when the slots will need it within so many seconds."""
MOST_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Load:
    """How the slots stand. ``ready``: tasks in claimed chunks that wait for a slot; ``mean``: a task's seconds, None if unknown.

    It is that of the steps whose chunks are claimed: what comes next is most likely of the same. ``plenty``: more chunks wait than we take.
    """

    slots: int
    busy: int
    ready: int
    mean: float | None
    plenty: bool = False


def room(load: Load) -> int:
    """Return for how many more tasks chunks should be claimed now: for free slots, and ahead of need."""
    ahead = 0
    if load.mean is not None:
        ahead = _tasks_within(load, CLAIM_AHEAD)
        if load.mean <= SHORT:
            ahead = max(ahead, load.slots if load.plenty else 1)
    return max(0, load.slots - load.busy + ahead - load.ready)


def to_fetch(load: Load, *, held: int, width: float) -> int:
    """Return how many chunks to ask for, where ``held`` are here unclaimed and a chunk has some ``width`` tasks."""
    needed = math.ceil(room(load) / max(1.0, width))
    if needed == 0 and load.mean is not None and load.ready < _tasks_within(load, FETCH_AHEAD):
        needed = 1
    return max(0, min(MOST_AT_ONCE, needed - held))


def may_hold(load: Load, *, width: float) -> int:
    """Return how many unclaimed chunks may lie here; what comes beyond goes back at once, for others."""
    return 1 + math.ceil(room(load) / max(1.0, width))


def _tasks_within(load: Load, seconds: float) -> int:
    """Return how many tasks the slots run in so much time; none where they take longer than that."""
    assert load.mean is not None, "asked for a rate that is not known; this is a bug"
    return min(1 << 20, int(seconds * load.slots / max(load.mean, 1e-6)))


@dataclass(frozen=True, slots=True)
class Host:
    """What there is to give: cores, how many GPUs, how many such hosts, and the MiB of each (0: not counted)."""

    cores: int
    gpus: int = 0
    nodes: int = 1
    memory: int = 0

    def room_of(self, token: str) -> shape.Shape:
        """Return what a task of a shape takes here.

        Raises:
            ValueError: it is no shape.
        """
        return shape.parse(token).on(cores=self.cores, memory=self.memory)


def serves(consumer: Consumer, *, host: Host, queues: Iterable[str], seconds_left: float) -> bool:
    """Whether tasks of a consumer fit this host, our queues, and may fit the time that the allocation has left.

    A class of declared walltimes is wide: of its tasks the shortest may fit and the longest not. Each chunk's own walltime is looked at
    when it is here.
    """
    wanted = tuple(queues)
    if wanted and consumer.queue not in wanted:
        return False
    try:
        needs = host.room_of(consumer.shape)
    except ValueError:  # made by a newer operator
        return False
    return needs.fits(nodes=host.nodes, cores=host.cores, gpus=host.gpus) and needs.more_than < seconds_left


def is_wide(consumer: Consumer) -> bool:
    """Whether tasks of a consumer that `serves` run over several hosts."""
    return shape.parse(consumer.shape).nodes > 1


def in_order(consumers: Iterable[Consumer], turn: int) -> list[Consumer]:
    """Return urgent consumers before bulk ones; within a band each comes first in its turn."""
    by_band: dict[str, list[Consumer]] = {"urgent": [], "bulk": []}
    for consumer in consumers:
        by_band[consumer.band].append(consumer)
    ordered = []
    for band in by_band.values():
        at = turn % len(band) if band else 0
        ordered += band[at:] + band[:at]
    return ordered


class Backoff:
    """Growing waits for one thing that fails."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._wait = first
        self.until = 0.0

    def fail(self, now: float) -> None:
        """Wait from ``now`` on, longer than the last time."""
        self.until = now + self._wait
        self._wait = min(self._longest, self._wait * 2)

    def succeed(self) -> None:
        """Forget the failures."""
        self.until, self._wait = 0.0, self._first


class Mean:
    """The recent mean of tasks' run times: each batch counts by how many tasks it had, old ones fade."""

    _MEMORY: Final = 200

    def __init__(self) -> None:
        self.value: float | None = None
        self._weight = 0

    def add(self, seconds: float, count: int) -> None:
        """Note ``count`` tasks that took ``seconds`` together."""
        if count <= 0:
            return
        if self.value is None:
            self.value, self._weight = seconds / count, count
        else:
            self.value = (self.value * self._weight + seconds) / (self._weight + count)
            self._weight = min(self._MEMORY, self._weight + count)


class Means:
    """The recent means of steps, each for itself: a step that made the samples in no time says nothing of those that use them."""

    _MOST: Final = 1000

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, int], Mean] = OrderedDict()

    def add(self, step: tuple[str, int], seconds: float, count: int) -> None:
        """Note ``count`` tasks of a step (study and number) that took ``seconds`` together."""
        self._of.setdefault(step, Mean()).add(seconds, count)
        self._of.move_to_end(step)
        if len(self._of) > self._MOST:
            self._of.popitem(last=False)

    def longest(self, steps: Iterable[tuple[str, int]]) -> float | None:
        """Return the longest mean of these steps; None where one of them is not known, and where there is none."""
        found = [self._of[step].value if step in self._of else None for step in steps]
        known = [value for value in found if value is not None]
        return max(known) if known and len(known) == len(found) else None
