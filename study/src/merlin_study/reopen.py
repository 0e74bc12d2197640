"""Which tasks a restart reopens: those that it names, and what depends on them, as masks over the edges of the plan.

A task that was cancelled because another failed has never run; it comes back with the one that it waited for. What
depends on a reopened task and has run stays as it is, unless the restart asks for dependants too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from merlin_study import wire
from merlin_study.bitmap import BLOCK_BITS, Bitmap
from merlin_study.outcome import Outcome
from merlin_study.plan import INFO_STEP, EdgeKind, Plan
from merlin_study.readiness import Readiness
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet

WINDOW = BLOCK_BITS
"""Tasks that are looked at at once: a whole block of a bitmap, which is then set or dropped without being copied."""


def windows(total: int | None) -> Iterator[tuple[int, int]]:
    """Yield (first, width) of ranges that cover a step."""
    for first in range(0, total or 0, WINDOW):
        yield first, min(WINDOW, (total or 0) - first)


def reopened(entry: wire.Restarted, plan: Plan, steps: Sequence[StepTasks], readiness: Readiness) -> list[Bitmap]:
    """Return, per step, the tasks that a restart reopens: each of them is over."""
    again = [Bitmap() for _ in steps]
    for step, tasks in enumerate(steps):
        if step in entry.steps and plan.steps[step].name != INFO_STEP:
            for first, width in windows(tasks.total):
                _add(again[step], first, named(entry, tasks, first, width))
        # Steps stand in topological order, so all that reopens this one is known by now.
        if any(edge.kind is EdgeKind.ALL and len(again[edge.parent]) for edge in plan.steps[step].edges):
            for first, width in windows(tasks.total):
                _follow(again[step], tasks, TaskSet(first=first, width=width), everything=entry.dependants)
        for found in again[step].sets(WINDOW):
            for child, waits in readiness.dependants(step, found, barriers=False):
                _follow(again[child], steps[child], waits, everything=entry.dependants)
    return again


def named(entry: wire.Restarted, tasks: StepTasks, first: int, width: int) -> int:
    """Return the bits of those tasks of a range that the restart itself names."""
    over = tasks.final.read(first, width)
    if entry.codes is None:
        chosen = over & ~tasks.succeeded.read(first, width)
    else:
        chosen = tasks.succeeded.read(first, width) if 0 in entry.codes else 0
        for (_, code), members in tasks.ended.items():
            if code in entry.codes:
                chosen |= members.read(first, width)
    if not entry.tasks:
        return chosen & over
    within = 0
    for each in entry.tasks:
        within |= each.within(first, width)
    return chosen & over & within


def _follow(again: Bitmap, tasks: StepTasks, waits: TaskSet, *, everything: bool) -> None:
    """Add what of a set comes back because a task that it waits for does."""
    bits = waits.bits & tasks.final.read(waits.first, waits.width)
    if not everything:
        idle = tasks.ended.get((Outcome.CANCELLED, None))
        bits &= idle.read(waits.first, waits.width) if idle is not None else 0
    _add(again, waits.first, bits)


def _add(bitmap: Bitmap, first: int, bits: int) -> None:
    if (found := TaskSet.from_bits(first, bits)) is not None:
        bitmap.add(found)
