"""The ledger: a fold of a study's log, entry by entry in the log's order.

The log is all there is to know: ``Bound`` (which site), ``Start`` (who runs a chunk), ``Report`` (what came of it),
``Lost`` (the operator's verdict that a holder is gone). Folding the same log gives the same ledger, wherever and however
often; an entry that comes twice changes nothing. Time enters only as the broker's timestamp of an entry, so the moment at
which a retry is due is a function of the log as well.

Rules, per task: success absorbs; what comes after a final outcome is counted and not applied; restarts and retries
spend one budget (`merlin_study.outcome.after_budget`); a loss spends none. A task is in at most one *current* fence; a
fence called lost may still bring successes, nothing else of it counts, because the fence that replaced it will tell.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.geometry import Geometry
from merlin_study.outcome import FINAL, Outcome, after_budget, releases_dependants
from merlin_study.plan import INFO_STEP, Plan
from merlin_study.readiness import Readiness, Span
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet

KEPT_FAILURES: Final = 5
"""First and last failures that are kept in full."""

REFUSED_DELAY: Final = 2.0
"""Seconds before a chunk is issued again that an agent took only to say that it can't run it: two such agents would pass
it to and fro at full speed."""

Entry = wire.Bound | wire.Start | wire.Report | wire.Lost


@dataclass(slots=True)
class Fence:
    """A chunk that is out: published, and started once ``holder`` is known. ``open`` has a bit per task without a result."""

    chunk: wire.Chunk
    open: int
    holder: str | None = None
    serial: int = 0

    @property
    def remaining(self) -> TaskSet | None:
        """The tasks of the chunk that have no result yet."""
        return TaskSet.from_bits(self.chunk.tasks.first, self.open)


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


class Ledger:
    """The state of one study; see the module for its rules."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.geometry = Geometry(plan, samples=0)
        self.bound: wire.Bound | None = None
        self.fences: dict[int, Fence] = {}
        self.next_fence = 1
        self.redundant = 0
        self.doubled = 0
        self.misplaced = 0
        self.lost: list[int] = [0] * len(plan.steps)
        self.seconds: list[float] = [0.0] * len(plan.steps)
        self.tried: list[int] = [0] * len(plan.steps)
        self.first_failures: list[tuple[int, wire.Failure]] = []
        self.last_failures: deque[tuple[int, wire.Failure]] = deque(maxlen=KEPT_FAILURES)
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.steps = [
            StepTasks(self.geometry.total(i) if self.geometry.known(i) else None) for i in range(len(plan.steps))
        ]
        self._readiness = Readiness(self.geometry, self.steps)
        self._closed = Bitmap()
        self._lost_serials: dict[int, tuple[wire.Chunk, int]] = {}
        self._waiting: list[Waiting] = []
        self._numbers = itertools.count()
        self._fold_now = 0.0
        for index, planned in enumerate(plan.steps):
            if not planned.edges and self.steps[index].total is not None:
                self.steps[index].make_all_ready()

    # What the log says

    def apply(self, entry: Entry, *, at: float) -> None:
        """Fold one entry that the broker stored at ``at`` (Unix seconds)."""
        self._fold_now = at
        if self.first_at is None:
            self.first_at = at
        match entry:
            case wire.Bound():
                self.bound = self.bound or entry
            case wire.Start():
                self._start(entry)
            case wire.Report():
                self._report(entry, at)
            case wire.Lost():
                self._lose(entry)
            case _:
                assert_never(entry)

    def issue(self, chunk: wire.Chunk) -> None:
        """Note that a chunk is in the task stream; nothing changes where the log knows it already.

        Another chunk of that fence was a plan of ours that another operator forestalled: it is withdrawn.
        """
        self.next_fence = max(self.next_fence, chunk.fence + 1)
        known = self.fences.get(chunk.fence)
        if known is not None and known.chunk != chunk:
            self.withdraw(known.chunk)
        elif known is not None or chunk.fence in self._closed:
            return
        if not self._fits(chunk.step, chunk.tasks):
            return
        self.steps[chunk.step].issue(chunk.tasks)
        self.fences[chunk.fence] = Fence(chunk, chunk.tasks.bits)

    def _start(self, entry: wire.Start) -> None:
        self.issue(entry.chunk)
        fence = self.fences.get(entry.chunk.fence)
        if fence is not None and fence.holder is None:
            fence.holder = entry.agent

    def _fits(self, step: int, tasks: TaskSet) -> bool:
        total = self.steps[step].total if step < len(self.steps) else None
        return total is not None and tasks.end <= total

    def _report(self, report: wire.Report, at: float) -> None:
        fence = self.fences.get(report.fence)
        if fence is None:
            self._late_report(report)
            return
        if report.serial <= fence.serial or report.agent != fence.holder:
            self.redundant += 1
            return
        fence.serial = report.serial
        if report.samples is not None:
            self._measure(report.samples)
        step = fence.chunk.step
        self._note_failures(step, report)
        self.seconds[step] += report.seconds
        self.last_at = at
        for result in report.results:
            self._told(fence, result, at)
        if report.final:
            self._close(report.fence)
            self._again(fence, at + (REFUSED_DELAY if report.refused else 0.0), lost=fence.chunk.lost)

    def _told(self, fence: Fence, result: wire.Result, at: float) -> None:
        """Take one result of a current fence: of tasks that are the chunk's and have none from this fence yet."""
        chunk = fence.chunk
        shift = result.tasks.first - chunk.tasks.first
        told = result.tasks.bits << shift if shift >= 0 else 0
        if shift < 0 or told & ~chunk.tasks.bits:
            self.misplaced += len(result.tasks)
            return
        tasks = TaskSet.from_bits(chunk.tasks.first, told & fence.open)
        self.redundant += (told & ~fence.open).bit_count()
        if tasks is None:
            return
        fence.open &= ~told
        self.tried[chunk.step] += len(tasks)
        self._result(chunk, result.outcome, tasks, at)

    def _late_report(self, report: wire.Report) -> None:
        """Take the successes of a fence that was called lost, and count the rest."""
        known = self._lost_serials.get(report.fence)
        if known is None or report.serial <= known[1]:
            self.redundant += 1
            return
        chunk = known[0]
        self._lost_serials[report.fence] = (chunk, report.serial)
        if report.samples is not None:
            self._measure(report.samples)
        for result in report.results:
            counts = result.outcome is Outcome.SUCCEEDED and not self._unmeasured(chunk.step)
            if counts and self._fits(chunk.step, result.tasks):
                self._finish(chunk.step, result.tasks, Outcome.SUCCEEDED)
            else:
                self.redundant += len(result.tasks)

    def _result(self, chunk: wire.Chunk, reported: Outcome, tasks: TaskSet, at: float) -> None:
        planned = self.plan.steps[chunk.step]
        outcome = self._stands(chunk.step, reported, attempt=chunk.attempt)
        if outcome is Outcome.SUCCEEDED and self._unmeasured(chunk.step):
            self._wait(at, chunk.step, tasks, chunk.attempt, restart=chunk.restart, lost=chunk.lost)
            return
        if outcome in FINAL:
            fresh = self._finish(chunk.step, tasks, outcome)
            again = len(tasks) - (len(fresh) if fresh is not None else 0)
            self.redundant += again
            self.doubled += 0 if chunk.lost else again
            return
        over = self.steps[chunk.step].final.read(tasks.first, tasks.width)
        unfinished = TaskSet.from_bits(tasks.first, tasks.bits & ~over)
        if unfinished is None:
            self.redundant += len(tasks)
        elif outcome is Outcome.LOST:
            self._wait(at, chunk.step, unfinished, chunk.attempt, restart=chunk.restart, lost=chunk.lost)
        else:
            wants_restart = outcome is Outcome.RESTART and bool(planned.restart)
            self._wait(at + planned.retry_delay, chunk.step, unfinished, chunk.attempt + 1, restart=wants_restart)

    def _unmeasured(self, step: int) -> bool:
        """Whether a step is the one that measures the samples, and nobody has told yet how many there are."""
        return self.plan.steps[step].name == INFO_STEP and not self.geometry.samples

    def _stands(self, step: int, outcome: Outcome, *, attempt: int) -> Outcome:
        planned = self.plan.steps[step]
        return after_budget(outcome, attempt=attempt, max_retries=planned.max_retries, restarts=bool(planned.restart))

    def _note_failures(self, step: int, report: wire.Report) -> None:
        for failure in report.failures:
            outcome = self._stands(step, failure.outcome, attempt=report.attempt)
            if outcome not in FINAL:
                continue
            told = (step, failure.model_copy(update={"outcome": outcome}))
            if len(self.first_failures) < KEPT_FAILURES:
                self.first_failures.append(told)
            else:
                self.last_failures.append(told)

    def _lose(self, entry: wire.Lost) -> None:
        fence = self.fences.get(entry.fence)
        if fence is None or fence.holder != entry.agent:
            return
        self._close(entry.fence)
        self._lost_serials[entry.fence] = (fence.chunk, fence.serial)
        self.lost[fence.chunk.step] += fence.open.bit_count()
        holder = wire.LostHolder(fence=entry.fence, agent=entry.agent)
        self._again(fence, self._fold_now, lost=(*fence.chunk.lost, holder))

    def _close(self, number: int) -> None:
        del self.fences[number]
        self._closed.add_range(number, 1)

    def _again(self, fence: Fence, at: float, *, lost: tuple[wire.LostHolder, ...]) -> None:
        if (tasks := fence.remaining) is not None:
            self._wait(at, fence.chunk.step, tasks, fence.chunk.attempt, restart=fence.chunk.restart, lost=lost)

    def _wait(
        self,
        due: float,
        step: int,
        tasks: TaskSet,
        attempt: int,
        *,
        restart: bool,
        lost: tuple[wire.LostHolder, ...] = (),
    ) -> None:
        waiting = Waiting(due, next(self._numbers), step, tasks, attempt, restart, lost)
        heapq.heappush(self._waiting, waiting)

    # What follows from it

    def _finish(self, step: int, tasks: TaskSet, outcome: Outcome) -> TaskSet | None:
        fresh = self.steps[step].finish(tasks, outcome, blocks=not releases_dependants(outcome))
        if fresh is not None:
            self._release(step, fresh)
        return fresh

    def _release(self, step: int, tasks: TaskSet) -> None:
        """Make ready, or cancel, what waited for ``tasks``; a loop, not recursion, because chains may be long."""
        todo = deque([(step, tasks)])
        while todo:
            over_step, over = todo.popleft()
            self._count_combinations(over_step, over)
            if self.plan.steps[over_step].name == INFO_STEP and not self.geometry.samples:
                self._no_samples(over_step)
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

    def _count_combinations(self, step: int, tasks: TaskSet) -> None:
        samples = self.geometry.samples_of(step)
        if not self.plan.steps[step].sampled or samples < 1:
            return
        done = self.steps[step].combination_done
        for combination in range(tasks.first // samples, (tasks.end - 1) // samples + 1):
            low = max(combination * samples - tasks.first, 0)
            high = min((combination + 1) * samples - tasks.first, tasks.width)
            done[combination] += (tasks.bits >> low & ((1 << (high - low)) - 1)).bit_count()

    def _measure(self, facts: wire.SampleFacts) -> None:
        """Learn the number of samples, once: from here on the sampled steps have tasks."""
        if self.geometry.samples or facts.count < 1:
            return
        self._resize(facts.count)

    def _no_samples(self, info: int) -> None:
        """The samples could not be made: sampled steps have no tasks, what depends on them is cancelled, and all can end."""
        dead = {info}
        for index, planned in enumerate(self.plan.steps):
            if index in dead or not any(edge.parent in dead for edge in planned.edges):
                continue
            dead.add(index)
            step = self.steps[index]
            if step.total is None:
                step.total = 0
            if step.total:
                step.finish(TaskSet(first=0, width=step.total), Outcome.CANCELLED, blocks=True)

    def _resize(self, samples: int) -> None:
        self.geometry = Geometry(self.plan, samples=samples)
        for index, step in enumerate(self.steps):
            if step.total is None:
                step.total = self.geometry.total(index)
        self._readiness = Readiness(self.geometry, self.steps)

    # What is asked of it

    @property
    def finished(self) -> bool:
        """Whether every task has a final outcome."""
        return all(step.complete for step in self.steps)

    @property
    def unrolled(self) -> bool:
        """Whether every task has been issued at least once."""
        return all(step.total is not None and len(step.issued) >= step.total for step in self.steps)

    def due(self, now: float) -> Waiting | None:
        """Take the next retry or rest that is due at ``now`` (Unix seconds), or None. What is over by now is left out."""
        while self._waiting and self._waiting[0].due <= now:
            waiting = heapq.heappop(self._waiting)
            over = self.steps[waiting.step].final.read(waiting.tasks.first, waiting.tasks.width)
            tasks = TaskSet.from_bits(waiting.tasks.first, waiting.tasks.bits & ~over)
            if tasks is not None:
                return waiting.of(tasks)
        return None

    def put_back(self, waiting: Waiting) -> None:
        """Return what `due` gave and what was not issued."""
        heapq.heappush(self._waiting, waiting)

    def withdraw(self, chunk: wire.Chunk) -> None:
        """Take back a chunk that is not in the stream (or not known to be): its tasks wait to be issued again at once."""
        gone = self.fences.get(chunk.fence)
        if gone is not None and gone.holder is None and gone.chunk == chunk:
            del self.fences[chunk.fence]
            self._again(gone, 0.0, lost=gone.chunk.lost)

    def settle_waiting(self) -> None:
        """Drop from what waits the tasks that are out after all, in a chunk that was found in the stream."""
        waiting, self._waiting = self._waiting, []
        out = [(fence.chunk.step, fence.chunk.tasks.first, fence.open) for fence in self.fences.values()]
        for each in waiting:
            bits = each.tasks.bits
            for step, first, open_bits in out:
                if step == each.step:
                    shift = first - each.tasks.first
                    bits &= ~(open_bits << shift if shift >= 0 else open_bits >> -shift)
            if (tasks := TaskSet.from_bits(each.tasks.first, bits)) is not None:
                heapq.heappush(self._waiting, each.of(tasks))

    def next_due(self) -> float | None:
        """Return when the next retry or rest is due (Unix seconds), or None."""
        return self._waiting[0].due if self._waiting else None

    def waiting_tasks(self, step: int) -> int:
        """Return how many tasks of a step wait to be issued again."""
        return sum(len(waiting.tasks) for waiting in self._waiting if waiting.step == step)

    def mean_seconds(self, step: int) -> float | None:
        """Return the mean run time of a step's executions so far, in seconds; None before there is one."""
        return self.seconds[step] / self.tried[step] if self.tried[step] else None
