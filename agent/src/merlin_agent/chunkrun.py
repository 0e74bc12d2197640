"""A chunk's life in this agent, as a state machine without files, processes, threads or clock.

    claimed ──feed──► running ──last task ended──► over
        │                 └──stop──► running tasks end ──► over
        └──adopt: what a lost holder still finished is resolved without running

Slots take tasks one by one; what ended goes to `report.Pending`. The chunk is over when nothing of it runs and nothing may
start; what has no result then is handed back by the final report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk, Failure, Result, SampleFacts


class Stop(StrEnum):
    """Why nothing more of a chunk starts, or a task of it was ended."""

    CANCELLED = "cancelled"
    HANDED_BACK = "handed back"
    HOST_LOST = "host lost"
    """Of a task alone: a host that it ran over died. It is handed back, but such losses are counted."""


class Ended(NamedTuple):
    """What became of a task. ``outcome`` None: it has none and is handed back; ``problem`` says why, once for all.

    ``failure`` tells it in full, also that a task which is handed back took a host with it.

    ``full``: its disk or its quota is.
    """

    task: int
    outcome: Outcome | None
    code: int = 0
    seconds: float = 0.0
    failure: Failure | None = None
    samples: SampleFacts | None = None
    problem: str = ""
    full: bool = False


class ChunkRun:
    """One claimed chunk.

    `take` and `back` are called by slots under the feed's lock, everything else by the event loop. ``left`` counts what no slot has taken.
    """

    def __init__(self, chunk: Chunk, *, urgent: bool = False) -> None:
        self.chunk = chunk
        self.urgent = urgent
        self.adopted = 0
        self.stopped: Stop | None = None
        self.left = 0
        self.fed = False
        self._taken = self._ended = 0
        self._bits = chunk.tasks.bits
        self._rest: Iterator[int] = iter(())

    @property
    def step(self) -> tuple[str, int]:
        """Its step: the study's uid, and the step's number."""
        return self.chunk.study, self.chunk.step

    @property
    def unresolved(self) -> int:
        """How many tasks have neither run here nor been adopted."""
        return self._bits.bit_count() if not self.fed else self.left + self.running

    @property
    def running(self) -> int:
        """How many tasks slots have taken that have not ended."""
        return self._taken - self._ended

    @property
    def over(self) -> bool:
        """Whether nothing of the chunk runs and nothing more will."""
        return self.running == 0 and (self.stopped is not None or (self.fed and self.left == 0))

    def adopt(self, results: Iterable[Result]) -> list[Result]:
        """Resolve what a lost holder finished, before the chunk is fed; return what of it is new to us."""
        if self.fed:
            raise AssertionError("adopting results for tasks that may be running; this is a bug")
        new = []
        for result in results:
            bits = self._bits & result.tasks.bits_from(self.chunk.tasks.first)
            tasks = TaskSet.from_bits(self.chunk.tasks.first, bits)
            if tasks is not None:
                self._bits &= ~bits
                new.append(Result(outcome=result.outcome, code=result.code, tasks=tasks))
        return new

    def feed(self) -> None:
        """Let slots take what is unresolved."""
        self.left = 0 if self.stopped else self._bits.bit_count()
        rest = TaskSet.from_bits(self.chunk.tasks.first, self._bits)
        self._rest = iter(()) if rest is None else rest.indices()
        self.fed = True

    def take(self) -> int | None:
        """Return the next task to run, None when there is none."""
        if self.stopped is not None or self.left == 0:
            return None
        self.left -= 1
        self._taken += 1
        return next(self._rest)

    def take_more(self, count: int) -> list[int]:
        """Return up to so many more tasks to run."""
        return [task for _ in range(count) if (task := self.take()) is not None]

    def back(self, tasks: Iterable[int]) -> None:
        """Let tasks that were taken and have not begun be taken again, before the others."""
        again = list(tasks)
        self._taken -= len(again)
        self.left += len(again)
        self._rest = itertools.chain(again, self._rest)

    def ended(self) -> None:
        """Note that a task which a slot had taken ended."""
        self._ended += 1

    def stop(self, why: Stop) -> None:
        """Start nothing more; the first reason stands, but a cancelled study stays cancelled."""
        if self.stopped is None or why is Stop.CANCELLED:
            self.stopped = why
        self.left = 0
