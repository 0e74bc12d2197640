"""Removing a study: the word that stops its agents, then the purge of all that the broker holds of it."""

from __future__ import annotations

import asyncio
from typing import Final

from merlin_operator.core import Core
from merlin_operator.stream import Outage
from merlin_study import wire

KEEP_WORD: Final = 86_400.0
"""Seconds that the word on a deleted study is kept for agents that were out of reach."""


class Remover:
    """Cleans what a study has in the broker; see the module."""

    def __init__(self, core: Core, turn: asyncio.Lock) -> None:
        self.core, self._turn = core, turn

    async def remove(self, uid: str, *, timeout: float) -> bool:  # noqa: ASYNC109 the bound covers several requests
        """Clean up as soon as the broker is there; False where that took longer than ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if await self._try(uid):
                        break
                    await asyncio.sleep(0.5)
        except TimeoutError:
            return False
        return True

    async def _try(self, uid: str) -> bool:
        await self.core.broker.wait_connected()
        try:
            async with self._turn:
                await self._clean(uid)
        except Outage:
            return False
        return True

    async def _clean(self, uid: str) -> None:
        """Tell agents to stop, then purge: tasks first, then the log, so that no step of it can be misread as loss.

        The word to stop stays for a day, for agents that are out of reach now; the broker drops it by itself.
        """
        space, broker = self.core.space, self.core.broker
        word, subject = wire.Control(study=uid, cancelled=True), self.core.space.control(uid)
        await broker.put(subject, self.core.seal(uid, subject, word.encode()), keep=KEEP_WORD)
        await broker.purge(space.task_stream, space.chunks_of(uid))
        await broker.purge(space.task_stream, space.cursor(uid))
        await broker.purge(space.report_stream, space.reports_of(uid))
        await broker.purge(space.control_stream, space.plans_of(uid))
        await broker.purge(space.control_stream, space.born_of(uid))
        await broker.purge(space.control_stream, space.family(uid))
        await broker.purge(space.control_stream, space.files_of(uid))
