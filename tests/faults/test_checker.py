"""The checker itself: a history that keeps the promise passes, and each way to break it is found."""

from __future__ import annotations

from typing import Any

from merlin_study import wire
from merlin_study.ledger import MAX_LOSSES
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from tests.faults.checker import Finding, check

STUDY, STEP, TASKS = "u", 1, 2
BOTH = TaskSet(first=0, width=TASKS)


class Story:
    """A history, told event by event; time goes on by itself."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._sequence = 0

    def _say(self, event: str, *, pid: int, **more: object) -> None:
        self.events.append({"event": event, "at": len(self.events), "pid": pid, "study": STUDY, **more})

    def issue(self, fence: int, tasks: TaskSet = BOTH, *, lost: tuple[int, ...] = ()) -> wire.Chunk:
        """The operator issues a chunk."""
        holders = tuple(wire.LostHolder(fence=each, agent=f"agent-{each}") for each in lost)
        chunk = wire.Chunk(study=STUDY, plan="p", epoch=1, fence=fence, step=STEP, tasks=tasks, attempt=1, lost=holders)
        self._say("issued", pid=1, chunk=chunk.model_dump(mode="json"))
        return chunk

    def fold(self, entry: wire.Entry) -> None:
        """The operator folds a log entry."""
        self._sequence += 1
        self._say("folded", pid=1, sequence=self._sequence, entry=entry.model_dump(mode="json"))

    def claim(self, chunk: wire.Chunk) -> None:
        """An agent that is named after the fence starts it."""
        self.fold(wire.Start(agent=f"agent-{chunk.fence}", chunk=chunk))

    def run(self, chunk: wire.Chunk, *tasks: int) -> None:
        """Its holder runs tasks to their end."""
        for task in tasks:
            self._say("began", pid=100 + chunk.fence, step=STEP, task=task, fence=chunk.fence)
            self._say("ended", pid=100 + chunk.fence, step=STEP, task=task, fence=chunk.fence, outcome="succeeded")

    def report(self, chunk: wire.Chunk, tasks: TaskSet = BOTH) -> None:
        """Its holder reports their success."""
        result = wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=tasks)
        agent = f"agent-{chunk.fence}"
        self.fold(
            wire.Report(agent=agent, fence=chunk.fence, serial=1, step=STEP, attempt=1, results=(result,), final=True)
        )

    def lose(self, chunk: wire.Chunk) -> None:
        """Its holder is called lost."""
        self.fold(wire.Lost(fence=chunk.fence, agent=f"agent-{chunk.fence}"))

    def checked(self) -> Finding:
        """What the checker says of it."""
        return check(self.events, {STEP: TASKS})


def test_a_history_where_a_lost_holders_task_ran_again_keeps_the_promise() -> None:
    story = Story()
    story.claim(first := story.issue(1))
    story.run(first, 0)
    story.lose(first)
    story.claim(second := story.issue(2, lost=(1,)))
    story.run(second, 0, 1)
    story.report(second)
    found = story.checked()
    assert (found.faults, found.executions, found.repeated, found.losses) == ([], 3, 1, 1)


def test_a_task_that_nobody_told_of_is_missed() -> None:
    story = Story()
    story.claim(chunk := story.issue(1))
    story.run(chunk, 0, 1)
    story.report(chunk, TaskSet(first=0, width=1))
    assert story.checked().faults == ["step 1: 1 of 2 tasks have no outcome that stands"]


def test_a_task_that_ran_again_after_its_success_is_found() -> None:
    story = Story()
    story.claim(first := story.issue(1))
    story.run(first, 0, 1)
    story.report(first)
    story.claim(second := story.issue(2, TaskSet(first=0, width=1)))
    story.run(second, 0)
    issued, ran = sorted(story.checked().faults)
    assert "was issued with 1 tasks of step 1 that had succeeded, the first is 0" in issued
    assert "fence 2 ran it again after fence 1 (succeeded), without a verdict of loss" in ran


def test_a_task_with_which_as_many_holders_were_lost_as_may_be_has_its_outcome() -> None:
    story = Story()
    for fence in range(1, MAX_LOSSES + 1):
        assert story.checked().faults
        story.claim(chunk := story.issue(fence, lost=tuple(range(1, fence))))
        story.lose(chunk)
    assert story.checked().faults == []
