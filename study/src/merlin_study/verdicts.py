"""What the operator's verdicts do to a study: a holder is lost, a chunk withdrawn; tasks are dropped, or run again.

Also where the log that said so is gone and a later chunk says it: one that names holders as lost was issued after the verdict on them.
"""

from __future__ import annotations

from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.failures import Failures
from merlin_study.fence import Fence
from merlin_study.outcome import Outcome
from merlin_study.outstanding import Outstanding
from merlin_study.plan import Plan
from merlin_study.runtimes import Runtimes
from merlin_study.taskset import TaskSet

MAX_LOSSES: Final = 8
"""Holders, or hosts of theirs, that may be lost in turn with the same task. A chunk is cut to an eighth of the largest at each loss
(`merlin_operator.unroll`), so a task that kills its agents is alone in its chunk long before; the last two times no other such chunk
of its queue and size is beside it."""


RESTART: Final = "restart:"
"""What the token of a restart begins with."""
EXCUSED: Final = "excused:"
"""What the token of a verdict on a host's failures begins with."""


class Judged(Outstanding):
    """What is out of a study, under the operator's verdicts."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.lost: list[int] = [0] * len(plan.steps)
        self.runtimes = Runtimes(len(plan.steps))
        self.failures = Failures()
        self.honoured: set[str] = set()
        """Tokens of restarts and purges that were carried out: none of them is asked for twice."""
        self.noted = False
        """Whether the requests that stood in the study from the beginning are known."""
        self.exhausted = 0
        """Tasks that were failed because `MAX_LOSSES` holders were lost with them."""
        self.last_at: float | None = None
        self.entries = 0
        """How many entries of the log were folded."""
        self._fold_now = 0.0

    @property
    def generation(self) -> int:
        """How often tasks that were over began anew: restarts, with those that stood in the study from its beginning, and excuses."""
        return sum(token.startswith((RESTART, EXCUSED)) for token in self.honoured)

    def _note(self, entry: wire.Noted) -> None:
        self.noted = True
        self.honoured.update(entry.tokens)

    # Chunks that nobody runs any more

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
        if not fence.chunk.scan:
            self.late.lose(fence.chunk, fence.serial)
        if self._inherited(fence):
            return
        self._close(entry.fence)
        if fence.chunk.scan:
            self._take_back(fence)
            return
        self._lost_with(fence, entry.agent)

    def _lost_with(self, fence: Fence, agent: str) -> None:
        """Have what is open of a fence wait as lost with its holder, or with a host of that one's; after too many it is failed."""
        self.lost[fence.chunk.step] += fence.open.bit_count()
        chain = (*fence.chunk.lost, wire.LostHolder(fence=fence.chunk.fence, agent=agent))
        if len(chain) < MAX_LOSSES:
            self._again(fence, self._fold_now, lost=chain)
        elif (tasks := fence.remaining) is not None:
            self._exhaust(fence.chunk, tasks, chain)

    def _exhaust(self, chunk: wire.Chunk, tasks: TaskSet, chain: tuple[wire.LostHolder, ...]) -> None:
        """Fail tasks that were lost with one holder after the other."""
        self.exhausted += len(tasks)
        code = self.failures.keep_lost(chunk.step, tasks, [each.agent for each in chain])
        self.dag.finish(chunk.step, tasks, Outcome.SOFT_FAILED, code=code)

    def _catch_up(self, chunk: wire.Chunk) -> None:
        """Conclude from a chunk that another operator issued what had happened before: what it holds waits no more.

        The holders that it names were lost, also where the log that said so is gone.
        """
        if self.steps[chunk.step].issued.read(chunk.tasks.first, chunk.tasks.width) & chunk.tasks.bits:
            self._backlog.drop_out([(chunk.step, chunk.tasks)], upto=chunk.attempt)
        for lost in chunk.lost:
            fence = self.fences.get(lost.fence)
            if fence is not None and fence.holder == lost.agent:
                self._supersede(fence, [chunk.tasks], chunk.lost)
            elif fence is None and lost.fence not in self.closed:
                self.late.supersede(lost.fence, chunk.tasks)
            elif fence is None:
                self.late.infer_lost(lost.fence, chunk)

    def _supersede(self, fence: Fence, by: list[TaskSet], lost: tuple[wire.LostHolder, ...]) -> None:
        """Close a fence that was called lost: what no later chunk has of it waits."""
        self._close(fence.chunk.fence)
        self.late.lose(fence.chunk, fence.serial)
        for tasks in by:
            fence.open &= ~tasks.bits_from(fence.chunk.tasks.first)
        self._again(fence, self._fold_now, lost=lost)

    def _repair(self, entry: wire.Repaired) -> None:
        """Take the log as whole, if it has all that the verdict speaks of: what is without its claim never ran, what is out does not wait."""
        if entry.entries >= self.entries:
            return
        self.late.repair(entry.epoch, self.fences)
        self.next_fence = max(self.next_fence, wire.first_fence(self.late.repaired))
        self._backlog.drop_twice()
        self.settle_waiting()

    # Tasks that are dropped, or run again

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

    def _anew(self, entry: wire.Restarted | wire.Excused) -> None:
        """Have tasks that are over run again; a verdict that was honoured before changes nothing."""
        if entry.token in self.honoured:
            return
        self.honoured.add(entry.token)
        if isinstance(entry, wire.Restarted):
            self._restart(entry)
        elif not self.stops.cancelled:
            self._excuse(entry)

    def _restart(self, entry: wire.Restarted) -> None:
        """Open a new generation of the tasks that a restart names."""
        self.stops.restart()
        self._drop_over()
        again = self.dag.reopen(entry)
        self._keep_running(again)
        self.scan.settle(entry)
        if entry.scan:
            self.scan.begin(entry, self.plan, self.steps)
        self.late.reopen(again)

    def _keep_running(self, again: list[Bitmap]) -> None:
        """Have tasks that run again, a bitmap per step, stay with who runs them now: one that was lost had succeeded beside that."""
        for fence in self.fences.values():
            first, running = fence.chunk.tasks.first, fence.remaining
            if fence.holder is None or fence.chunk.scan or running is None:
                continue
            bits = again[fence.chunk.step].read(first, fence.chunk.tasks.width) & running.bits_from(first)
            if (tasks := TaskSet.from_bits(first, bits)) is not None:
                self.steps[fence.chunk.step].issue(tasks)

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
            self._keep_running(again)
            self.lost[each.step] += back + len(again[each.step])
            share = len(tasks) / len(each.tasks)
            self.runtimes.take_off(each.step, tried=len(tasks), seconds=each.seconds * share)
            self.failures.forget(again)
