"""What of a study is out, in chunks that were published, and what waits to be out again.

A task is in at most one chunk that is out, but for a log that was lost: of that chunks of several epochs may be claimed late
(`Outstanding._beside`). What a chunk leaves without a result waits, unless it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from merlin_study import wire
from merlin_study.backlog import Backlog, Waiting
from merlin_study.bitmap import Bitmap
from merlin_study.dag import Dag
from merlin_study.fence import Fence
from merlin_study.geometry import Geometry
from merlin_study.late import Late
from merlin_study.outcome import Outcome
from merlin_study.plan import Lane, Plan
from merlin_study.scan import Scan
from merlin_study.steptasks import StepTasks
from merlin_study.stops import Stops
from merlin_study.taskset import TaskSet


class Outstanding:
    """The tasks of a study, the chunks that have some of them, and what waits."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dag = Dag(plan)
        self.stops = Stops(plan)
        self.scan = Scan(len(plan.steps))
        """The look at the marks in the workspace that a restart asked for."""
        self.late = Late()
        self.fences: dict[int, Fence] = {}
        self.next_fence = 1
        self.closed = Bitmap()
        """Fences of which nothing more can come."""
        self._backlog = Backlog()

    @property
    def steps(self) -> list[StepTasks]:
        """The tasks of each step."""
        return self.dag.steps

    @property
    def geometry(self) -> Geometry:
        """How tasks are numbered; the samples count once they are measured."""
        return self.dag.geometry

    def lane(self, chunk: wire.Chunk) -> Lane:
        """Return what a chunk's tasks have in common."""
        return self.geometry.lane(chunk.step, chunk.tasks.first)

    def is_dropped(self, chunk: wire.Chunk) -> bool:
        """Whether what a chunk leaves is cancelled."""
        return self.stops.is_dropped(chunk.fence, lane=self.geometry.lane_number(chunk.step, chunk.tasks.first))

    def is_fresh(self, step: int, tasks: TaskSet) -> bool:
        """Whether marks of an earlier success may lie in the directories of these tasks and say nothing any more."""
        return bool(self.steps[step].fresh.read(tasks.first, tasks.width) & tasks.bits)

    @property
    def unrolled(self) -> bool:
        """Whether every task has been issued at least once."""
        return all(step.total is not None and step.handed_out >= step.total for step in self.steps)

    # A chunk goes out

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

    def _is_over(self, fence: int) -> bool:
        """Whether nothing more can come of a fence: it is closed, or nobody had claimed it when its epoch was."""
        return fence in self.closed or (self.late.is_past(fence) and fence not in self.fences)

    def _running(self, step: int) -> Bitmap:
        running = Bitmap()
        for fence in self.fences.values():
            if fence.chunk.step == step and fence.holder is not None and (tasks := fence.remaining) is not None:
                running.add(tasks)
        return running

    def _beside(self, chunk: wire.Chunk) -> Iterator[Fence]:
        """Yield what else is out of a step where some task may be out twice: of a log that was lost, chunks of several epochs may be claimed late."""
        if not chunk.scan and wire.epoch_of(chunk.fence) < self.late.repaired:
            for number, fence in self.fences.items():
                if number != chunk.fence and fence.chunk.step == chunk.step and not fence.chunk.scan:
                    yield fence

    # It is over, or comes back

    def withdraw(self, chunk: wire.Chunk) -> None:
        """Take back a chunk that is not in the stream (or not known to be): its tasks wait to be issued again at once."""
        gone = self.fences.get(chunk.fence)
        if gone is not None and gone.holder is None and gone.chunk == chunk:
            del self.fences[chunk.fence]
            self._take_back(gone)

    def _close(self, number: int) -> None:
        del self.fences[number]
        self.closed.add_range(number, 1)
        self.late.close(number)

    def _inherited(self, fence: Fence) -> bool:
        """Whether a fence whose holder is done with it goes on with another one, who had claimed it, too."""
        heir = self.late.heir(fence.chunk.fence)
        if heir is not None:
            self.fences[fence.chunk.fence] = heir
        return heir is not None

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
        """Have what is without a result of a fence that is over wait until ``at``."""
        if fence.chunk.scan:
            self._take_back(fence)
        elif (tasks := self._nobody_elses(fence)) is not None:
            chunk = fence.chunk
            self._wait(chunk, tasks, at, attempt=chunk.attempt, restart=chunk.restart, lost=lost)

    def _nobody_elses(self, fence: Fence) -> TaskSet | None:
        """Return the tasks without a result that no other chunk has, too: those come back with the last one that has them."""
        first, left = fence.chunk.tasks.first, fence.open
        for other in self._beside(fence.chunk):
            if (rest := other.remaining) is not None:
                left &= ~rest.bits_from(first)
        return TaskSet.from_bits(first, left)

    # What waits

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

    def _drop_over(self) -> None:
        """Forget of what waits the tasks that are over; one that is opened anew would be issued twice."""
        self._backlog.drop([step.final for step in self.steps])

    def due(self, now: float) -> Waiting | None:
        """Take the next retry or rest that is due at ``now`` (Unix seconds), or None. What is over by now is left out."""
        return self._backlog.due(now, [step.final for step in self.steps])

    def put_back(self, waiting: Waiting) -> None:
        """Return what `due` gave and what was not issued."""
        self._backlog.put_back(waiting)

    def settle_waiting(self) -> None:
        """Drop from what waits the tasks that are out after all, in a chunk that was found in the stream."""
        out = ((fence.chunk.step, fence.remaining) for fence in self.fences.values())
        self._backlog.drop_out((step, tasks) for step, tasks in out if tasks is not None)

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
