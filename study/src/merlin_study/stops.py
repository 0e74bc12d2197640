"""What shall run no more: what a cancellation, a purge or a task's own exit code put an end to, until a restart."""

from __future__ import annotations

from merlin_study import wire
from merlin_study.geometry import Geometry
from merlin_study.outcome import HARD_FAIL, STOP_WORKERS
from merlin_study.plan import Plan
from merlin_study.taskset import TaskSet


class Stops:
    """What was asked to end, and what of it the operator has carried out."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.kill_below = 0
        """What runs of fences below this ends."""
        self.cancelled = False
        """Cancelled, and not restarted since."""
        self.drop_below: list[int] = [0] * plan.first_lanes[-1]
        """Per lane, those of all steps numbered on: what fences below this hand back is cancelled."""
        self.hard_failed: dict[str, float] = {}
        """Queues that a task stopped with `HARD_FAIL`, and when."""
        self.dropped_queues: set[str] = set()
        """Those of them whose waiting tasks were dropped."""
        self.stop_asked: float | None = None
        """When a task asked to stop the agents (`STOP_WORKERS`)."""

    def note_code(self, code: int, *, queue: str, at: float) -> None:
        """Note what an exit code asks for beyond its own task, which ran in ``queue`` and ended at ``at`` (Unix seconds)."""
        if code == HARD_FAIL:
            self.hard_failed.setdefault(queue, at)
        elif code == STOP_WORKERS and self.stop_asked is None:
            self.stop_asked = at

    def drop(self, entry: wire.Dropped) -> list[tuple[int, int]]:
        """Note a verdict; return the lanes that it names, as (step, lane of that step)."""
        if entry.cause == "cancel":
            self.cancelled, self.kill_below = True, max(self.kill_below, entry.below)
        if entry.queue is not None:
            self.dropped_queues.add(entry.queue)
        lanes = [
            (step, lane)
            for step, planned in enumerate(self._plan.steps)
            for lane, each in enumerate(planned.lanes)
            if entry.queue is None or each.queue == entry.queue
        ]
        for step, lane in lanes:
            number = self._plan.first_lanes[step] + lane
            self.drop_below[number] = max(self.drop_below[number], entry.below)
        return lanes

    def restart(self) -> None:
        """Take back what holds for all that comes; what chunks of before hand back stays dropped."""
        self.cancelled, self.stop_asked = False, None
        self.hard_failed.clear()
        self.dropped_queues.clear()

    def is_dropped(self, fence: int, *, lane: int) -> bool:
        """Whether what a fence leaves of a lane is cancelled; lanes of all steps are numbered on."""
        return fence < self.drop_below[lane]

    def spared(self, step: int, tasks: TaskSet, *, fence: int, geometry: Geometry) -> TaskSet | None:
        """Return those of a step's tasks that are not dropped where they were in a chunk of this fence; None where all are."""
        bits, first_lane = tasks.bits, self._plan.first_lanes[step]
        for lane in range(len(self._plan.steps[step].lanes)):
            if self.is_dropped(fence, lane=first_lane + lane):
                runs = geometry.runs(step, lane)
                bits &= 0 if runs is None else ~runs.mask(tasks.first, tasks.width)
        return TaskSet.from_bits(tasks.first, bits)
