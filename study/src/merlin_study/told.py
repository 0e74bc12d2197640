"""What agents tell of a study: claims, and reports of what came of the tasks.

Per task: success absorbs; what comes after a final outcome is counted and not applied; restarts and retries spend one budget
(`merlin_study.outcome.after_budget`); a loss spends none. A report counts once, by fence and serial, and ends nothing before those
that it overtook are in.
"""

from __future__ import annotations

from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.failures import UNCOUNTED
from merlin_study.fence import Fence
from merlin_study.geometry import Geometry
from merlin_study.outcome import FINAL, Outcome, after_budget
from merlin_study.plan import Plan
from merlin_study.taskset import TaskSet
from merlin_study.verdicts import Judged

REFUSED_DELAY: Final = 2.0
"""Seconds before a chunk is issued again that an agent took only to say that it can't run it: two such agents would pass
it to and fro at full speed."""
COUNTS: Final = 3
"""Tries of the step that measures the samples after which one that succeeds without their number has failed. That step has no retries
of its own."""


class Told(Judged):
    """What agents told of a study, under the operator's verdicts."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.facts: wire.SampleFacts | None = None
        self.redundant = 0
        self.doubled = 0
        self.misplaced = 0

    def _start(self, entry: wire.Start) -> None:
        chunk = entry.chunk
        self.dag.measure(chunk.samples)  # known when it was issued, though a log that is told anew may not say so yet
        if self.late.was_anothers(chunk.fence, entry.agent):
            del self.late.returned[chunk.fence]
            self.closed.remove(TaskSet(first=chunk.fence, width=1))
        known = chunk.scan or chunk.fence in self.fences or self._is_over(chunk.fence)
        if not known and self.dag.fits(chunk.step, chunk.tasks):
            self._catch_up(chunk)
        self.issue(chunk)
        fence = self.fences.get(chunk.fence)
        if fence is not None and fence.holder is None:
            fence.holder = entry.agent
            if not chunk.scan:
                self.steps[chunk.step].issue(chunk.tasks)
        elif fence is not None and fence.holder != entry.agent and not chunk.scan:
            self.late.compete(chunk, entry.agent)
        if fence is not None and (by := self.late.superseded.pop(chunk.fence, None)) is not None:
            self._supersede(fence, by, (wire.LostHolder(fence=chunk.fence, agent=entry.agent),))
        for report, at in self.late.early.pop(chunk.fence, ()):
            self._report(report, at)

    # A report

    def _report(self, report: wire.Report, at: float) -> None:
        fence = self.fences.get(report.fence)
        if fence is None or report.agent != fence.holder:
            self._other_report(report, at)
            return
        if not fence.note(report.serial):
            self.redundant += 1
            return
        why = self._learn(fence.chunk, report.samples)
        if self.dag.unmeasured(fence.chunk.step):
            report = self._uncounted(fence.chunk, report, why)
        step = fence.chunk.step
        self._note_failures(fence.chunk, report)
        self._note_felled(fence, report)
        self.runtimes.seconds[step] += report.seconds
        self.last_at = at
        for result in report.results:
            self._told(fence, result, at)
        if report.final:
            fence.end, fence.refused = report.serial, bool(report.refused)
        if fence.over and not self._inherited(fence):
            self._close(report.fence)
            if fence.open == fence.chunk.tasks.bits and not fence.chunk.scan:
                self.late.give_back(report.fence, report.agent)
            self._part_with_felled(fence, report.agent)
            self._again(fence, at + (REFUSED_DELAY if fence.refused else 0.0), lost=fence.chunk.lost)

    def _other_report(self, report: wire.Report, at: float) -> None:
        """Take a report of nobody who holds its fence: it is late, or early, or of one of several who claimed that."""
        number, late = report.fence, self.late
        is_closed = self._is_over(number) and not late.was_anothers(number, report.agent)
        if (rival := late.rivals.get((number, report.agent))) is not None:
            self._rival_report(rival, report, at)
        elif is_closed or number in late.lost_serials or (number in self.fences and self.fences[number].chunk.scan):
            self._late_report(report)
        else:
            late.await_claim(report, at)

    def _rival_report(self, rival: Fence, report: wire.Report, at: float) -> None:
        """Take what is final of what somebody tells who claimed a fence beside its holder; the rest is the holder's to tell.

        Of one that is closed successes only: what replaced it tells the rest.
        """
        if not rival.note(report.serial):
            self.redundant += 1
            return
        step, counts = rival.chunk.step, FINAL if report.fence in self.fences else {Outcome.SUCCEEDED}
        self._learn(rival.chunk, report.samples)
        self._note_failures(rival.chunk, report)
        self.runtimes.seconds[step] += report.seconds
        self.last_at = at
        for result in report.results:
            outcome = self._stands(step, result.tasks.first, result.outcome, attempt=rival.chunk.attempt)
            if outcome in counts and not self.dag.unmeasured(step):
                self._told(rival, result, at)
            else:
                self.redundant += len(result.tasks)
        if report.final:
            rival.end = report.serial

    def _late_report(self, report: wire.Report) -> None:
        """Take the successes of a fence that was called lost, and count the rest."""
        chunk = self.late.hear(report)
        if chunk is None:
            self.redundant += 1
            return
        self._learn(chunk, report.samples)
        for result in report.results:
            counts = result.outcome is Outcome.SUCCEEDED and not self.dag.unmeasured(chunk.step)
            if counts and self.dag.fits(chunk.step, result.tasks):
                self.dag.finish(chunk.step, result.tasks, Outcome.SUCCEEDED, code=0)
            else:
                self.redundant += len(result.tasks)

    def _note_failures(self, chunk: wire.Chunk, report: wire.Report) -> None:
        for failure in report.failures:
            if failure.task not in chunk.tasks:
                self.misplaced += 1
                continue
            outcome = self._stands(chunk.step, failure.task, failure.outcome, attempt=report.attempt)
            if outcome in FINAL:
                self.failures.keep(chunk.step, failure.model_copy(update={"outcome": outcome}))

    def _note_felled(self, fence: Fence, report: wire.Report) -> None:
        """Note the tasks that a host of the holder's was lost with; they are handed back with the rest, and count as lost with it."""
        tasks = fence.chunk.tasks
        for failure in () if fence.chunk.scan else report.failures:
            if failure.outcome is Outcome.LOST and failure.task in tasks:
                fence.felled |= 1 << failure.task - tasks.first

    def _part_with_felled(self, fence: Fence, agent: str) -> None:
        """Have the tasks that took a host with them wait as lost, apart from the rest of a fence that is over."""
        rest = fence.open & ~fence.felled
        if rest != fence.open:
            fence.open &= fence.felled
            self._lost_with(fence, agent)
            fence.open = rest

    # One result of it

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
        claimants = (self.fences.get(chunk.fence, fence), *self.late.beside(chunk.fence)) if self.late.rivals else ()
        for other in (*self._beside(chunk), *claimants):  # whoever has a result ran it, the other one will not
            other.open &= ~tasks.bits_from(other.chunk.tasks.first)
        if chunk.scan:
            if not self.is_dropped(chunk):  # else nothing comes of what was looked at
                self.scan.tell(chunk.step, tasks, result.outcome)
            return
        self.runtimes.tried[chunk.step] += len(tasks)
        self._result(chunk, result, tasks, at)

    def _result(self, chunk: wire.Chunk, result: wire.Result, tasks: TaskSet, at: float) -> None:
        planned = self.plan.steps[chunk.step]
        outcome = self._stands(chunk.step, tasks.first, result.outcome, attempt=chunk.attempt)
        if not self.is_dropped(chunk):  # else a verdict has dealt with that chunk's time already
            self.stops.note_code(result.code, queue=self.lane(chunk).queue, at=at)
        if outcome is Outcome.SUCCEEDED and self.dag.unmeasured(chunk.step):
            self._wait(chunk, tasks, at + self.lane(chunk).retry_delay, attempt=chunk.attempt + 1, restart=False)
            return
        if outcome in FINAL:
            fresh = self.dag.finish(chunk.step, tasks, outcome, code=result.code)
            again = tasks.bits & ~(fresh.bits << (fresh.first - tasks.first) if fresh is not None else 0)
            self.redundant += again.bit_count()
            if (
                again and not chunk.lost and chunk.generation <= self.generation
            ):  # else a restart of a log that was lost
                self.doubled += self.late.unexplained(chunk.step, tasks.first, again)
            return
        over = self.steps[chunk.step].final.read(tasks.first, tasks.width)
        unfinished = TaskSet.from_bits(tasks.first, tasks.bits & ~over)
        if unfinished is None:
            self.redundant += len(tasks)
        elif outcome is Outcome.LOST:
            self._wait(chunk, unfinished, at, attempt=chunk.attempt, restart=chunk.restart, lost=chunk.lost)
        else:
            wants_restart = outcome is Outcome.RESTART and bool(planned.restart)
            due = at + self.lane(chunk).retry_delay
            self._wait(chunk, unfinished, due, attempt=chunk.attempt + 1, restart=wants_restart)

    def _stands(self, step: int, task: int, outcome: Outcome, *, attempt: int) -> Outcome:
        budget, restarts = self.geometry.lane(step, task).max_retries, bool(self.plan.steps[step].restart)
        return after_budget(outcome, attempt=attempt, max_retries=budget, restarts=restarts)

    # How many samples there are

    def _learn(self, chunk: wire.Chunk, facts: wire.SampleFacts | None) -> str:
        """Learn how many samples there are from the step that measures them; say why there can't be so many, which is not believed then."""
        if facts is None:
            return ""
        measures = self.dag.measures(chunk.step)
        why = Geometry(self.plan, facts.count).refusal() if measures else ""
        if why or not measures:
            self.misplaced += 1
        else:
            self._measure(chunk, facts)
        return why

    def _uncounted(self, chunk: wire.Chunk, report: wire.Report, why: str) -> wire.Report:
        """Return a report without the success of counting samples that it gives no number of.

        To a number that can't be, which ``why`` says, or at the last try to none: that failed. Else it is tried again.
        """
        counted = [each.tasks for each in report.results if each.outcome is Outcome.SUCCEEDED]
        if not counted or (not why and chunk.attempt < COUNTS):
            return report
        why = why or f"expected their number with its success, found none at attempt {chunk.attempt}, the last one"
        self.failures.keep_uncounted(chunk.step, chunk.tasks, report.agent, why)
        failed = tuple(wire.Result(outcome=Outcome.FAILED, code=UNCOUNTED, tasks=tasks) for tasks in counted)
        others = tuple(each for each in report.results if each.outcome is not Outcome.SUCCEEDED)
        return report.model_copy(update={"results": (*failed, *others)})

    def _measure(self, chunk: wire.Chunk, facts: wire.SampleFacts) -> None:
        known = [step.total is not None for step in self.steps]
        self.dag.measure(facts.count)
        if self.geometry.samples:
            self.facts = self.facts or facts
        for step, planned in enumerate(self.plan.steps):
            for lane in range(len(planned.lanes)):
                dropped = self.stops.is_dropped(chunk.fence, lane=self.plan.first_lanes[step] + lane)
                if dropped and not known[step]:  # before anybody knew of these tasks
                    self.dag.cancel_waiting(step, lane, Bitmap())
