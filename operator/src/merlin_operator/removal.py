"""Removing a study: the word that stops its agents, then the purge of all that the broker holds of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from merlin_operator.core import Core
from merlin_operator.stream import Outage
from merlin_study import subjects, wire

log = logging.getLogger(__name__)

KEEP_WORD: Final = 86_400.0
"""Seconds that the word on a deleted study is kept for agents that were out of reach."""


class Remover:
    """Cleans what a study has in the broker; see the module."""

    def __init__(self, core: Core, turn: asyncio.Lock) -> None:
        self.core, self._turn = core, turn
        self._gone_before: frozenset[str] = frozenset()

    async def remove(self, uid: str, *, timeout: float, retain: bool = False) -> bool:  # noqa: ASYNC109 several requests
        """Clean up as soon as the broker is there; False where that took longer than ``timeout`` seconds.

        With ``retain`` agents stop, and nothing waits any more; plan and log stay.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if await self._try(uid, retain=retain):
                        break
                    await asyncio.sleep(0.5)
        except TimeoutError:
            return False
        return True

    async def _try(self, uid: str, *, retain: bool) -> bool:
        await self.core.broker.wait_connected()
        try:
            async with self._turn:
                await self._clean(uid, retain=retain)
        except Outage:
            return False
        return True

    async def sweep(self, live: frozenset[str]) -> None:
        """Clean what the broker holds of studies that are gone; call it with the uids of those that there are.

        What was deleted while the broker was away, and reports that came after a purge. A study counts as gone when it is
        in no list and not known to the engine at two calls in turn.
        """
        core, space = self.core, self.core.space
        there = {
            subject.rpartition(".")[2] for subject in await core.broker.subjects(space.task_stream, space.all_cursors)
        }
        for subject in await core.broker.subjects(space.report_stream, space.all_verdicts):
            there.add(subjects.parse_report(subject)[0])
        gone = (there | core.strays) - live - core.studies.keys()
        for uid in sorted(gone & self._gone_before):
            if not await self._is_retained(uid):
                log.info("cleaning what is left of a study that is gone uid=%s", uid)
                async with self._turn:
                    await self._clean(uid, retain=False)
        core.strays -= self._gone_before | core.studies.keys()
        self._gone_before = frozenset(gone)

    async def _is_retained(self, uid: str) -> bool:
        stored = await self.core.broker.last(self.core.space.control_stream, self.core.space.control(uid))
        word = self.core.read_own(wire.Control, uid, stored)
        return word is not None and word.retained

    async def _clean(self, uid: str, *, retain: bool) -> None:
        """Tell agents to stop, then purge: tasks first, then the log, so that no step of it can be misread as loss.

        The word to stop stays for a day, for agents that are out of reach now; the broker drops it by itself.
        """
        space, broker = self.core.space, self.core.broker
        word, subject = wire.Control(study=uid, cancelled=True, retained=retain), space.control(uid)
        await broker.put(subject, self.core.seal(uid, subject, word.encode()), keep=None if retain else KEEP_WORD)
        await broker.purge(space.task_stream, space.chunks_of(uid))
        if retain:
            return
        await broker.purge(space.task_stream, space.cursor(uid))
        await broker.purge(space.report_stream, space.reports_of(uid))
        await broker.purge(space.control_stream, space.plans_of(uid))
        await broker.purge(space.control_stream, space.born_of(uid))
        await broker.purge(space.control_stream, space.family(uid))
        await broker.purge(space.control_stream, space.files_of(uid))
        await broker.purge(space.control_stream, space.snapshot(uid))
        await broker.purge(space.control_stream, space.kept_of(uid))
        await broker.purge(space.control_stream, space.finale(uid))
