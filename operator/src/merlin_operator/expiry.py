"""Which Studies have outlived their end: ``ttlSecondsAfterFinished``. Pure.

A study waits for those that its tasks started: they belong to it, and deleting it deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from merlin_operator.view import StudyRef, StudyView


def expired(views: Sequence[StudyView], now: float) -> list[StudyRef]:
    """Return the studies to delete at ``now`` (Unix seconds by the broker's clock)."""
    busy = {view.parent for view in views if view.parent and not _over(view)}
    busy |= {view.ref.uid for view in views if view.unborn}  # asked for and not made yet
    parents = {view.ref.uid: view.parent for view in views}
    pending = list(busy)
    while pending:  # an ancestor waits for all of its descendants
        above = parents.get(pending.pop(), "")
        if above and above not in busy:
            busy.add(above)
            pending.append(above)
    return [view.ref for view in views if _over(view) and view.ref.uid not in busy and _late(view, now)]


def _over(view: StudyView) -> bool:
    return view.finished or bool(view.faults)


def _late(view: StudyView, now: float) -> bool:
    ended = view.finished_at or view.progressed_at
    return view.ttl is not None and ended is not None and now >= ended + view.ttl
