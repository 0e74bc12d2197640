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

LOOKS: Final = 3
"""How often all that the broker holds is looked through in vain on one connection, where it does not answer in time: the rest has its turn then."""


MOST_LISTED: Final = 300_000
"""Log entries up to which they are looked through one by one: the server takes some five microseconds for each, again for every page."""


class Remover:
    """Cleans what a study has in the broker; see the module."""

    def __init__(self, core: Core, turn: asyncio.Lock) -> None:
        self.core, self._turn = core, turn
        self._gone_before: frozenset[str] = frozenset()
        self._owed: dict[str, bool] = {}
        """Studies that could not be cleaned in time, and whether their log is to stay."""
        self._retained: set[str] = set()
        """Studies that are gone and whose log is to stay, as far as that was asked for."""
        self._connection = -1
        self._tries = 0
        """How often it was tried on this connection to look through all that the broker holds; `LOOKS` once that is done."""

    async def remove(self, uid: str, *, timeout: float, retain: bool = False) -> bool:  # noqa: ASYNC109 several requests
        """Clean up as soon as the broker is there; False where that took longer than ``timeout`` seconds: a `sweep` does it then.

        With ``retain`` agents stop, and nothing waits any more; plan and log stay.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if await self._try(uid, retain=retain):
                        break
                    await asyncio.sleep(0.5)
        except TimeoutError:
            self._owed[uid] = retain
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

        What could not be cleaned while the broker was away, reports that came after a purge, and plans of which nothing was issued. A
        study counts as gone when it is in no list and not known to the engine at two calls in turn.

        Raises:
            Outage: the broker did not answer; what is left is cleaned at a later call.
        """
        core = self.core
        for uid, retain in list(self._owed.items()):
            async with self._turn:
                await self._clean(uid, retain=retain)
            del self._owed[uid]
        core.strays |= await self._held()
        core.strays -= core.studies.keys() | self._retained
        gone = core.strays - live
        for uid in sorted(gone & self._gone_before):
            if await self._is_retained(uid):
                self._retained.add(uid)
                continue
            log.info("cleaning what is left of a study that is gone uid=%s", uid)
            core.strays.discard(uid)  # whatever comes of it from here on makes it one again
            try:
                async with self._turn:
                    await self._clean(uid, retain=False)
            except Outage:
                core.strays.add(uid)
                raise
        self._gone_before = frozenset(gone)

    async def _held(self) -> set[str]:
        """Return the studies of which the broker holds something: those that it may be seen of at little cost, but all on each new connection.

        As long as that one lives, whatever is stored late passes the log reader; before it, anything may have been stored unseen. Of a log
        with more than `MOST_LISTED` entries only those are found in which a verdict stands, or of whose study anything else is left.
        """
        core, space = self.core, self.core.space
        places = [(space.task_stream, space.all_cursors), (space.report_stream, space.all_verdicts)]
        connection = core.broker.reconnects
        if connection != self._connection:
            self._connection, self._tries = connection, 0
        if is_new := self._tries < LOOKS:
            self._tries += 1
            is_short = await core.broker.length(space.report_stream) <= MOST_LISTED
            places = [
                (space.task_stream, space.all_chunks),
                (space.task_stream, space.all_cursors),
                (space.report_stream, space.all_reports if is_short else space.all_verdicts),
                *((space.control_stream, each) for each in space.all_of_studies),
            ]
        found: set[str] = set()
        for stream, matching in places:
            async for page in core.broker.subject_pages(stream, matching):
                found.update(map(subjects.study_of, page))
        if is_new:
            self._tries = LOOKS
        return set(filter(subjects.is_literal, found))

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
