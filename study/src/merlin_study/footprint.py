"""How many files a study will make in its workspace, compared with the room that there is: a warning, never an obstacle.

Only what the layout itself makes is counted. What the tasks write besides, and how many bytes, nobody knows before they ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from merlin_study import lean, packed
from merlin_study.plan import Plan

FULL: Final = 5
"""Directory, script, two outputs, mark."""
IN_PLACE: Final = 4
"""The same without the mark, for tasks of ``outputs: lean`` that have a directory from the beginning."""


class Room(NamedTuple):
    """How many more files somebody lets us make, and who."""

    files: int
    source: str


def of_tasks(plan: Plan) -> Iterator[int]:
    """Yield for each step how many files and directories each task makes at least; logs and archives of chunks do not count."""
    on_nodes = packed.steps(plan)
    for step in range(len(plan.steps)):
        if not lean.applies(plan, step):
            yield FULL
        else:
            yield IN_PLACE if lean.in_place(plan, step) and step not in on_nodes else 0


def warning(plan: Plan, totals: Mapping[str, int], directory: str, rooms: Iterable[Room]) -> str:
    """Return what to tell a user whose study will not fit; empty where it will, as far as anybody knows.

    Args:
        plan: The study.
        totals: How many tasks each step has, by name.
        directory: The study's directory.
        rooms: What there is.
    """
    need = sum(each * totals.get(step.name, 0) for each, step in zip(of_tasks(plan), plan.steps, strict=True))
    least = min(rooms, default=None)
    if least is None or need <= least.files:
        return ""
    tasks = sum(totals.values())
    cure = {"full": "`outputs: lean` or `outputs: packed`", lean.LEAN: "`outputs: packed`"}.get(plan.outputs)
    return (
        f"{directory}: expected room for {need:,} files and directories, which outputs: {plan.outputs} makes for {tasks:,} tasks "
        f"beside what they write themselves; found room for {max(0, least.files):,} ({least.source}). Free some, have the limit "
        f"raised{f', or use {cure}' if cure else ''}; the study runs on until there is no room"
    )
