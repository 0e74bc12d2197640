"""A look at the marks in the workspace: which tasks are to be looked at, and which of them have no mark any more.

Agents look, chunk by chunk, and report: a task whose mark stands succeeded, one without a mark is lost. Nothing of the steps'
tasks changes by that. When all is looked at, the operator's verdict restarts what has no mark, as a user's restart would; so a
look can be interrupted at any point, and what follows from it is in the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.outcome import Outcome
from merlin_study.plan import IMPLICIT, Plan
from merlin_study.reopen import named, windows
from merlin_study.steptasks import StepTasks, lowest
from merlin_study.taskset import TaskSet

_WINDOW: Final = 1 << 16
_AT_ONCE: Final = 24
"""Sets of tasks in one verdict: with masks of 8 KiB each a quarter of what a message may have."""


class Scan:
    """What is left to look at of each step, and what has no mark. ``dependants``: what depends on such a task runs again, too."""

    def __init__(self, steps: int) -> None:
        self.left = [Bitmap() for _ in range(steps)]
        self.missing = [Bitmap() for _ in range(steps)]
        self.dependants = False

    def begin(self, entry: wire.Restarted, plan: Plan, steps: Sequence[StepTasks]) -> None:
        """Have all successes looked at that a restart names by step and task."""
        succeeded = entry.model_copy(update={"codes": (0,)})
        self.dependants = self.dependants or entry.dependants
        for step in entry.steps:
            for first, width in windows(steps[step].total) if plan.steps[step].name not in IMPLICIT else ():
                self.give_back(step, TaskSet.from_bits(first, named(succeeded, steps[step], first, width)))

    @property
    def waits(self) -> bool:
        """Whether something is left to look at."""
        return any(map(len, self.left))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at and nothing to restart."""
        return not self.waits and not any(map(len, self.missing))

    def ahead(self, most: int) -> Iterator[tuple[int, TaskSet]]:
        """Yield of each step the next tasks to look at."""
        for step, left in enumerate(self.left):
            found = next(left.sets(_WINDOW), None)
            if found is not None:
                tasks = TaskSet.from_bits(found.first, lowest(found.bits, most))
                assert tasks is not None
                yield step, tasks

    def hand_out(self, step: int, tasks: TaskSet) -> None:
        """Note that a chunk has these tasks."""
        self.left[step].remove(tasks)

    def give_back(self, step: int, tasks: TaskSet | None) -> None:
        """Have these looked at by another chunk."""
        if tasks is not None:
            self.left[step].add(tasks)

    def tell(self, step: int, tasks: TaskSet, outcome: Outcome) -> None:
        """Note what a look came to."""
        if outcome is not Outcome.SUCCEEDED:
            self.missing[step].add(tasks)

    def found(self) -> tuple[int, tuple[TaskSet, ...]] | None:
        """Return a step and tasks of it without a mark, as many as a verdict may name; None where there are none."""
        for step, missing in enumerate(self.missing):
            if len(missing):
                sets = missing.sets(_WINDOW)
                return step, tuple(tasks for _, tasks in zip(range(_AT_ONCE), sets, strict=False))
        return None

    def settle(self, entry: wire.Restarted) -> None:
        """Note that a verdict restarts what it names."""
        for step in entry.steps:
            for tasks in entry.tasks:
                self.missing[step].remove(tasks)
        if self.idle:
            self.dependants = False

    def clear(self) -> None:
        """Look at nothing more."""
        self.__init__(len(self.left))  # type: ignore[misc]
