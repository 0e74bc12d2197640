"""Which Studies have outlived their end: ``ttlSecondsAfterFinished``. Pure.

A study waits for those that its tasks started: they belong to it, and deleting it deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from merlin_operator.view import StudyRef, StudyView


def expired(views: Sequence[StudyView], now: float) -> list[StudyRef]:
    """Return the studies to delete at ``now`` (Unix seconds by the broker's clock)."""
    late = [view for view in views if view.ttl is not None and _over(view) and _is_late(view, view.ttl, now)]
    if not late:
        return []  # as it nearly always is, and there may be ten thousand
    busy = {view.parent for view in views if view.parent and not _over(view)}
    busy |= {view.ref.uid for view in views if view.unborn}  # asked for and not made yet
    parents = {view.ref.uid: view.parent for view in views}
    pending = list(busy)
    while pending:  # an ancestor waits for all of its descendants
        above = parents.get(pending.pop(), "")
        if above and above not in busy:
            busy.add(above)
            pending.append(above)
    return [view.ref for view in late if view.ref.uid not in busy]


def _over(view: StudyView) -> bool:
    return view.finished or bool(view.faults)


def _is_late(view: StudyView, ttl: int, now: float) -> bool:
    ended = view.finished_at or view.progressed_at
    return ended is not None and now >= ended + ttl
