"""What travels on the task stream: chunks, and the cursor that is published with them."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from merlin_study.taskset import TaskSet
from merlin_study.wire.message import Message

EPOCH_SHIFT: Final = 20
"""The bits of a fence below its epoch."""


def first_fence(epoch: int) -> int:
    """Return the lowest fence of an epoch: above all fences of earlier ones, whose number nobody may know any more.

    An epoch after the first is a time in Unix seconds, so this holds for a million chunks a second; 53 bits suffice until 2242.
    """
    return 1 if epoch <= 1 else epoch << EPOCH_SHIFT


def epoch_of(fence: int) -> int:
    """Return the epoch that a fence was issued in."""
    return max(1, fence >> EPOCH_SHIFT)


class LostHolder(Message):
    """A fence that was called lost, and who held it: its outcome log tells what it still finished."""

    fence: int
    agent: str


class Chunk(Message):
    """The unit of delivery: a range of one step's tasks, to be tried for the ``attempt``-th time.

    ``step`` is an index into the plan's steps; ``samples`` the length of the sample table (0: none).
    ``restart`` asks for the step's restart script where it has one. ``lost`` names earlier holders of these tasks.
    ``fresh``: a mark of an earlier success says nothing, the tasks run again. ``rehearse``: seconds after which each task
    is reported as done instead of being run; None runs it. ``generation`` counts the restarts that had been asked of the
    study by then. ``scan``: nothing runs; whether the marks of these tasks stand is reported.
    """

    study: str
    plan: str
    epoch: int
    fence: int = Field(ge=1)
    step: int = Field(ge=0)
    tasks: TaskSet
    attempt: int = Field(ge=1)
    samples: int = 0
    restart: bool = False
    lost: tuple[LostHolder, ...] = ()
    fresh: bool = False
    rehearse: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    generation: int = Field(default=0, ge=0)
    scan: bool = False


class Cursor(Message):
    """How far publication got: written in one batch with the chunks that it counts."""

    study: str
    plan: str
    epoch: int
    next_fence: int
