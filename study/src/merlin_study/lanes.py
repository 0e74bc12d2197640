"""Where the tasks of one lane of a step lie, as arithmetic on ranges of bits.

Combinations of a step may ask for different queues, sizes or retries (``task_queue: $(QUEUE)``, ``nodes: $(N)``). Those that ask
for the same share a lane (`merlin_study.plan.Lane`), and a chunk holds tasks of one lane only, because its route and its
budget are the chunk's. The tasks of one combination are neighbours, so a lane is a list of ranges.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence


class Runs:
    """The ranges of one lane's tasks, in order and apart."""

    def __init__(self, lane_of: Sequence[int], lane: int, width: int) -> None:
        """Collect them.

        Args:
            lane_of: The lane of each combination.
            lane: The one that is meant.
            width: The tasks of each combination.
        """
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for combination, number in enumerate(lane_of):
            if number == lane:
                if self._ends and self._ends[-1] == combination * width:
                    self._ends[-1] += width
                else:
                    self._firsts.append(combination * width)
                    self._ends.append((combination + 1) * width)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield first task and width of each range."""
        for first, end in zip(self._firsts, self._ends, strict=True):
            yield first, end - first

    def mask(self, first: int, width: int) -> int:
        """Return a bit for each task from ``first`` on that is in the lane."""
        bits, end = 0, first + width
        at = bisect_right(self._ends, first)
        while at < len(self._firsts) and self._firsts[at] < end:
            low, high = max(self._firsts[at], first), min(self._ends[at], end)
            bits |= ((1 << (high - low)) - 1) << (low - first)
            at += 1
        return bits

    def reach(self, first: int) -> int | None:
        """Return the lane's lowest task that is not below ``first``; None where there is none."""
        at = bisect_right(self._ends, first)
        return max(first, self._firsts[at]) if at < len(self._firsts) else None
