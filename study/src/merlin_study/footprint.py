"""How many files and bytes a study will make in its workspace, compared with the room that there is: a warning, never an obstacle.

Only what the layout itself makes at least is counted. What the tasks write besides, nobody knows before they ran.
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
SCRIPT: Final = 4096
"""Bytes of a script on the disk: quotas count blocks."""
RECORD: Final = 100
"""Bytes of a task's record in a log or an archive, at least."""
FILES: Final = "files and directories"
BYTES: Final = "bytes"


class Room(NamedTuple):
    """How much more somebody lets us make, who, and of what: `FILES` or `BYTES`."""

    left: int
    source: str
    of: str = FILES


class Needs(NamedTuple):
    """What each task of a step makes at least."""

    files: int
    bytes: int


def of_tasks(plan: Plan) -> Iterator[Needs]:
    """Yield for each step what each task makes at least; logs and archives of chunks do not count as files."""
    on_nodes = packed.steps(plan)
    for step in range(len(plan.steps)):
        if not lean.applies(plan, step):
            yield Needs(FULL, SCRIPT)
        elif lean.in_place(plan, step) and step not in on_nodes:
            yield Needs(IN_PLACE, SCRIPT + RECORD)
        else:
            yield Needs(0, RECORD)


def warning(plan: Plan, totals: Mapping[str, int], directory: str, rooms: Iterable[Room]) -> str:
    """Return what to tell a user whose study will not fit; empty where it will, as far as anybody knows.

    Args:
        plan: The study.
        totals: How many tasks each step has, by name.
        directory: The study's directory.
        rooms: What there is.
    """
    counts = [(each, totals.get(step.name, 0)) for each, step in zip(of_tasks(plan), plan.steps, strict=True)]
    needs = {
        FILES: sum(each.files * count for each, count in counts),
        BYTES: sum(each.bytes * count for each, count in counts),
    }
    least = min((room for room in rooms if needs[room.of] > room.left), key=_by_kind, default=None)
    if least is None:
        return ""
    tasks = sum(totals.values())
    cure = {"full": "`outputs: lean` or `outputs: packed`", lean.LEAN: "`outputs: packed`"}.get(plan.outputs)
    return (
        f"{directory}: expected room for {needs[least.of]:,} {least.of}, which outputs: {plan.outputs} makes for {tasks:,} tasks "
        f"beside what they write themselves; found room for {max(0, least.left):,} ({least.source}). Free some, have the limit "
        f"raised{f', or use {cure}' if cure else ''}; the study runs on until there is no room"
    )


def _by_kind(room: Room) -> tuple[bool, int]:
    return room.of == BYTES, room.left
