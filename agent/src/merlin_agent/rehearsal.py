"""A rehearsed chunk: each task is reported as done after a while instead of being run; nothing is written for it.

Everything else is as in a real run: routes, claims, reports, the outcome log. A rehearsal of 0 seconds resolves a chunk as
the one range that it is, so its cost does not depend on how many tasks that are. Only the samples are really made, since
nobody knows their number before.
"""

from __future__ import annotations

import time

from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.slot import Slot
from merlin_agent.slots import Work
from merlin_study.outcome import Outcome
from merlin_study.wire import Chunk, Result

LOOK: float = 0.2
"""Seconds between two looks whether the chunk was stopped."""


def at_once(chunk: Chunk) -> list[Result]:
    """Return what a chunk comes to that is rehearsed in no time; nothing where its tasks take some, or run."""
    return [Result(outcome=Outcome.SUCCEEDED, code=0, tasks=chunk.tasks)] if chunk.rehearse == 0 else []


class RehearsedWork(Work):
    """`slots.Work` that passes time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        """See `slots.Work`. A task of a chunk that is stopped, for whatever reason, is handed back: nothing was begun."""
        del slot
        began = time.monotonic()
        while (left := began + self._seconds - time.monotonic()) > 0:
            if run.stopped is not None:
                return Ended(task, None)
            time.sleep(min(left, LOOK))
        return Ended(task, Outcome.SUCCEEDED, 0, time.monotonic() - began)
