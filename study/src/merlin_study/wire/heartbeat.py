"""An agent's sign of life: what it can take, what it holds, and the figures of what it ran."""

from __future__ import annotations

from typing import Final

from pydantic import Field, NonNegativeInt

from merlin_study.outcome import Outcome
from merlin_study.wire.message import Message

BUCKETS: Final = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)
"""Upper bounds, in seconds, of what a `Spread` counts; simulations run for days."""
MAX_QUEUES_TOLD: Final = 32
"""Queues of which a heartbeat tells figures; further ones are told together."""


MAX_FULL: Final = 100
"""Studies of which a heartbeat tells that their workspace is full."""


class AllocationFacts(Message):
    """The batch job that an agent runs in; ``ends_at`` is a Unix time (0: no limit known)."""

    scheduler: str = "none"
    job_id: str = ""
    nodes: int = 1
    ends_at: float = 0.0


_COUNTS: Final = len(BUCKETS) + 1


class Spread(Message):
    """How durations are spread since the agent started: how many up to each of `BUCKETS`, and above; their sum in seconds."""

    counts: tuple[NonNegativeInt, ...] = Field(default=(0,) * _COUNTS, min_length=_COUNTS, max_length=_COUNTS)
    seconds: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)


class QueueFigures(Message):
    """What an agent ran of a queue since it started: ended executions by outcome, how long they ran, how long they had waited.

    A task waits from the publication of its chunk until it starts, by the clocks of broker and agent.
    """

    queue: str
    outcomes: dict[Outcome, NonNegativeInt] = Field(default_factory=dict)
    ran: Spread = Spread()
    waited: Spread = Spread()


class Heartbeat(Message):
    """An agent's sign of life and what it can take; ``slots`` are cores. ``queues`` empty: any. ``holds``: fences started and not finished.

    ``memory``: MiB of its host that tasks may use; 0: not known, and not counted.
    ``nodes``: over how many hosts of so many cores it can start a task, its own among them; the one agent that leads those of its
    allocation says more than 1. ``full``: studies whose workspace has no room. ``leaving``: the agent drains and takes nothing
    more; ``left``: this is its last word. ``figures`` only ever grow. ``user``: whose processes it starts, as its host names them.
    ``assigned``: the number of the last `Assignment` that it obeyed.
    """

    agent: str
    site: str
    host: str
    pid: int
    version: str
    slots: int
    gpus: int = 0
    memory: int = Field(default=0, ge=0)
    nodes: int = 1
    busy: int = 0
    queues: tuple[str, ...] = ()
    allocation: AllocationFacts = AllocationFacts()
    holds: tuple[tuple[str, int], ...] = ()
    done: int = 0
    refused: int = 0
    figures: tuple[QueueFigures, ...] = Field(default=(), max_length=MAX_QUEUES_TOLD + 1)
    problems: tuple[str, ...] = ()
    full: tuple[str, ...] = Field(default=(), max_length=MAX_FULL)
    leaving: bool = False
    left: bool = False
    user: str = ""
    assigned: int = Field(default=0, ge=0)
