"""How a step's tasks are numbered: task index = combination × samples + sample.

Nothing lists tasks. A step's combinations are the distinct label tuples of the parameters that it uses, in the order of
the parameter table (equal combinations collapse, as in Maestro); each is represented by the first table row that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from merlin_study.lanes import Runs
from merlin_study.plan import EdgeKind, Lane, Plan, PlannedStep

MAX_TASKS: Final = 1_000_000_000
"""Of a step: a cancellation or a restart looks at all of them at once, for some ten seconds then, and all other studies wait meanwhile."""


@dataclass(frozen=True)
class Geometry:
    """Task counts and coordinates of a plan's steps, once the number of samples is known.

    ``samples`` is the length of the sample table: 0 where the study has none or it is not known yet.
    """

    plan: Plan
    samples: int
    _rows: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    _runs: dict[tuple[int, int], Runs | None] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _columns(self) -> dict[str, tuple[str, ...]]:
        return {parameter.key: parameter.labels for parameter in self.plan.parameters}

    def rows(self, step: int) -> tuple[int, ...]:
        """Return, for each combination of a step, the parameter table's row that represents it."""
        keys = self.plan.steps[step].parameters
        if keys not in self._rows:
            self._rows[keys] = distinct_rows([self._columns[key] for key in keys])
        return self._rows[keys]

    def samples_of(self, step: int) -> int:
        """Return how many samples each combination of a step has: 1 for a step without samples."""
        return self.samples if self.plan.steps[step].sampled else 1

    def known(self, step: int) -> bool:
        """Whether the step's number of tasks is known (a sampled step's is not before its samples are measured)."""
        return not self.plan.steps[step].sampled or self.samples > 0

    def total(self, step: int) -> int:
        """Return the step's number of tasks, 0 while it is not known."""
        return len(self.rows(step)) * self.samples_of(step)

    def split(self, step: int, task: int) -> tuple[int, int]:
        """Return (combination, sample) of a task; the sample is 0 for a step without samples.

        Raises:
            IndexError: the step has no such task.
        """
        if not 0 <= task < self.total(step):
            raise IndexError(f"step {self.plan.steps[step].name} has {self.total(step)} tasks, none is {task}")
        return divmod(task, self.samples_of(step))

    def lane(self, step: int, task: int) -> Lane:
        """Return where a task goes, and how often it is tried; the step's first lane while its tasks are not known."""
        return self.plan.steps[step].lanes[self._lane(step, task)]

    def lane_number(self, step: int, task: int) -> int:
        """Return which of all lanes of the plan a task is in."""
        return self.plan.first_lanes[step] + self._lane(step, task)

    def _lane(self, step: int, task: int) -> int:
        numbers = self.plan.steps[step].lane_of
        return numbers[task // self.samples_of(step)] if numbers and self.known(step) else 0

    def refusal(self) -> str:
        """Say why there can't be so many samples; empty where there can."""
        if self.samples < 1:
            return f"expected at least one sample, found {self.samples}"
        sampled = ((at, step) for at, step in enumerate(self.plan.steps) if step.sampled)
        whys = (excess(step.name, combinations=len(self.rows(at)), samples=self.samples) for at, step in sampled)
        return next(filter(None, whys), "")

    def runs(self, step: int, lane: int) -> Runs | None:
        """Return where the tasks of one of a step's lanes lie; None for all of the step."""
        key = (step, lane)
        if key not in self._runs:
            numbers = self.plan.steps[step].lane_of
            self._runs[key] = Runs(numbers, lane, self.samples_of(step)) if numbers else None
        return self._runs[key]

    def row(self, step: int, combination: int) -> int:
        """Return the parameter table's row of a combination."""
        return self.rows(step)[combination]

    def combination_of_row(self, step: int, row: int) -> int:
        """Return which combination of a step a row of the parameter table belongs to."""
        return self._by_row(step)[row]

    def _by_row(self, step: int) -> tuple[int, ...]:
        keys = self.plan.steps[step].parameters
        memo = ("#by-row", *keys)
        if memo not in self._rows:
            height = len(self.plan.parameters[0].labels) if self.plan.parameters else 1
            index: dict[tuple[str, ...], int] = {}
            result = []
            for row in range(height):
                labels = tuple(self._columns[key][row] for key in keys)
                result.append(index.setdefault(labels, len(index)))
            self._rows[memo] = tuple(result)
        return self._rows[memo]

    def parent_combination(self, step: int, combination: int, parent: int) -> int:
        """Return the parent's combination that a step's combination depends on."""
        return self.combination_of_row(parent, self.row(step, combination))


def excess(step: str, *, combinations: int, samples: int) -> str:
    """Say that a step has more tasks than there may be; empty where it has not."""
    if combinations * samples <= MAX_TASKS:
        return ""
    return (
        f"expected at most {MAX_TASKS} tasks in a step, found {combinations} combinations of step {step!r} with "
        f"{samples} samples each; make several studies"
    )


def distinct_rows(columns: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Return the first row of each combination of ``columns``, which hold labels; one row where there are none."""
    if not columns:
        return (0,)
    seen: dict[tuple[str, ...], int] = {}
    for row, labels in enumerate(zip(*columns, strict=True)):
        seen.setdefault(labels, row)
    return tuple(seen.values())


def edge_kind(child: PlannedStep, parent: PlannedStep, *, funnel: bool) -> EdgeKind:
    """Return how ``child`` waits for ``parent``: by task where both have the same tasks, else by projection."""
    if funnel:
        return EdgeKind.ALL
    same = child.parameters == parent.parameters and child.sampled == parent.sampled
    return EdgeKind.TASK if same else EdgeKind.PROJECT
