"""What waits to be issued again: retries, the rests of chunks that were lost or handed back, each with its due time.

Masks, never lists of tasks: a failure of 30 % of a chunk is one entry.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.taskset import TaskSet


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """Tasks to issue again: from ``due`` (Unix seconds by the broker's clock) on, as attempt ``attempt``."""

    due: float
    number: int
    step: int = field(compare=False)
    tasks: TaskSet = field(compare=False)
    attempt: int = field(compare=False)
    restart: bool = field(compare=False, default=False)
    lost: tuple[wire.LostHolder, ...] = field(compare=False, default=())

    def of(self, tasks: TaskSet) -> Waiting:
        """Return the same for other tasks."""
        return replace(self, tasks=tasks)


class Backlog:
    """All that waits of a study, the earliest first."""

    def __init__(self) -> None:
        self._heap: list[Waiting] = []
        self._numbers = itertools.count()

    def add(
        self,
        due: float,
        step: int,
        tasks: TaskSet,
        *,
        attempt: int,
        restart: bool = False,
        lost: tuple[wire.LostHolder, ...] = (),
    ) -> None:
        """Have tasks wait until ``due``."""
        heapq.heappush(self._heap, Waiting(due, next(self._numbers), step, tasks, attempt, restart, lost))

    def put_back(self, waiting: Waiting) -> None:
        """Return what `due` gave."""
        heapq.heappush(self._heap, waiting)

    def due(self, now: float, over: Sequence[Bitmap]) -> Waiting | None:
        """Take what is due at ``now``, without the tasks that are over by now; ``over`` has a bitmap per step."""
        while self._heap and self._heap[0].due <= now:
            waiting = heapq.heappop(self._heap)
            if (left := _without(waiting, over[waiting.step])) is not None:
                return left
        return None

    def all(self) -> list[Waiting]:
        """Return everything, in its order."""
        return sorted(self._heap)

    def count_on(self, number: int) -> None:
        """Number what comes from here on."""
        self._numbers = itertools.count(number)

    def next_due(self) -> float | None:
        """Return when the next is due, or None."""
        return self._heap[0].due if self._heap else None

    def tasks(self, step: int) -> int:
        """Return how many tasks of a step wait."""
        return sum(len(waiting.tasks) for waiting in self._heap if waiting.step == step)

    def drop(self, over: Sequence[Bitmap]) -> None:
        """Forget the tasks that are over; ``over`` has a bitmap per step."""
        left = (_without(waiting, over[waiting.step]) for waiting in self._heap)
        self._heap = [waiting for waiting in left if waiting is not None]
        heapq.heapify(self._heap)

    def set_back(self, step: int, tasks: TaskSet, *, attempt: int, due: float) -> int:
        """Have those of ``tasks`` that wait for a later attempt wait for this one, until ``due``; return how many did."""
        waiting, self._heap, count = self._heap, [], 0
        for each in waiting:
            bits = 0
            if each.step == step and each.attempt > attempt:
                bits = each.tasks.bits & tasks.bits_from(each.tasks.first)
            if (rest := TaskSet.from_bits(each.tasks.first, each.tasks.bits & ~bits)) is not None:
                heapq.heappush(self._heap, each.of(rest))
            if (back := TaskSet.from_bits(each.tasks.first, bits)) is not None:
                self.add(due, step, back, attempt=attempt)
                count += len(back)
        return count

    def drop_twice(self) -> None:
        """Keep each task once: for its latest attempt, and of that with the most holders that were lost with it."""
        kept: dict[int, Bitmap] = {}
        waiting, self._heap = sorted(self._heap), []
        for each in sorted(waiting, key=lambda each: (each.attempt, len(each.lost)), reverse=True):
            known = kept.setdefault(each.step, Bitmap())
            if (left := _without(each, known)) is not None:
                heapq.heappush(self._heap, left)
                known.add(left.tasks)

    def drop_out(self, out: Iterable[tuple[int, TaskSet]], *, upto: int | None = None) -> None:
        """Forget the tasks that are out after all: ``out`` gives the step and the tasks of each chunk.

        What waits for a later attempt than ``upto`` stays: that chunk was over before.
        """
        chunks = list(out)
        waiting, self._heap = self._heap, []
        for each in waiting:
            if upto is not None and each.attempt > upto:
                heapq.heappush(self._heap, each)
                continue
            bits = each.tasks.bits
            for step, taken in chunks:
                if step == each.step:
                    bits &= ~taken.bits_from(each.tasks.first)
            if (tasks := TaskSet.from_bits(each.tasks.first, bits)) is not None:
                heapq.heappush(self._heap, each.of(tasks))


def _without(waiting: Waiting, over: Bitmap) -> Waiting | None:
    gone = over.read(waiting.tasks.first, waiting.tasks.width)
    tasks = TaskSet.from_bits(waiting.tasks.first, waiting.tasks.bits & ~gone)
    return None if tasks is None else waiting.of(tasks)
