"""One step's tasks in the ledger: which may run, which were issued, which are over.

A few bits a task and nothing else: *ready* (all it waits for is over), *issued* (in a chunk that somebody started, now or
before), *final* (has an outcome) and *blocked* (failed, or cancelled because of a failure: what depends on it never runs).
These are functions of the log. *Out* is not: in a chunk that was published for the first time and that nobody has started yet, of
which the log knows nothing. What did not succeed is also kept as a mask per outcome and exit code, so that a restart can name
it. The next tasks to issue are those ready, not issued and not out; a hint remembers below which index there are none.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from merlin_study.bitmap import Bitmap
from merlin_study.lanes import Runs
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

WINDOW: Final = 4096
"""How many tasks are looked at at once in the search for the next chunk, so the widest chunk with gaps."""


class StepTasks:
    """The state of one step; ``total`` is None until the number of samples is known."""

    __slots__ = (
        *(
            "hint",
            "hints",
            "blocked",
            "combination_done",
            "ended",
            "final",
            "fresh",
            "issued",
            "out",
            "outcomes",
            "ready",
        ),
        *("succeeded", "total"),
    )

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.ready = Bitmap()
        self.issued = Bitmap()
        self.out = Bitmap()
        self.final = Bitmap()
        self.succeeded = Bitmap()
        self.blocked = Bitmap()
        self.fresh = Bitmap()
        """Tasks that had succeeded and run again: their marks in the workspace say nothing any more."""
        self.ended: dict[tuple[Outcome, int | None], Bitmap] = {}
        """By outcome and exit code (None: never ran), the tasks that ended otherwise than by success."""
        self.outcomes: Counter[Outcome] = Counter()
        self.combination_done: Counter[int] = Counter()
        self.hint = 0
        self.hints: dict[int, int] = {}
        """Hints of the step's lanes, where it has several; none is below `hint`."""

    @property
    def complete(self) -> bool:
        """Whether every task has a final outcome."""
        return self.total is not None and len(self.final) >= self.total

    @property
    def available(self) -> int:
        """How many tasks are ready and in no chunk."""
        return len(self.ready) - self.handed_out

    @property
    def handed_out(self) -> int:
        """How many tasks are in a chunk, now or before."""
        return len(self.issued) + len(self.out)

    def make_ready(self, tasks: TaskSet) -> None:
        """Allow tasks to be issued."""
        self.ready.add(tasks)
        self._lower(tasks.first)

    def make_all_ready(self) -> None:
        """Allow every task to be issued, at a cost that does not depend on their number."""
        if self.total:
            self.ready.add_range(0, self.total)
            self._lower(0)

    def hand_out(self, tasks: TaskSet) -> None:
        """Note that tasks are in a chunk that nobody has started. What is handed out was ready, also where that is not known."""
        self.ready.add(tasks)
        if (
            fresh := TaskSet.from_bits(tasks.first, tasks.bits & ~self.issued.read(tasks.first, tasks.width))
        ) is not None:
            self.out.add(fresh)
        if tasks.mask is None and tasks.first <= self.hint < tasks.end:
            self.hint = tasks.end

    def take_back(self, tasks: TaskSet) -> TaskSet | None:
        """Undo `hand_out`; return the tasks that were issued before, of which something else has to be remembered."""
        out = self.out.read(tasks.first, tasks.width)
        self.out.remove(tasks)
        self._lower(tasks.first)
        return TaskSet.from_bits(tasks.first, tasks.bits & ~out)

    def issue(self, tasks: TaskSet) -> None:
        """Note that tasks are in a chunk that somebody has started."""
        self.ready.add(tasks)
        self.issued.add(tasks)
        self.out.remove(tasks)

    def next_tasks(self, most: int, lane: int = 0, runs: Runs | None = None) -> TaskSet | None:
        """Return up to ``most`` tasks that are ready and in no chunk, the lowest first; None where there are none.

        Args:
            most: How many.
            lane: Of which of the step's lanes.
            runs: Where that lane's tasks lie; None for a step that has only one.
        """
        if not self.available or self.total is None:
            return None
        at: int | None = self.hint if runs is None else max(self.hint, self.hints.get(lane, 0))
        found = None
        while found is None and at is not None and at < self.total:
            first, width = at, min(max(WINDOW, most), self.total - at)
            free = self.ready.read(first, width) & ~self.issued.read(first, width) & ~self.out.read(first, width)
            if runs is not None:
                free &= runs.mask(first, width)
            found = TaskSet.from_bits(first, lowest(free, most))
            after = first + width if found is None else found.first
            at = after if runs is None else runs.reach(after)
        if runs is None:
            self.hint = self.total if at is None else at
        else:
            self.hints[lane] = self.total if at is None else at
        return found

    def finish(self, tasks: TaskSet, outcome: Outcome, *, blocks: bool, code: int | None = None) -> TaskSet | None:
        """Record a final outcome for those of ``tasks`` that have none yet; return them, or None."""
        fresh = TaskSet.from_bits(tasks.first, tasks.bits & ~self.final.read(tasks.first, tasks.width))
        if fresh is None:
            return None
        self.final.add(fresh)
        self.issue(fresh)
        self.outcomes[outcome] += len(fresh)
        if outcome is Outcome.SUCCEEDED:
            self.succeeded.add(fresh)
        else:
            self.ended.setdefault((outcome, code), Bitmap()).add(fresh)
        if blocks:
            self.blocked.add(fresh)
        self.fresh.remove(fresh)
        return fresh

    def reset(self, tasks: TaskSet) -> None:
        """Forget what became of tasks that have an outcome: they are neither ready nor issued nor over."""
        had = TaskSet.from_bits(tasks.first, tasks.bits & self.succeeded.read(tasks.first, tasks.width))
        if had is not None:
            self.outcomes[Outcome.SUCCEEDED] -= self.succeeded.remove(had)
            self.fresh.add(had)
        for (outcome, _), members in self.ended.items():
            self.outcomes[outcome] -= members.remove(tasks)
        for bits in (self.final, self.issued, self.ready, self.blocked):
            bits.remove(tasks)
        self._lower(tasks.first)

    def _lower(self, first: int) -> None:
        """Note that a task may be free again."""
        self.hint = min(self.hint, first)
        self.hints = {lane: min(hint, first) for lane, hint in self.hints.items()}


def lowest(bits: int, most: int) -> int:
    """Return the ``most`` lowest set bits of ``bits``."""
    if bits.bit_count() <= most:
        return bits
    low, high = 0, bits.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (bits & ((1 << middle) - 1)).bit_count() < most:
            low = middle + 1
        else:
            high = middle
    return bits & ((1 << low) - 1)
