"""Looking at the marks of a chunk's tasks, and running none of them. Called in a thread: the file system may be slow."""

from __future__ import annotations

import os

from merlin_agent.chunklog import successes
from merlin_study import lean
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk, Result
from merlin_study.workspace import FINISHED, Layout


def look(layout: Layout, chunk: Chunk) -> list[Result]:
    """Return which tasks of a chunk have a mark (succeeded) and which have none (lost).

    The mark is ``MERLIN_FINISHED`` in a task's directory, under ``outputs: lean`` its record in a log of the step.

    Raises:
        OSError: the file system does not say.
    """
    if chunk.rehearse is not None:  # nothing was written for these
        return [Result(outcome=Outcome.SUCCEEDED, code=0, tasks=chunk.tasks)]
    if lean.applies(layout.plan, chunk.step):
        tasks = range(chunk.tasks.first, chunk.tasks.end)
        marked = set(successes(layout.task_logs(chunk.step), tasks))
    else:
        marked = {task for task in chunk.tasks.indices() if _exists(f"{layout.task_dir(chunk.step, task)}/{FINISHED}")}
    bits = sum(1 << task - chunk.tasks.first for task in marked if task in chunk.tasks)
    found = TaskSet.from_bits(chunk.tasks.first, bits)
    missing = TaskSet.from_bits(chunk.tasks.first, chunk.tasks.bits & ~bits)
    ends = ((Outcome.SUCCEEDED, found), (Outcome.LOST, missing))
    return [Result(outcome=outcome, code=0, tasks=tasks) for outcome, tasks in ends if tasks is not None]


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
