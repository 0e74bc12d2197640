"""The statuses of Studies: what is to be shown of each, written at a pace.

What counts is the latest state, never a queue of changes: whatever could not be written is written when it can be.

A study's first status for a generation is *acceptance*: from then on its science cannot be changed. It is written with
the resourceVersion of an object that has just been read with exactly the generation that was compiled. (The version at
the time of compiling would not do: kopf's own annotation, written meanwhile, raises it.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from merlin_operator import conditions
from merlin_operator.cluster.api import CHANGED, Api, ApiError, submission_of
from merlin_operator.view import StudyView

logger = logging.getLogger(__name__)

STUDY_INTERVAL: Final = 1.0
"""Seconds between two writes of one study's status."""
GONE_INTERVAL: Final = 60.0
"""Seconds until a study that the server does not have is looked for again: the engine forgets a deleted one before."""
STUDIES_PACE: Final = 1 / 20
"""Seconds between any two writes of statuses: an even pace, so that no second ever holds more than its share."""


@dataclass(slots=True)
class _Shown:
    """What the server shows of a study, as far as we know: `status` None means that it has to be read first."""

    view: StudyView | None = None
    status: dict[str, Any] | None = None
    generation: int = -1
    version: str | None = None
    not_before: float = 0.0


def _is_shown(shown: StudyView | None, view: StudyView) -> bool:
    return shown is view or shown == view  # of ten thousand studies few have a new view


class Statuses:
    """Writes the statuses of studies to the API server."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._shown: dict[str, _Shown] = {}
        self._stale: dict[str, StudyView] = {}
        """Those of the views that the server does not show yet, by uid."""
        self._news = asyncio.Event()

    def note(self, views: Sequence[StudyView], news: Sequence[StudyView] | None = None) -> None:
        """Take note of what is to be shown; it is written soon. ``news``: those that are others than before (None: any may be)."""
        for view in views if news is None else news:
            uid = view.ref.uid
            self._stale[uid] = view
            self._forget_shown(uid, self._shown.setdefault(uid, _Shown()))
        if len(self._shown) > len(views):
            there = {view.ref.uid for view in views}
            self._shown = {uid: shown for uid, shown in self._shown.items() if uid in there}
            self._stale = {uid: view for uid, view in self._stale.items() if uid in there}
        if self._stale:
            self._news.set()

    def _forget_shown(self, uid: str, shown: _Shown) -> None:
        """Take a view off those to be written where the server shows it."""
        if uid in self._stale and _is_shown(shown.view, self._stale[uid]):
            del self._stale[uid]

    async def run(self) -> None:
        """Write what is to be shown, the most urgent first, until cancelled."""
        while True:
            view = self._most_urgent()
            if view is None:
                await self._wait_for_news()
            elif await self._write(view):
                await asyncio.sleep(STUDIES_PACE)

    async def flush(self) -> None:
        """Write what is left without regard to each study's own interval: the operator ends."""
        for view in list(self._stale.values()):
            await self._write(view)

    async def _wait_for_news(self) -> None:
        # A study may be due without news: its interval is over, or the server was away.
        self._news.clear()
        # Not `asyncio.wait_for`: before Python 3.12 it drops a cancellation that comes together with the news.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUDY_INTERVAL / 4):
                await self._news.wait()

    def _most_urgent(self) -> StudyView | None:
        """What has just finished or was refused first, then what has waited longest."""
        now = time.monotonic()
        due = [view for uid, view in self._stale.items() if now >= self._shown[uid].not_before]
        return min(due, key=self._urgency, default=None)

    def _urgency(self, view: StudyView) -> tuple[bool, float]:
        return not conditions.is_over(view), self._shown[view.ref.uid].not_before

    async def _write(self, view: StudyView) -> bool:
        """Bring a study's status up to date; False where nothing had to be asked of the server."""
        shown = self._shown[view.ref.uid]
        shown.not_before = time.monotonic() + STUDY_INTERVAL
        try:
            if shown.status is None or shown.generation != view.generation:
                await self._read(view, shown)
            return shown.status is not None and await self._patch(view, shown)
        except ApiError as error:
            shown.status = None  # whatever the server has now, it is read before the next attempt
            if error.status == 404:
                shown.not_before += GONE_INTERVAL
            elif error.status in CHANGED and shown.version:
                # Somebody was faster (kopf's annotation, mostly): nothing was written, so this was not our turn.
                shown.not_before = time.monotonic() + STUDY_INTERVAL / 10
            else:
                logger.warning("status not written, trying again: study=%s error=%s", view.ref.name, error)
            return True

    async def _read(self, view: StudyView, shown: _Shown) -> None:
        """Learn what the server shows; a status of another generation is nothing that we could add to yet."""
        shown.status = None
        found = submission_of(await self._api.study(view.ref.name))
        if found.ref != view.ref:
            raise ApiError(404, "there is another study of this name")
        if found.generation == view.generation:
            accepted = found.status.get("observedGeneration") == found.generation
            shown.status, shown.generation = found.status, found.generation
            shown.version = None if accepted else found.resource_version

    async def _patch(self, view: StudyView, shown: _Shown) -> bool:
        assert shown.status is not None, "the status was read before"
        status = conditions.status_of(view, shown.status, datetime.now(UTC))
        patch = status_patch(shown.status, status)
        if patch:
            # Only a test of the uid keeps this off another study of the same name: a merge patch's uid is ignored here.
            tests = {"uid": view.ref.uid} | ({"resourceVersion": shown.version} if shown.version else {})
            guard = [{"op": "test", "path": f"/metadata/{key}", "value": value} for key, value in tests.items()]
            await self._api.patch_study_status(view.ref.name, guard + patch)
        shown.view, shown.status, shown.version = view, status, None
        self._forget_shown(view.ref.uid, shown)
        return bool(patch)


def status_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON patch (RFC 6902) that makes the status `new` of `old`, whole field by whole field."""
    if not old and new:
        return [{"op": "add", "path": "/status", "value": dict(new)}]
    gone = [{"op": "remove", "path": f"/status/{key}"} for key in old if key not in new]
    changed = [(key, value) for key, value in new.items() if key not in old or old[key] != value]
    return gone + [{"op": "add", "path": f"/status/{key}", "value": value} for key, value in changed]
