"""Which tasks may run once others are over: the edges of the plan, as arithmetic on ranges of bits.

Asked for a range of a step's tasks, `Readiness` answers with two integers of that many bits: tasks whose every
dependency is over, and tasks that have a dependency which blocks them. Told that tasks of a step are over, it names the
ranges of other steps worth asking about. No edge lists tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from merlin_study.geometry import Geometry
from merlin_study.plan import Edge, EdgeKind, Plan
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet

_SPAN = 1 << 16
"""Tasks asked about at once where a whole step, or all samples of a combination, became worth asking about."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a step's tasks."""

    step: int
    first: int
    width: int


class Readiness:
    """The edges between the steps of a study whose tasks ``geometry`` numbers."""

    def __init__(self, geometry: Geometry, steps: Sequence[StepTasks]) -> None:
        self._geometry, self._steps = geometry, steps
        self._plan: Plan = geometry.plan
        self._children: list[list[tuple[int, Edge]]] = [[] for _ in steps]
        self._combinations: dict[tuple[int, int], list[list[int]]] = {}
        for child, planned in enumerate(self._plan.steps):
            for edge in planned.edges:
                self._children[edge.parent].append((child, edge))

    def read(self, span: Span) -> tuple[int, int]:
        """Return (over, blocked): per task of the span, whether all it waits for is over, and whether some of it blocks."""
        over, blocked = (1 << span.width) - 1, 0
        for edge in self._plan.steps[span.step].edges:
            edge_over, edge_blocked = self._read_edge(edge, span)
            over &= edge_over
            blocked |= edge_blocked
            if not over:
                return 0, 0
        return over, blocked & over

    def _read_edge(self, edge: Edge, span: Span) -> tuple[int, int]:
        parent = self._steps[edge.parent]
        if parent.total is None:
            return 0, 0
        if edge.kind is EdgeKind.TASK:
            return parent.final.read(span.first, span.width), parent.blocked.read(span.first, span.width)
        if edge.kind is EdgeKind.ALL:
            every = (1 << span.width) - 1 if parent.complete else 0
            return every, every if len(parent.blocked) else 0
        return self._read_projection(edge, span)

    def _read_projection(self, edge: Edge, span: Span) -> tuple[int, int]:
        geometry, parent = self._geometry, self._steps[edge.parent]
        per_child, per_parent = geometry.samples_of(span.step), geometry.samples_of(edge.parent)
        over = blocked = got = 0
        while got < span.width:
            combination, sample = divmod(span.first + got, per_child)
            take = min(span.width - got, per_child - sample)
            above = geometry.parent_combination(span.step, combination, edge.parent)
            every = (1 << take) - 1
            if self._sampled(span.step) and self._sampled(edge.parent):
                part = parent.final.read(above * per_parent + sample, take)
                part_blocked = parent.blocked.read(above * per_parent + sample, take)
            elif self._sampled(edge.parent):
                done = parent.combination_done[above] >= per_parent
                part = every if done else 0
                part_blocked = every if done and self._any_blocked(parent, above * per_parent, per_parent) else 0
            else:
                part = every * parent.final.read(above, 1)
                part_blocked = every * parent.blocked.read(above, 1)
            over |= part << got
            blocked |= part_blocked << got
            got += take
        return over, blocked

    def _sampled(self, step: int) -> bool:
        return self._plan.steps[step].sampled

    @staticmethod
    def _any_blocked(parent: StepTasks, first: int, width: int) -> bool:
        return bool(len(parent.blocked)) and any(
            parent.blocked.read(first + at, min(_SPAN, width - at)) for at in range(0, width, _SPAN)
        )

    def affected(self, step: int, tasks: TaskSet) -> Iterator[Span]:
        """Yield the ranges whose readiness may have changed because ``tasks`` of ``step`` are over."""
        for child, edge in self._children[step]:
            if self._steps[child].total is None:
                continue
            if edge.kind is EdgeKind.TASK:
                yield Span(child, tasks.first, tasks.width)
            elif edge.kind is EdgeKind.ALL:
                if self._steps[step].complete:
                    yield from self.whole(child)
            else:
                yield from self._projected(child, step, tasks)

    def dependants(self, step: int, tasks: TaskSet, *, barriers: bool) -> Iterator[tuple[int, TaskSet]]:
        """Yield (step, tasks) of exactly those that wait for ``tasks`` of ``step``, in sets of bounded width.

        Without ``barriers`` those are left out that wait for the whole step.
        """
        for child, edge in self._children[step]:
            if not self._steps[child].total:
                continue
            if edge.kind is EdgeKind.TASK:
                yield child, tasks
            elif edge.kind is EdgeKind.ALL:
                if barriers:
                    yield from ((child, TaskSet(first=span.first, width=span.width)) for span in self.whole(child))
            else:
                yield from self._projected_from(child, step, tasks)

    def _projected_from(self, child: int, parent: int, tasks: TaskSet) -> Iterator[tuple[int, TaskSet]]:
        per_child, per_parent = self._geometry.samples_of(child), self._geometry.samples_of(parent)
        for above in range(tasks.first // per_parent, (tasks.end - 1) // per_parent + 1):
            low, high = max(tasks.first - above * per_parent, 0), min(tasks.end - above * per_parent, per_parent)
            bits = tasks.bits >> (above * per_parent + low - tasks.first) & ((1 << (high - low)) - 1)
            for combination in self._by_parent(child, parent)[above] if bits else ():
                if self._sampled(child) and self._sampled(parent):
                    if (found := TaskSet.from_bits(combination * per_child + low, bits)) is not None:
                        yield child, found
                else:
                    for piece in self._pieces(child, combination * per_child, per_child):
                        yield child, TaskSet(first=piece.first, width=piece.width)

    def whole(self, step: int) -> Iterator[Span]:
        """Yield all of a step, in ranges of bounded width."""
        return self._pieces(step, 0, self._steps[step].total or 0)

    @staticmethod
    def _pieces(step: int, first: int, width: int) -> Iterator[Span]:
        """Yield a range of a step's tasks in pieces: a set of tasks has a bounded width, and so have the integers here."""
        for at in range(0, width, _SPAN):
            yield Span(step, first + at, min(_SPAN, width - at))

    def _projected(self, child: int, parent: int, tasks: TaskSet) -> Iterator[Span]:
        per_child, per_parent = self._geometry.samples_of(child), self._geometry.samples_of(parent)
        by_parent = self._by_parent(child, parent)
        for above in range(tasks.first // per_parent, (tasks.end - 1) // per_parent + 1):
            low, high = max(tasks.first - above * per_parent, 0), min(tasks.end - above * per_parent, per_parent)
            for combination in by_parent[above]:
                if self._sampled(child) and self._sampled(parent):
                    yield Span(child, combination * per_child + low, high - low)
                else:
                    yield from self._pieces(child, combination * per_child, per_child)

    def _by_parent(self, child: int, parent: int) -> list[list[int]]:
        key = (child, parent)
        if key not in self._combinations:
            table: list[list[int]] = [[] for _ in self._geometry.rows(parent)]
            for combination in range(len(self._geometry.rows(child))):
                table[self._geometry.parent_combination(child, combination, parent)].append(combination)
            self._combinations[key] = table
        return self._combinations[key]
