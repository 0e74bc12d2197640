"""How a study's log reaches its ledger: the follower of all new entries, and the sync that reads the past.

A study is *synced* once its cursor was read, then the chunks in the task stream, then the log up to where it ended after
that. In this order nothing slips through, because a chunk leaves the task stream only after its start stands in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing

from pydantic import ValidationError

from merlin_operator.births import Births
from merlin_operator.contents import Contents
from merlin_operator.core import Core
from merlin_operator.keeper import Keeper
from merlin_operator.stream import Outage, Stored
from merlin_operator.study import Study
from merlin_operator.warden import Warden
from merlin_study import failpoints, history, subjects, wire
from merlin_study.seal import SealError, Signer

log = logging.getLogger(__name__)


class LogReader:
    """Feeds the ledgers of all studies; see the module."""

    def __init__(self, core: Core, births: Births, contents: Contents, keeper: Keeper, warden: Warden) -> None:
        self.core, self._births, self._contents, self._keeper = core, births, contents, keeper
        self._warden = warden
        self.ready = asyncio.Event()
        """To be set once the first connection stands and `connected` was called."""
        self._read_from = 0

    async def connected(self) -> None:
        """Find out from where to follow on a new connection, before any study is synced.

        What is appended from here on reaches a study through the follower, what stands by sync.
        """
        for study in self.core.all():
            study.synced, study.kept = False, frozenset()  # the broker may have lost what was kept there
        newest = await self.core.broker.last_sequence(self.core.space.report_stream)
        if self._read_from > newest + 1:
            self._start_over()
        self._read_from = self._read_from or newest + 1

    def _start_over(self) -> None:
        """The log is shorter than what was read of it: another stream. Every ledger is folded anew from what it holds."""
        log.error("the log was replaced or rewound; folding every study again")
        self._read_from = 0
        for study in self.core.all():
            study.start_over()

    async def follow(self) -> None:
        """Feed new entries of every study, from where the last reader ended; for ever."""
        core = self.core
        while True:
            await self.ready.wait()
            try:
                async with aclosing(core.broker.read_log(core.space.all_reports, start=self._read_from)) as entries:
                    async for stored in entries:
                        self._read_from = stored.sequence + 1
                        self._take(stored)
            except Outage as error:
                log.info("log reader starts again error=%s", error)
            except Exception as error:  # noqa: BLE001 an API error of the broker: the reader is made anew
                log.warning("log reader failed error=%s", error)
            await asyncio.sleep(0.2)

    def _take(self, stored: Stored) -> None:
        uid, _ = subjects.parse_report(stored.subject)
        study = self.core.studies.get(uid)
        if study is None:
            self.core.strays.add(uid)
        if study is None or study.ledger is None:
            return
        if study.synced:
            self._fold(study, stored)
            self.core.wake.set()
        else:
            study.pending.append(stored)

    def _fold(self, study: Study, stored: Stored) -> None:
        if stored.sequence <= study.folded or self._births.take(study, stored):
            return
        try:
            entry = self.entry(study.ref.uid, stored)
        except (SealError, ValidationError) as error:
            self.core.refuse(error)
            study.folded = stored.sequence
            log.warning("log entry refused study=%s sequence=%d error=%s", study.ref.name, stored.sequence, error)
            return
        self.core.broker_clock_ahead = stored.at - time.time()
        self.core.count(reports=1)
        if isinstance(entry, wire.Report):
            self._warden.take(study, entry, stored.at)
        study.entry(stored, entry)
        if history.ON:
            history.note("folded", study=study.ref.uid, sequence=stored.sequence, entry=entry.model_dump(mode="json"))

    def entry(self, uid: str, stored: Stored) -> wire.Entry:
        """Open a log entry: verdicts are the operator's, on a subject of their own, and all else is the agents'.

        Only a fence that the operator took itself, so that no agent can, begins with a word of the operator.

        Raises:
            SealError: it is not sealed by whom the subject belongs to, or says what has no place there.
            pydantic.ValidationError: it is no log entry.
        """
        verdict = stored.subject == self.core.space.verdicts(uid)
        try:
            entry = self._opened(uid, stored, Signer.OPERATOR if verdict else Signer.AGENT)
        except SealError:
            if verdict:
                raise
            entry = self._opened(uid, stored, Signer.OPERATOR)
            if not isinstance(entry, wire.Withdrawn):
                raise
        if isinstance(entry, wire.VERDICTS) != verdict:
            raise SealError(f"a {entry.kind} has no place on {stored.subject}")
        if isinstance(entry, wire.Withdrawn) and stored.subject != self.core.space.reports(uid, entry.fence):
            raise SealError(f"fence {entry.fence} is not withdrawn on {stored.subject}")
        return entry

    def _opened(self, uid: str, stored: Stored, signer: Signer) -> wire.Entry:
        keyring = self.core.config.keyring
        return wire.decode_log(keyring.open(stored.data, scope=uid, context=stored.subject, signer=signer))

    async def sync(self, study: Study) -> None:
        """Bring a study's ledger to what the broker holds; the order of the reads is what makes it exact."""
        assert study.plan is not None
        assert study.ledger is not None
        if not await self._contents.settle(study):
            return
        if study.folded == 0:
            await self._keeper.find(study)
        uid, ledger, space, broker = study.ref.uid, study.ledger, self.core.space, self.core.broker
        cursor = await broker.last(space.task_stream, space.cursor(uid))
        waiting = await broker.chunks(uid)
        found = [chunk for each in waiting if (chunk := self._chunk(uid, each)) is not None]
        end = await broker.last_sequence(space.report_stream)
        await self._catch_up(study, end)
        failpoints.reach("operator.sync")
        taken = (subjects.parse_chunk(each.subject).fence for each in waiting)
        ledger.next_fence = max(ledger.next_fence, max(taken, default=0) + 1)
        if cursor is not None:
            ledger.next_fence = max(ledger.next_fence, self._next_fence(uid, cursor))
        there = {chunk.fence for chunk in found}
        for fence in list(ledger.fences.values()):
            if fence.chunk.fence not in there:
                ledger.withdraw(fence.chunk)
        for chunk in found:
            ledger.issue(chunk)
        study.stale = any(chunk.fence not in ledger.fences for chunk in found)
        study.ranked = self._ranked(study, waiting)
        ledger.settle_waiting()
        study.cursor = cursor.sequence if cursor is not None else 0
        study.note_inherited()
        study.synced = True
        while study.pending:
            self._fold(study, study.pending.popleft())
        history.note("synced", study=uid, epoch=study.epoch)
        log.info("study synced study=%s folded=%d out=%d", study.ref.name, study.folded, len(ledger.fences))

    @staticmethod
    def _ranked(study: Study, waiting: list[Stored]) -> int:
        """Return the priority under which these chunks were published: the study's, unless one lies in another band than it says."""
        priority = study.switches.priority
        bands = {subjects.parse_chunk(each.subject).route.band for each in waiting}
        return 0 if bands & ({"bulk"} if priority > 0 else {"urgent"} if priority < 0 else set()) else priority

    def _chunk(self, uid: str, stored: Stored) -> wire.Chunk | None:
        """Open a chunk; what is none is refused, counted, and left out, so that its tasks are issued anew."""
        try:
            return wire.Chunk.model_validate_json(self.core.open_own(uid, stored))
        except (SealError, ValidationError) as error:
            self.core.refuse(error)
            log.warning("chunk refused subject=%s error=%s", stored.subject, error)
            return None

    def _next_fence(self, uid: str, cursor: Stored) -> int:
        try:
            return wire.Cursor.model_validate_json(self.core.open_own(uid, cursor)).next_fence
        except (SealError, ValidationError) as error:
            self.core.refuse(error)
            log.warning("cursor refused subject=%s error=%s", cursor.subject, error)
            return 1

    async def _catch_up(self, study: Study, end: int) -> None:
        """Fold the study's log up to the stream's sequence ``end``."""
        subject = self.core.space.reports_of(study.ref.uid)
        last = await self.core.broker.last(self.core.space.report_stream, subject)
        if last is None or last.sequence <= study.folded:
            return
        async with aclosing(self.core.broker.read_log(subject, start=study.folded + 1)) as entries:
            async for stored in entries:
                self._fold(study, stored)
                if stored.sequence >= min(last.sequence, end):
                    return
