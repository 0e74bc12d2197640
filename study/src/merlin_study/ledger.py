"""The ledger: a fold of a study's log, entry by entry in the log's order.

The log is all there is to know: ``Bound`` (which site), ``Start`` (who runs a chunk), ``Report`` (what came of it), and
the operator's words: ``Withdrawn`` (a chunk that nobody will start), ``Lost`` (its holder is gone), ``Dropped`` (what waits
is cancelled), ``Restarted`` (what is over runs again), ``Repaired`` (what was lost of the log is told again). Folding the
same log gives the same ledger, wherever and however often; an entry that comes twice changes nothing. Time enters only as
the broker's timestamp of an entry, so the moment at which a retry is due is a function of the log as well.

Rules, per task: success absorbs; what comes after a final outcome is counted and not applied; restarts and retries
spend one budget (`merlin_study.outcome.after_budget`); a loss spends none. A task is in at most one *current* fence; a
fence called lost may still bring successes, nothing else of it counts, because the fence that replaced it will tell. After
`MAX_LOSSES` holders in turn, or hosts of theirs that it ran over, were lost with a task it is failed: whatever it does, it
takes them with it. What failed on a host that fails everything is judged to be lost with it (``Excused``), also where the failure had been final.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, assert_never

from merlin_study import wire
from merlin_study.backlog import Backlog, Waiting
from merlin_study.bitmap import Bitmap
from merlin_study.dag import Dag
from merlin_study.failures import Failures
from merlin_study.fence import Fence
from merlin_study.geometry import Geometry
from merlin_study.outcome import FINAL, Outcome, after_budget
from merlin_study.plan import Lane, Plan
from merlin_study.runtimes import Runtimes
from merlin_study.scan import Scan
from merlin_study.steptasks import StepTasks
from merlin_study.stops import Stops
from merlin_study.taskset import TaskSet

REFUSED_DELAY: Final = 2.0
"""Seconds before a chunk is issued again that an agent took only to say that it can't run it: two such agents would pass
it to and fro at full speed."""

MAX_LOSSES: Final = 8
"""Holders, or hosts of theirs, that may be lost in turn with the same task. A chunk is cut to an eighth of the largest at each loss
(`merlin_operator.unroll`), so a task that kills its agents is alone in its chunk long before; the last two times no other such chunk
of its queue and size is beside it."""


RESTART: Final = "restart:"
"""What the token of a restart begins with."""
EXCUSED: Final = "excused:"
"""What the token of a verdict on a host's failures begins with."""
_ALL_TOLD: Final = 1 << 31
"""As the number of a fence's last report: none of them is still to come."""


class Ledger:
    """The state of one study; see the module for its rules."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dag = Dag(plan)
        self.bound: wire.Bound | None = None
        self.facts: wire.SampleFacts | None = None
        self.fences: dict[int, Fence] = {}
        self.next_fence = 1
        self.redundant = 0
        self.doubled = 0
        self.misplaced = 0
        self.lost: list[int] = [0] * len(plan.steps)
        self.runtimes = Runtimes(len(plan.steps))
        self.failures = Failures()
        self.stops = Stops(plan)
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.closed = Bitmap()
        self.lost_serials: dict[int, tuple[wire.Chunk, int]] = {}
        self.superseded: dict[int, list[TaskSet]] = {}
        """Fences whose start has not come, with what later chunks that name them as lost hold: only in a log that was told anew."""
        self.recalled: dict[str, wire.Recalled] = {}
        """By site, the last word on what its workspace recorded."""
        self.scan = Scan(len(plan.steps))
        """The look at the marks in the workspace that a restart asked for."""
        self.early: dict[int, list[tuple[wire.Report, float]]] = {}
        """By fence, reports whose claim has not come, and when they did: only in a log that is told anew."""
        self.rivals: dict[tuple[int, str], wire.Chunk] = {}
        """By fence and agent, who claimed a fence beside its holder: only where a broker that was put back let it be claimed twice."""
        self.repaired = 1
        """The epoch up to which the log says all that happened."""
        self.entries = 0
        """How many entries of the log were folded."""
        self._backlog = Backlog()
        self._fold_now = 0.0
        self.honoured: set[str] = set()
        """Tokens of restarts and purges that were carried out: none of them is asked for twice."""
        self.noted = False
        """Whether the requests that stood in the study from the beginning are known."""
        self.exhausted = 0
        """Tasks that were failed because `MAX_LOSSES` holders were lost with them."""

    @property
    def steps(self) -> list[StepTasks]:
        """The tasks of each step."""
        return self.dag.steps

    @property
    def geometry(self) -> Geometry:
        """How tasks are numbered; the samples count once they are measured."""
        return self.dag.geometry

    # What the log says

    def apply(self, entry: wire.Entry, *, at: float) -> None:
        """Fold one entry that the broker stored at ``at`` (Unix seconds)."""
        self._fold_now = at
        self.entries += 1
        if self.first_at is None and isinstance(entry, wire.Bound | wire.Start | wire.Report):
            self.first_at = at
        match entry:
            case wire.Bound() | wire.Recalled():
                self._place(entry)
            case wire.Start():
                self._start(entry)
            case wire.Report():
                self._report(entry, at)
            case wire.Withdrawn():
                self._withdrawn(entry)
            case _:
                self._verdict(entry)

    def _verdict(
        self, entry: wire.Noted | wire.Lost | wire.Excused | wire.Dropped | wire.Restarted | wire.Repaired
    ) -> None:
        match entry:
            case wire.Noted():
                self.noted = True
                self.honoured.update(entry.tokens)
            case wire.Lost():
                self._lose(entry)
            case wire.Dropped():
                self._drop(entry)
            case wire.Restarted() | wire.Excused():
                self._anew(entry)
            case wire.Repaired():
                self._repair(entry)
            case _:
                assert_never(entry)

    def _place(self, entry: wire.Bound | wire.Recalled) -> None:
        if isinstance(entry, wire.Bound):
            self.bound = self.bound or entry
        elif not self._knows_better(entry):
            self.recalled[entry.site] = entry

    def _knows_better(self, entry: wire.Recalled) -> bool:
        """Whether an agent of the site sees a workspace that it can't read, and this one sees none."""
        known = self.recalled.get(entry.site)
        is_other = known is not None and known.agent != entry.agent and known.epoch == entry.epoch
        return known is not None and is_other and bool(known.unread) and not (entry.found or entry.unread)

    def issue(self, chunk: wire.Chunk) -> None:
        """Note that a chunk is in the task stream; nothing changes where the log knows it already.

        Another chunk of that fence was a plan of ours that another operator forestalled: it is withdrawn.
        """
        self.next_fence = max(self.next_fence, chunk.fence + 1)
        known = self.fences.get(chunk.fence)
        if known is not None and known.chunk != chunk:
            self.withdraw(known.chunk)
        elif known is not None or self._is_over(chunk.fence):
            return
        if not self.dag.fits(chunk.step, chunk.tasks):
            return
        (self.scan.hand_out(chunk.step, chunk.tasks) if chunk.scan else self.steps[chunk.step].hand_out(chunk.tasks))
        self.fences[chunk.fence] = Fence(chunk, chunk.tasks.bits)

    def _start(self, entry: wire.Start) -> None:
        chunk = entry.chunk
        self.dag.measure(chunk.samples)  # known when it was issued, though a log that is told anew may not say so yet
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
            self.rivals[chunk.fence, entry.agent] = chunk
        if fence is not None and chunk.fence in self.superseded:
            self._supersede(
                fence, self.superseded.pop(chunk.fence), (wire.LostHolder(fence=chunk.fence, agent=entry.agent),)
            )
        for report, at in self.early.pop(chunk.fence, ()):
            self._report(report, at)

    def _is_over(self, fence: int) -> bool:
        """Whether nothing more can come of a fence: it is closed, or nobody had claimed it when its epoch was."""
        return fence in self.closed or (fence < wire.first_fence(self.repaired) and fence not in self.fences)

    def _repair(self, entry: wire.Repaired) -> None:
        """Take the log as whole, if it has all that the verdict speaks of: what is without its claim never ran, what is out does not wait."""
        if entry.entries >= self.entries:
            return
        self.repaired = max(self.repaired, entry.epoch)
        self.next_fence = max(self.next_fence, wire.first_fence(self.repaired))
        self.early.clear()
        self.rivals = {key: chunk for key, chunk in self.rivals.items() if key[0] in self.fences}
        self.superseded.clear()
        self._backlog.drop_twice()
        self.settle_waiting()

    def _catch_up(self, chunk: wire.Chunk) -> None:
        """Conclude from a chunk that another operator issued what had happened before: what it holds waits no more.

        The holders that it names were lost, also where the log that said so is gone.
        """
        if self.steps[chunk.step].issued.read(chunk.tasks.first, chunk.tasks.width) & chunk.tasks.bits:
            self._backlog.drop_out([(chunk.step, chunk.tasks.first, chunk.tasks.bits)], upto=chunk.attempt)
        for lost in chunk.lost:
            fence = self.fences.get(lost.fence)
            if fence is not None and fence.holder == lost.agent:
                self._supersede(fence, [chunk.tasks], chunk.lost)
            elif fence is None and lost.fence not in self.closed:
                self.superseded.setdefault(lost.fence, []).append(chunk.tasks)
            elif fence is None:
                self._note_lost(lost.fence, chunk)

    def _note_lost(self, fence: int, by: wire.Chunk) -> None:
        """Remember of a fence that closed as any other, since all it told came before who names it as lost, that it was lost.

        Which tasks it had is known no more, but that those of later chunks ``by`` are among them.
        """
        chunk, serial = self.lost_serials.get(fence, (by, _ALL_TOLD))
        first = min(by.tasks.first, chunk.tasks.first)
        tasks = TaskSet.from_bits(first, by.tasks.bits_from(first) | chunk.tasks.bits_from(first))
        self.lost_serials[fence] = chunk.model_copy(update={"fence": fence, "tasks": tasks}), serial

    def _supersede(self, fence: Fence, by: list[TaskSet], lost: tuple[wire.LostHolder, ...]) -> None:
        """Close a fence that was called lost: what no later chunk has of it waits."""
        self._close(fence.chunk.fence)
        self.lost_serials[fence.chunk.fence] = (fence.chunk, fence.serial)
        for tasks in by:
            fence.open &= ~tasks.bits_from(fence.chunk.tasks.first)
        self._again(fence, self._fold_now, lost=lost)

    def _report(self, report: wire.Report, at: float) -> None:
        fence = self.fences.get(report.fence)
        if fence is None and not self._is_over(report.fence):
            self.early.setdefault(report.fence, []).append((report, at))
            return
        if fence is None or report.agent != fence.holder:
            self._late_report(report)
            return
        if not fence.note(report.serial):
            self.redundant += 1
            return
        if why := self._learn(fence.chunk, report.samples):
            report = self._miscounted(fence.chunk, report, why)
        step = fence.chunk.step
        self._note_failures(fence.chunk, report)
        self._note_felled(fence, report)
        self.runtimes.seconds[step] += report.seconds
        self.last_at = at
        for result in report.results:
            self._told(fence, result, at)
        if report.final:
            fence.end, fence.refused = report.serial, bool(report.refused)
        if fence.over:
            self._close(report.fence)
            self._part_with_felled(fence, report.agent)
            self._again(fence, at + (REFUSED_DELAY if fence.refused else 0.0), lost=fence.chunk.lost)

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
        for other in self._beside(chunk):  # whoever has a result ran it, the other one will not
            other.open &= ~tasks.bits_from(other.chunk.tasks.first)
        if chunk.scan:
            if not self.is_dropped(chunk):  # else nothing comes of what was looked at
                self.scan.tell(chunk.step, tasks, result.outcome)
            return
        self.runtimes.tried[chunk.step] += len(tasks)
        self._result(chunk, result, tasks, at)

    def _late_report(self, report: wire.Report) -> None:
        """Take the successes of a fence that was called lost, or of one that two agents had claimed, and count the rest."""
        rival = self.rivals.get((report.fence, report.agent))
        known = self.lost_serials.get(report.fence) if rival is None else (rival, 0)
        if known is None or report.serial <= known[1]:
            self.redundant += 1
            return
        chunk = known[0]
        if rival is None:
            self.lost_serials[report.fence] = (chunk, report.serial)
        self._learn(chunk, report.samples)
        for result in report.results:
            counts = result.outcome is Outcome.SUCCEEDED and not self.dag.unmeasured(chunk.step)
            if counts and self.dag.fits(chunk.step, result.tasks):
                self.dag.finish(chunk.step, result.tasks, Outcome.SUCCEEDED, code=0)
            else:
                self.redundant += len(result.tasks)

    def _result(self, chunk: wire.Chunk, result: wire.Result, tasks: TaskSet, at: float) -> None:
        planned = self.plan.steps[chunk.step]
        outcome = self._stands(chunk.step, tasks.first, result.outcome, attempt=chunk.attempt)
        if not self.is_dropped(chunk):  # else a verdict has dealt with that chunk's time already
            self.stops.note_code(result.code, queue=self.lane(chunk).queue, at=at)
        if outcome is Outcome.SUCCEEDED and self.dag.unmeasured(chunk.step):
            self._wait(chunk, tasks, at, attempt=chunk.attempt, restart=chunk.restart, lost=chunk.lost)
            return
        if outcome in FINAL:
            fresh = self.dag.finish(chunk.step, tasks, outcome, code=result.code)
            again = tasks.bits & ~(fresh.bits << (fresh.first - tasks.first) if fresh is not None else 0)
            self.redundant += again.bit_count()
            if (
                again and not chunk.lost and chunk.generation <= self.generation
            ):  # else a restart of a log that was lost
                self.doubled += self._unexplained(chunk.step, tasks.first, again)
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

    def _unexplained(self, step: int, first: int, bits: int) -> int:
        """Count the tasks that no holder was lost with: a lost one may succeed while a later attempt of another runs.

        So may one beside whom another claimed the fence: that one adopts what it finds recorded.
        """
        for chunk in (*(chunk for chunk, _ in self.lost_serials.values()), *self.rivals.values()):
            if chunk.step == step:
                bits &= ~chunk.tasks.bits_from(first)
        return bits.bit_count()

    def _stands(self, step: int, task: int, outcome: Outcome, *, attempt: int) -> Outcome:
        budget, restarts = self.geometry.lane(step, task).max_retries, bool(self.plan.steps[step].restart)
        return after_budget(outcome, attempt=attempt, max_retries=budget, restarts=restarts)

    def _note_failures(self, chunk: wire.Chunk, report: wire.Report) -> None:
        for failure in report.failures:
            if failure.task not in chunk.tasks:
                self.misplaced += 1
                continue
            outcome = self._stands(chunk.step, failure.task, failure.outcome, attempt=report.attempt)
            if outcome in FINAL:
                self.failures.keep(chunk.step, failure.model_copy(update={"outcome": outcome}))

    def _withdrawn(self, entry: wire.Withdrawn) -> None:
        self.next_fence = max(self.next_fence, entry.fence + 1)
        fence = self.fences.get(entry.fence)
        if fence is None:
            self.closed.add_range(entry.fence, 1)
        elif fence.holder is None:
            self._close(entry.fence)
            self._take_back(fence)

    def _lose(self, entry: wire.Lost) -> None:
        fence = self.fences.get(entry.fence)
        if fence is None or fence.holder != entry.agent:
            return
        self._close(entry.fence)
        if fence.chunk.scan:
            self._take_back(fence)
            return
        self.lost_serials[entry.fence] = (fence.chunk, fence.serial)
        self._lost_with(fence, entry.agent)

    def _lost_with(self, fence: Fence, agent: str) -> None:
        """Have what is open of a fence wait as lost with its holder, or with a host of that one's; after too many it is failed."""
        self.lost[fence.chunk.step] += fence.open.bit_count()
        chain = (*fence.chunk.lost, wire.LostHolder(fence=fence.chunk.fence, agent=agent))
        if len(chain) < MAX_LOSSES:
            self._again(fence, self._fold_now, lost=chain)
        elif (tasks := fence.remaining) is not None:
            self._exhaust(fence.chunk, tasks, chain)

    def _anew(self, entry: wire.Restarted | wire.Excused) -> None:
        """Have tasks that are over run again; a verdict that was honoured before changes nothing."""
        if entry.token in self.honoured:
            return
        self.honoured.add(entry.token)
        if isinstance(entry, wire.Restarted):
            self._restart(entry)
        elif not self.stops.cancelled:
            self._excuse(entry)

    def _excuse(self, entry: wire.Excused) -> None:
        """Judge failures to be their host's: the tasks run again, with the attempts that they had before.

        What was dropped since the verdict was thought of stays so; what was dropped before is not in it.
        """
        self._drop_over()
        for each in entry.failed:
            fits = self.dag.fits(each.step, each.tasks)
            newest = entry.below - 1
            tasks = self.stops.spared(each.step, each.tasks, fence=newest, geometry=self.geometry) if fits else None
            if tasks is None:
                continue
            back = self._backlog.set_back(each.step, tasks, attempt=each.attempt, due=self._fold_now)
            named = wire.Restarted(
                token=entry.token, steps=(each.step,), tasks=(tasks,), dependants=True, below=entry.below
            )
            again = self.dag.reopen(named)
            self.lost[each.step] += back + len(again[each.step])
            share = len(tasks) / len(each.tasks)
            self.runtimes.take_off(each.step, tried=len(tasks), seconds=each.seconds * share)
            self.failures.forget(again)

    def _exhaust(self, chunk: wire.Chunk, tasks: TaskSet, chain: tuple[wire.LostHolder, ...]) -> None:
        """Fail tasks that were lost with one holder after the other."""
        self.exhausted += len(tasks)
        code = self.failures.keep_lost(chunk.step, tasks, [each.agent for each in chain])
        self.dag.finish(chunk.step, tasks, Outcome.SOFT_FAILED, code=code)

    def _drop(self, entry: wire.Dropped) -> None:
        """Cancel what waits, on one queue or on all: what is in no chunk that somebody has started."""
        self.last_at = self._fold_now
        if entry.token:
            self.honoured.add(entry.token)
        if entry.queue is None:
            self.scan.clear()
        lanes = self.stops.drop(entry)
        for step, lane in lanes:
            self.dag.cancel_waiting(step, lane, self._running(step))
        self._drop_over()

    def _drop_over(self) -> None:
        """Forget of what waits the tasks that are over; one that is opened anew would be issued twice."""
        self._backlog.drop([step.final for step in self.steps])

    def _running(self, step: int) -> Bitmap:
        running = Bitmap()
        for fence in self.fences.values():
            if fence.chunk.step == step and fence.holder is not None and (tasks := fence.remaining) is not None:
                running.add(tasks)
        return running

    def _learn(self, chunk: wire.Chunk, facts: wire.SampleFacts | None) -> str:
        """Learn how many samples there are; say why there can't be so many, which is not believed then."""
        why = Geometry(self.plan, facts.count).refusal() if facts is not None else ""
        if why:
            self.misplaced += 1
        elif facts is not None:
            self._measure(chunk, facts)
        return why

    def _miscounted(self, chunk: wire.Chunk, report: wire.Report, why: str) -> wire.Report:
        """Return a report without the success of counting samples to a number that can't be: that failed."""
        counted = [each.tasks for each in report.results if each.outcome is Outcome.SUCCEEDED]
        if not counted or not self.dag.unmeasured(chunk.step):
            return report
        code = self.failures.keep_miscounted(chunk.step, chunk.tasks, report.agent, why)
        failed = tuple(wire.Result(outcome=Outcome.FAILED, code=code, tasks=tasks) for tasks in counted)
        others = tuple(each for each in report.results if each.outcome is not Outcome.SUCCEEDED)
        return report.model_copy(update={"results": (*failed, *others)})

    def _measure(self, chunk: wire.Chunk, facts: wire.SampleFacts) -> None:
        known = [step.total is not None for step in self.steps]
        self.facts = self.facts or facts
        self.dag.measure(facts.count)
        for step, planned in enumerate(self.plan.steps):
            for lane in range(len(planned.lanes)):
                dropped = self.stops.is_dropped(chunk.fence, lane=self.plan.first_lanes[step] + lane)
                if dropped and not known[step]:  # before anybody knew of these tasks
                    self.dag.cancel_waiting(step, lane, Bitmap())

    def _restart(self, entry: wire.Restarted) -> None:
        """Open a new generation of the tasks that a restart names."""
        self.stops.restart()
        self._drop_over()
        again = self.dag.reopen(entry)
        self.scan.settle(entry)
        if entry.scan:
            self.scan.begin(entry, self.plan, self.steps)
        for fence, (chunk, _) in list(self.lost_serials.items()):
            if again[chunk.step].read(chunk.tasks.first, chunk.tasks.width) & chunk.tasks.bits:
                del self.lost_serials[fence]  # what a zombie of the earlier generation tells says nothing of this one

    def _close(self, number: int) -> None:
        del self.fences[number]
        self.closed.add_range(number, 1)
        if self.rivals and number < wire.first_fence(self.repaired):
            self.rivals = {key: chunk for key, chunk in self.rivals.items() if key[0] != number}

    def _take_back(self, fence: Fence) -> None:
        """Have the tasks of a chunk that nobody started wait as they did before it was made."""
        remaining = fence.remaining
        if fence.chunk.scan:
            self.scan.give_back(fence.chunk.step, None if self.is_dropped(fence.chunk) else remaining)
            return
        rest = self.steps[fence.chunk.step].take_back(remaining) if remaining is not None else None
        if rest is not None:
            chunk = fence.chunk
            self._wait(chunk, rest, 0.0, attempt=chunk.attempt, restart=chunk.restart, lost=chunk.lost)

    def _again(self, fence: Fence, at: float, *, lost: tuple[wire.LostHolder, ...]) -> None:
        if fence.chunk.scan:
            self._take_back(fence)
        elif (tasks := self._nobody_elses(fence)) is not None:
            chunk = fence.chunk
            self._wait(chunk, tasks, at, attempt=chunk.attempt, restart=chunk.restart, lost=lost)

    def _beside(self, chunk: wire.Chunk) -> Iterator[Fence]:
        """Yield what else is out of a step where some task may be out twice: of a log that was lost, chunks of several epochs may be claimed late."""
        if not chunk.scan and wire.epoch_of(chunk.fence) < self.repaired:
            for number, fence in self.fences.items():
                if number != chunk.fence and fence.chunk.step == chunk.step and not fence.chunk.scan:
                    yield fence

    def _nobody_elses(self, fence: Fence) -> TaskSet | None:
        """Return the tasks without a result that no other chunk has, too: those come back with the last one that has them."""
        first, left = fence.chunk.tasks.first, fence.open
        for other in self._beside(fence.chunk):
            if (rest := other.remaining) is not None:
                left &= ~rest.bits_from(first)
        return TaskSet.from_bits(first, left)

    def _wait(
        self,
        chunk: wire.Chunk,
        tasks: TaskSet,
        due: float,
        *,
        attempt: int,
        restart: bool,
        lost: tuple[wire.LostHolder, ...] = (),
    ) -> None:
        """Have tasks of a chunk issued again, unless what that chunk leaves is dropped."""
        if self.is_dropped(chunk):
            self.dag.finish(chunk.step, tasks, Outcome.CANCELLED)
        else:
            self._backlog.add(due, chunk.step, tasks, attempt=attempt, restart=restart, lost=lost)

    # What is asked of it

    def lane(self, chunk: wire.Chunk) -> Lane:
        """Return what a chunk's tasks have in common."""
        return self.geometry.lane(chunk.step, chunk.tasks.first)

    def is_dropped(self, chunk: wire.Chunk) -> bool:
        """Whether what a chunk leaves is cancelled."""
        return self.stops.is_dropped(chunk.fence, lane=self.geometry.lane_number(chunk.step, chunk.tasks.first))

    @property
    def finished(self) -> bool:
        """Whether every task has a final outcome, and no mark of one is being looked at."""
        return all(step.complete for step in self.steps) and self.scan.idle and not self.scanning

    @property
    def scanning(self) -> bool:
        """Whether marks are still to be looked at."""
        return self.scan.waits or any(fence.chunk.scan for fence in self.fences.values())

    @property
    def still(self) -> bool:
        """Whether it is finished, and nothing that came of it waits for its time."""
        asked = self.stops.stop_asked is not None or self.stops.hard_failed
        return self.finished and not self.fences and not asked

    @property
    def unrolled(self) -> bool:
        """Whether every task has been issued at least once."""
        return all(step.total is not None and step.handed_out >= step.total for step in self.steps)

    def due(self, now: float) -> Waiting | None:
        """Take the next retry or rest that is due at ``now`` (Unix seconds), or None. What is over by now is left out."""
        return self._backlog.due(now, [step.final for step in self.steps])

    def put_back(self, waiting: Waiting) -> None:
        """Return what `due` gave and what was not issued."""
        self._backlog.put_back(waiting)

    def withdraw(self, chunk: wire.Chunk) -> None:
        """Take back a chunk that is not in the stream (or not known to be): its tasks wait to be issued again at once."""
        gone = self.fences.get(chunk.fence)
        if gone is not None and gone.holder is None and gone.chunk == chunk:
            del self.fences[chunk.fence]
            self._take_back(gone)

    def settle_waiting(self) -> None:
        """Drop from what waits the tasks that are out after all, in a chunk that was found in the stream."""
        self._backlog.drop_out(
            (fence.chunk.step, fence.chunk.tasks.first, fence.open) for fence in self.fences.values()
        )

    @property
    def generation(self) -> int:
        """How often tasks that were over began anew: restarts, with those that stood in the study from its beginning, and excuses."""
        return sum(token.startswith((RESTART, EXCUSED)) for token in self.honoured)

    def waiting(self) -> list[Waiting]:
        """Return what waits to be issued again, in its order."""
        return self._backlog.all()

    def count_on(self, number: int) -> None:
        """Number what comes to wait from here on."""
        self._backlog.count_on(number)

    def next_due(self) -> float | None:
        """Return when the next retry or rest is due (Unix seconds), or None."""
        return self._backlog.next_due()

    def waiting_tasks(self, step: int) -> int:
        """Return how many tasks of a step wait to be issued again."""
        return self._backlog.tasks(step)

    def is_fresh(self, step: int, tasks: TaskSet) -> bool:
        """Whether marks of an earlier success may lie in the directories of these tasks and say nothing any more."""
        return bool(self.steps[step].fresh.read(tasks.first, tasks.width) & tasks.bits)
