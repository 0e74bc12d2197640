"""The tasks of all steps and what follows when some are over: dependants become ready, or are cancelled with them.

Beneath the ledger, which says what is over; here only the edges of the plan decide. Every range is bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from merlin_study import reopen, wire
from merlin_study.bitmap import Bitmap
from merlin_study.geometry import Geometry
from merlin_study.outcome import Outcome, releases_dependants
from merlin_study.plan import IMPLICIT, Plan
from merlin_study.readiness import Readiness, Span
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet


class Dag:
    """The steps of one study; ``geometry`` numbers their tasks, as soon as the samples are measured all of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        counted = plan.samples.count if plan.samples is not None else None
        self.geometry = Geometry(plan, samples=counted or 0)
        self.steps = [
            StepTasks(self.geometry.total(i) if self.geometry.known(i) else None) for i in range(len(plan.steps))
        ]
        self._readiness = Readiness(self.geometry, self.steps)
        self._info = plan.info_step
        self.downstream = frozenset(
            at
            for at, planned in enumerate(plan.steps)
            if any(plan.steps[edge.parent].name not in IMPLICIT for edge in planned.edges)
        )
        """Steps that wait for another one that users know (implicit ones do not count)."""
        self.downstream_first = sorted(range(len(plan.steps)), key=lambda at: at not in self.downstream)
        for index, planned in enumerate(plan.steps):
            if not planned.edges and self.steps[index].total is not None:
                self.steps[index].make_all_ready()

    def fits(self, step: int, tasks: TaskSet) -> bool:
        """Whether a step has these tasks."""
        total = self.steps[step].total if step < len(self.steps) else None
        return total is not None and tasks.end <= total

    def measures(self, step: int) -> bool:
        """Whether a step is the one that makes and measures the samples."""
        return step == self._info

    def unmeasured(self, step: int) -> bool:
        """Whether a step is the one that measures the samples, and nobody has told yet how many there are."""
        return self.measures(step) and not self.geometry.samples

    def finish(self, step: int, tasks: TaskSet, outcome: Outcome, *, code: int | None = None) -> TaskSet | None:
        """Record a final outcome, and what follows from it; return those of ``tasks`` that had none yet.

        ``code`` None: the tasks never ran, so what depends on them will not either.
        """
        blocks = code is None or not releases_dependants(outcome, fail_fast=self.plan.fail_fast)
        fresh = self.steps[step].finish(tasks, outcome, blocks=blocks, code=code)
        if fresh is not None:
            self._release(step, fresh)
        return fresh

    def cancel_waiting(self, step: int, lane: int, running: Bitmap) -> None:
        """Cancel the tasks of one of a step's lanes that are neither over nor ``running``."""
        runs = self.geometry.runs(step, lane)
        for first, width in reopen.windows(self.steps[step].total):
            lies = (1 << width) - 1 if runs is None else runs.mask(first, width)
            waits = lies & ~running.read(first, width) & ~self.steps[step].final.read(first, width)
            if (tasks := TaskSet.from_bits(first, waits)) is not None:
                self.finish(step, tasks, Outcome.CANCELLED)

    def measure(self, samples: int) -> None:
        """Learn the number of samples, once: from here on the sampled steps have tasks.

        One that can't be changes nothing, nor does one that comes after their step was given up: a restart counts them again.
        """
        given_up = self._info >= 0 and self.steps[self._info].complete
        if self.geometry.samples or given_up or (measured := Geometry(self.plan, samples=samples)).refusal():
            return
        self.geometry = measured
        for index, step in enumerate(self.steps):
            if step.total is None:
                step.total = self.geometry.total(index)
        self._readiness = Readiness(self.geometry, self.steps)

    def reopen(self, entry: wire.Restarted) -> list[Bitmap]:
        """Open the tasks that a restart names once more; return them, per step."""
        again = reopen.reopened(entry, self.plan, self.steps, self._readiness)
        self._revive_samples(again)
        for step, members in enumerate(again):
            for tasks in members.sets(reopen.WINDOW):
                self._count_combinations(step, tasks, by=-1)
                self.steps[step].reset(tasks)
        for step, members in enumerate(again):
            for tasks in members.sets(reopen.WINDOW):
                self._hold_back(step, tasks)
        todo = deque[tuple[int, TaskSet]]()
        for step, members in enumerate(again):
            for tasks in members.sets(reopen.WINDOW):
                todo.extend(self._settle(Span(step, tasks.first, tasks.width)))
        while todo:
            self._release(*todo.popleft())
        return again

    def _revive_samples(self, again: list[Bitmap]) -> None:
        """Where the samples could not be made, a restart tries that again, and everything that died with it."""
        if self._info < 0 or self.geometry.samples or not self.steps[self._info].complete:
            return
        again[self._info].add_range(0, 1)
        for index in self._fed_by_samples():
            step = self.steps[index]
            if self.plan.steps[index].sampled:
                step.total = None
            elif step.total:
                again[index].add(TaskSet(first=0, width=step.total))

    def _hold_back(self, step: int, tasks: TaskSet) -> None:
        """Have those wait again that were ready because of ``tasks``, and are not handed out."""
        for at, waits in self._readiness.dependants(step, tasks, barriers=True):
            child = self.steps[at]
            taken = child.issued.read(waits.first, waits.width) | child.out.read(waits.first, waits.width)
            idle = child.ready.read(waits.first, waits.width) & ~taken
            if (held := TaskSet.from_bits(waits.first, idle & waits.bits)) is not None:
                child.ready.remove(held)

    def _release(self, step: int, tasks: TaskSet) -> None:
        """Make ready, or cancel, what waited for ``tasks``; a loop, not recursion, because chains may be long."""
        todo = deque([(step, tasks)])
        while todo:
            over_step, over = todo.popleft()
            self._count_combinations(over_step, over)
            if self.unmeasured(over_step):
                self._no_samples()
            for span in self._readiness.affected(over_step, over):
                todo.extend(self._settle(span))

    def _settle(self, span: Span) -> Iterator[tuple[int, TaskSet]]:
        """Make ready the tasks of a span that may run; yield those that never will, cancelled."""
        tasks = self.steps[span.step]
        over, blocked = self._readiness.read(span)
        over &= ~tasks.ready.read(span.first, span.width)
        if (runnable := TaskSet.from_bits(span.first, over & ~blocked)) is not None:
            tasks.make_ready(runnable)
        if (never := TaskSet.from_bits(span.first, over & blocked)) is not None:
            fresh = tasks.finish(never, Outcome.CANCELLED, blocks=True)
            if fresh is not None:
                yield span.step, fresh

    def _count_combinations(self, step: int, tasks: TaskSet, *, by: int = 1) -> None:
        samples = self.geometry.samples_of(step)
        if not self.plan.steps[step].sampled or samples < 1:
            return
        done = self.steps[step].combination_done
        for combination in range(tasks.first // samples, (tasks.end - 1) // samples + 1):
            low = max(combination * samples - tasks.first, 0)
            high = min((combination + 1) * samples - tasks.first, tasks.width)
            done[combination] += by * (tasks.bits >> low & ((1 << (high - low)) - 1)).bit_count()

    def _no_samples(self) -> None:
        """The samples could not be made: sampled steps have no tasks, what depends on them is cancelled, and all can end."""
        for index in self._fed_by_samples():
            step = self.steps[index]
            if step.total is None:
                step.total = 0
            if step.total:
                step.finish(TaskSet(first=0, width=step.total), Outcome.CANCELLED, blocks=True)

    def _fed_by_samples(self) -> list[int]:
        """Return the steps that wait for the samples, directly or through others."""
        fed = {self._info}
        for index, planned in enumerate(self.plan.steps):
            if any(edge.parent in fed for edge in planned.edges):
                fed.add(index)
        return sorted(fed - {self._info})
