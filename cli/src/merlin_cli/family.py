"""A study and all that its steps started, as one progress: what a local run shows, waits for and ends with.

The study's own steps keep their rows; a study that a step started has one row, by the name of its directory. The whole is over
when everything that was asked for is there and over; an engine tells how many that are.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from merlin_cli import text
from merlin_cli.progress import Progress, StepCount, StepFailure

SHOWN: Final = 20
"""Rows of studies; of more, those that are over make one."""


class Family:
    """The last view of each study of a run, by its uid."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._views: dict[str, Progress] = {}

    def take(self, view: Progress) -> None:
        """Take a study's newest view."""
        self._views[view.ref.uid or self._root] = view

    def progress(self) -> Progress | None:
        """Return all of them as one; None as long as nothing is known of the root."""
        root = self._views.get(self._root)
        if root is None:
            return None
        others = [view for uid, view in self._views.items() if uid != self._root]
        return combined(root, others) if others or root.children or root.refused_children else root


def combined(root: Progress, others: Sequence[Progress]) -> Progress:
    """Return a study and what it started as one progress."""
    members = (root, *others)
    there = sum(member.children for member in members) == len(others)
    refused = sum(member.refused_children + bool(member.faults) for member in members)
    rates = [member.rate for member in members if member.rate]
    left = [member.remaining_seconds for member in members if not member.finished]
    known = [each for each in left if each is not None]
    return root.model_copy(
        update={
            "finished": there and all(member.finished for member in members),
            "succeeded": not refused and all(member.succeeded for member in members),
            "steps": (*root.steps, *_rows(others)),
            "rate": sum(rates) if rates else None,
            "remaining_seconds": max(known) if known and len(known) == len(left) else None,
            "waiting_for": next((member.waiting_for for member in members if member.waiting_for), ""),
            "first_failures": (*root.first_failures, *(each for other in others for each in _failures(other))),
            "doubled": sum(member.doubled for member in members),
            "refused_children": refused,
        }
    )


def _rows(others: Sequence[Progress]) -> list[StepCount]:
    """A row for each study, in the order of their start; the ones that are over share one where there are many."""
    rows = [(view.finished, _row(_name(view), view.steps)) for view in others]
    if len(rows) <= SHOWN:
        return [row for _, row in rows]
    over = [row for finished, row in rows if finished]
    return [_row(f"{len(over)} studies that are over", over), *(row for finished, row in rows if not finished)]


def _row(name: str, steps: Iterable[StepCount]) -> StepCount:
    steps = tuple(steps)
    fields = (*(name for name, _ in text.OUTCOMES), "running", "queued", "retrying", "lost")
    known = all(step.total is not None for step in steps)
    sums = {field: sum(getattr(step, field) for step in steps) for field in fields}
    return StepCount(name=name, total=sum(step.total or 0 for step in steps) if known else None, **sums)


def _name(view: Progress) -> str:
    return Path(view.workspace).name or view.ref.name


def _failures(view: Progress) -> list[StepFailure]:
    return [each.model_copy(update={"step": f"{_name(view)}: {each.step}"}) for each in view.first_failures]
