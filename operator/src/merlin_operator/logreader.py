"""How a study's log reaches its ledger: the follower of all new entries, and the sync that reads the past.

Each connection may be to another server, or the same one may have lost or replaced what it kept: what is not certain to
be as it was puts the study into doubt (`merlin_operator.repair`).

A study is *synced* once its cursor was read, then the chunks in the task stream, then the log up to where it ended after
that. In this order nothing slips through, because a chunk leaves the task stream only after its start stands in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Final

from pydantic import ValidationError

from merlin_operator import doubt, setbacks
from merlin_operator.births import Births
from merlin_operator.contents import Contents
from merlin_operator.core import Core
from merlin_operator.keeper import Keeper
from merlin_operator.origin import Ground
from merlin_operator.stream import Outage, Stored
from merlin_operator.study import Study
from merlin_operator.warden import Warden
from merlin_study import failpoints, history, subjects, wire
from merlin_study.seal import SealError, Signer

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 5.0
"""Seconds between two looks whether the streams are those that they were."""

REMEMBERED: Final = 64
"""Studies whose newest entries are remembered, to find out whether the log is the one that it was: some may be deleted meanwhile."""

_LOOK_AT_BROKER: Final = "see the broker's own log, and its limits for consumers and memory"
_REPORT_IT: Final = "this is a bug, please report it"


class LogReader:
    """Feeds the ledgers of all studies; see the module."""

    def __init__(self, core: Core, births: Births, contents: Contents, keeper: Keeper, warden: Warden) -> None:
        self.core, self._births, self._contents, self._keeper = core, births, contents, keeper
        self._warden = warden
        self.ready = asyncio.Event()
        """To be set once the first connection stands and `connected` was called."""
        self._read_from, self._known = 0, -1
        self._newest: dict[str, tuple[int, int]] = {}
        """By study, the newest entry that is known: its sequence and hash; of the studies with the newest ones, the latest last."""
        self._ground = Ground(core)
        self._setbacks = setbacks.Setbacks()

    async def connected(self) -> None:
        """Find out from where to follow on a new connection, before any study is synced.

        What is appended from here on reaches a study through the follower, what stands by sync.
        """
        for study in self.core.all():
            study.forget_told()
        before, stream = self._ground.origin, self.core.space.report_stream
        stood = await self._stands()
        origin = await self._ground.settle(stood=stood)
        if before is not None and origin.since != before.since:
            for study in self.core.all():
                study.outlive()
        end = await self.core.broker.last_sequence(stream)
        if not stood:
            self._newest.clear()
        newest = await self.core.broker.stored(stream, end) if end else None
        if newest is not None:
            self._note(newest)
        self._read_from = end + 1
        self._known = self.core.broker.reconnects

    async def _stands(self) -> bool:
        """Whether the newest entry that is known is still in the log, and the same one: each is sealed anew, so no two are alike.

        Those of studies that were deleted since are not missed: a log that was put back or cut short lacks its newest entries, whosever.
        """
        if not self._newest:
            return self._read_from == 1  # nothing was there, else it can't be told any more
        sequence, content = max(self._newest.values())
        found = await self.core.broker.stored(self.core.space.report_stream, sequence)
        return found is not None and hash(found.data) == content

    def forget(self, uid: str) -> None:
        """Forget a study, of which the log may lack everything from now on."""
        self._newest.pop(uid, None)

    def _note(self, stored: Stored) -> None:
        """Remember the newest entry of a study."""
        uid = stored.subject.split(".")[4]
        self._newest.pop(uid, None)
        self._newest[uid] = stored.sequence, hash(stored.data)
        if len(self._newest) > REMEMBERED:
            del self._newest[next(iter(self._newest))]

    @property
    def knows_broker(self) -> bool:
        """Whether the connection stands, and it is known what the broker has of the logs that were read: not before act on it."""
        return self.core.broker.connected and self._known == self.core.broker.reconnects

    async def watch(self) -> None:
        """Look now and then whether the streams are those that they were, for ever: somebody may delete or empty one."""
        while True:
            await asyncio.sleep(min(LOOK_EVERY, self.core.config.timing.heartbeat))
            if not self.knows_broker:
                continue
            try:
                if not await self._ground.stands():
                    log.error("a stream was deleted or made anew; reading everything again")
                    self.core.broker.drop()
                    continue
                _, oldest, _ = await self.core.broker.extent(self.core.space.report_stream)
            except Outage as error:
                log.debug("look at the streams interrupted error=%s", error)
                continue
            for study in self.core.all():
                if study.synced and 0 < study.first < oldest:
                    study.synced, study.torn = False, True
                    self.core.wake.set()

    async def follow(self) -> None:
        """Feed new entries of every study, from where the last reader ended; for ever."""
        core = self.core
        while True:
            if not self.knows_broker:
                await asyncio.sleep(0.05)
                continue
            connection, began_at = self._known, self._read_from
            try:
                async with aclosing(core.broker.read_log(core.space.all_reports, start=self._read_from)) as entries:
                    async for stored in entries:
                        if connection != core.broker.reconnects:
                            break  # of an earlier connection, and perhaps of another log
                        self._read_from = stored.sequence + 1
                        self._note(stored)
                        self._take(stored)
                pause = setbacks.FIRST
            except Exception as error:  # noqa: BLE001 of the broker's API, or of a ledger, whose study is read anew: the reader is made anew
                pause = self._set_back(error, connection, got_on=self._read_from != began_at)
            until = time.monotonic() + pause
            while connection == core.broker.reconnects and (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 a count
                await asyncio.sleep(min(left, setbacks.FIRST))  # a new connection is tried at once

    def _set_back(self, error: Exception, connection: int, *, got_on: bool) -> float:
        """Tell why the log is not followed, where that is news; return the seconds to wait until it is tried again."""
        is_outage = isinstance(error, Outage)
        if is_outage and (connection != self.core.broker.reconnects or not self.core.broker.connected):
            log.info("log reader starts again error=%s", error)  # that the connection is gone is told elsewhere
            return setbacks.FIRST
        pause, is_told = self._setbacks.add(f"{type(error).__name__}: {error}", time.monotonic(), got_on=got_on)
        if is_told:
            log.log(
                logging.WARNING if is_outage else logging.ERROR,
                "stream %s: expected to follow it from sequence %d, found: %s: %s; until that works no result reaches its study; %s; "
                "it is tried again at most every %g s, and told again after %g",
                *(self.core.space.report_stream, self._read_from, type(error).__name__, error),
                _LOOK_AT_BROKER if is_outage else _REPORT_IT,
                *(setbacks.LONGEST, setbacks.TOLD_AGAIN),
                exc_info=None if is_outage else error,
            )
        return pause

    def _take(self, stored: Stored) -> None:
        uid, _ = subjects.parse_report(stored.subject)
        study = self.core.studies.get(uid)
        if study is None and subjects.is_literal(uid):
            self.core.strays.add(uid)
        if study is None or study.ledger is None:
            return
        if study.synced:
            self._fold(study, stored)
            self.core.wake.set()
        else:
            study.pending.append(stored)

    def _fold(self, study: Study, stored: Stored) -> None:
        if stored.sequence <= study.folded:
            return
        study.folded_as, study.first = hash(stored.data), study.first or stored.sequence
        if self._births.take(study, stored):
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
        if study.folded and (study.torn or not await self._still_stands(study)):
            log.error("the log lost what was read of it; reading it anew study=%s", study.ref.name)
            history.note("started over", study=study.ref.uid)
            study.start_over()
            study.lose_log(int(self.core.now))
        if study.folded == 0:
            await self._keeper.find(study)
        uid, ledger, space, broker = study.ref.uid, study.ledger, self.core.space, self.core.broker
        cursor = await broker.last(space.task_stream, space.cursor(uid))
        waiting = await broker.chunks(uid)
        # What is no chunk is left out, so that its tasks are issued anew.
        found = [chunk for each in waiting if (chunk := self.core.read_own(wire.Chunk, uid, each)) is not None]
        end = await broker.last_sequence(space.report_stream)
        await self._catch_up(study, end)
        failpoints.reach("operator.sync")
        taken = (subjects.parse_chunk(each.subject).fence for each in waiting)
        ledger.next_fence = max(ledger.next_fence, max(taken, default=0) + 1)
        said = self.core.read_own(wire.Cursor, uid, cursor)
        if said is not None:
            ledger.next_fence = max(ledger.next_fence, said.next_fence)
        there = {chunk.fence for chunk in found}
        gone = [each for each in ledger.fences.values() if each.holder is None and each.chunk.fence not in there]
        if study.cursor > (cursor.sequence if cursor is not None else 0):
            log.error("the log lacks what was published study=%s", study.ref.name)
            study.lose_log(int(self.core.now))
        self._set_epoch(study, said, [subjects.parse_chunk(each.subject).fence for each in waiting], len(gone))
        ledger.next_fence = max(ledger.next_fence, wire.first_fence(study.epoch))
        for fence in gone:
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

    async def _still_stands(self, study: Study) -> bool:
        """Whether the entry that was folded last is in the log, and the same one."""
        entry = await self.core.broker.stored(self.core.space.report_stream, study.folded)
        return entry is not None and hash(entry.data) == study.folded_as

    def _set_epoch(self, study: Study, said: wire.Cursor | None, waiting: list[int], gone: int) -> None:
        """Find the study's epoch, and whether its log is in doubt; ``gone`` chunks that we published wait nowhere, unclaimed."""
        assert study.ledger is not None
        study.announced = said.epoch if said is not None else 1
        study.epoch = max(study.epoch, study.announced, study.ledger.repaired)
        if self._ground.origin is not None:
            study.stand_on(since=self._ground.origin.since, made=self._ground.origin.made)
        if not study.counted and said is not None:
            gone += doubt.unaccounted(study.ledger, said, waiting)
        if not study.broken and study.past.begun and said is None and study.folded == 0:
            log.error("the log lacks all of a study that began study=%s", study.ref.name)
            study.lose_log(int(self.core.now))
        elif not study.broken and gone:
            log.error("chunks are gone, or the log lacks their claims study=%s fences=%d", study.ref.name, gone)
            study.question_log(int(self.core.now))
        study.counted = True

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
