"""What the engine shows, as Kubernetes objects: studies as their status, batch jobs as Allocations.

`ClusterBoard.show` only takes note of what is to be shown; `ClusterBoard.run` writes it at a pace. So neither a slow nor
an absent API server ever holds up the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from merlin_operator import allocations, expiry
from merlin_operator.board import AgentView
from merlin_operator.cluster.api import CHANGED, Api, ApiError, Traffic
from merlin_operator.cluster.statuses import Statuses
from merlin_operator.view import StudyView

logger = logging.getLogger(__name__)

EXPIRY_INTERVAL: Final = 5.0
"""Seconds between two looks for Studies that have outlived their end."""
ALLOCATIONS_PACE: Final = 1 / 5
"""Seconds between any two writes of Allocations."""


class ClusterBoard:
    """A `board.Board` that shows studies as their status and batch jobs as Allocations."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.views: Sequence[StudyView] = ()
        self.agents: Sequence[AgentView] = ()
        self._statuses = Statuses(api)
        self._allocations = allocations.Ledger()

    @property
    def traffic(self) -> Traffic:
        """How much was asked of the API server."""
        return self.api.traffic

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Take note of the present state; it is written soon."""
        self.views, self.agents = views, agents
        self._statuses.note(views, news)
        self._allocations.note(agents)

    async def run(self) -> None:
        """Write what is to be shown, until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._statuses.run())
            lanes.create_task(self._write_allocations())
            lanes.create_task(self._delete_expired())

    async def flush(self) -> None:
        """Write what is left of the studies, without regard to each study's own interval: the operator ends."""
        await self._statuses.flush()

    async def _delete_expired(self) -> None:
        while True:
            for ref in expiry.expired(self.views, time.time()):
                try:
                    await self.api.delete_study(ref)
                except ApiError as error:
                    if error.status not in (404, *CHANGED):
                        logger.warning("study not deleted, trying again: study=%s error=%s", ref.name, error)
            await asyncio.sleep(EXPIRY_INTERVAL)

    async def _write_allocations(self) -> None:
        while True:
            try:
                await self._write_changes()
                await asyncio.sleep(1.0)
            except ApiError as error:
                self._allocations.learnt = False
                logger.warning("allocations not written, trying again: error=%s", error)
                await asyncio.sleep(10.0)

    async def _write_changes(self) -> None:
        if not self._allocations.learnt:
            self._allocations.learn(await self.api.allocations())
        for change in self._allocations.changes(datetime.now(UTC)):
            try:
                uid = await self._write_change(change)
            except ApiError as error:
                if error.status not in (400, 422):
                    raise
                logger.warning("allocation refused, not shown: change=%s error=%s", type(change).__name__, error)
                self._allocations.refused(change)
            else:
                self._allocations.done(change, datetime.now(UTC), uid=uid)
            await asyncio.sleep(ALLOCATIONS_PACE)

    async def _write_change(self, change: allocations.Change) -> str:
        """Carry a change out; return the uid of an object that was made."""
        match change:
            case allocations.Create(body):
                return await self.api.create_allocation(body)
            case allocations.Update(name, status):
                await self.api.patch_allocation_status(name, {"status": status})
            case allocations.Delete(name):
                await self.api.delete_allocation(name)
            case allocations.Tell():
                await self.api.tell_of_allocation(change)
        return ""
