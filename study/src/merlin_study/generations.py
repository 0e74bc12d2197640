"""What the outcome logs of a workspace tell, in an order in which a later word stands.

Agents' logs stand side by side without a common clock, and a success absorbs whatever else is said of its task. Only a
restart that names tasks which had succeeded takes that back: their chunks are *fresh*, and each chunk says how many restarts
had been asked of the study by then, its generation. So entries are told generation by generation, and a task that was
begun anew in one is open before anything of that generation is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from merlin_study.outcomelog import Entry
from merlin_study.taskset import TaskSet


@dataclass(frozen=True, slots=True)
class Anew:
    """A restart began these tasks again, whatever had come of them before."""

    study: str
    step: int
    tasks: TaskSet


def told(logs: Iterable[Iterable[Entry]]) -> Iterator[Entry | Anew]:
    """Yield the entries of all logs, those of a later generation after all of an earlier one, else in the given order.

    Entries of the first generation are passed on one by one; those of later ones, which are few, are held until then.
    """
    later: dict[int, list[Entry]] = {}
    for entries in logs:
        generations: dict[int, int] = {}
        for entry in entries:
            if entry.start is not None:
                chunk = entry.start.chunk
                generation = chunk.generation
                generations.pop(chunk.fence, None)
                if generation:
                    generations[chunk.fence] = generation
            else:
                assert entry.report is not None
                generation = generations.get(entry.report.fence, 0)
            if generation:
                later.setdefault(generation, []).append(entry)
            else:
                yield entry
    for generation in sorted(later):
        for entry in later[generation]:
            if entry.start is not None and entry.start.chunk.fresh:
                yield Anew(entry.study, entry.start.chunk.step, entry.start.chunk.tasks)
        yield from later[generation]
