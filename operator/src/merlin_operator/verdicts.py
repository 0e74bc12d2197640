"""The operator's verdicts: appended to a study's log by compare-and-set, so that two operators cannot disagree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from merlin_operator.core import Core
from merlin_operator.stream import Conflict
from merlin_operator.study import Study
from merlin_study import failpoints, wire
from merlin_study.ledger import Ledger

log = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Chunks that are withdrawn side by side."""


class Judge:
    """Decides what only the operator may decide, and writes it into the log; nothing follows before it is read there."""

    def __init__(self, core: Core) -> None:
        self.core = core

    async def judge_losses(self, now: float) -> None:
        """Call fences lost whose holder is gone at ``now`` (monotonic seconds)."""
        for study in self.core.awake():
            if not study.active or not study.synced or study.broken or study.ledger is None:
                continue
            for number, holder in study.held(study.ledger):
                if self.core.fleet.is_gone(holder, now) or self._dropped(study, number, holder, now):
                    await self._lose(study, wire.Lost(fence=number, agent=holder))

    def _dropped(self, study: Study, fence: int, holder: str, now: float) -> bool:
        """Whether a living holder does not know of its fence: what it said last of it got lost."""
        heartbeat, heard = self.core.fleet.last(holder)
        if heartbeat is None or (study.ref.uid, fence) in heartbeat.holds:
            study.unheld.pop((fence, holder), None)
            return False
        since = study.unheld.setdefault((fence, holder), now)
        return heard > since and self.core.fleet.listened(since, now) > self.core.config.timing.lost_after

    async def _lose(self, study: Study, verdict: wire.Lost) -> None:
        if await self.append(study, verdict):
            study.judged.add((verdict.fence, verdict.agent))
            self.core.tally.lose(study.site)
            log.warning("chunk lost study=%s fence=%d agent=%s", study.ref.name, verdict.fence, verdict.agent)

    async def judge_switches(self) -> None:
        """Carry out what the switches of each study ask for: withdraw, write the verdict, tell the agents."""
        for study in self.core.awake():
            is_whole = not study.broken or study.abandoned
            if study.synced and is_whole and study.ledger is not None and not study.cancelled:
                stands = (
                    *(study.ledger, study.folded, study.awaited, study.switches, study.word, study.stale),
                    study.excuse,
                )
                if study.settled_with == stands:
                    continue
                await self._control(study, study.ledger)
                if study.ledger.still and not study.stale and study.word == stands[4]:
                    study.settled_with = stands

    async def _control(self, study: Study, ledger: Ledger) -> None:
        if study.awaited > study.folded:
            return  # a verdict of ours is on its way back; what follows from it is not known yet
        asked = self.core.control(study, ledger)
        if gone := asked.to_withdraw():
            await self.withdraw(study, gone)
        elif (verdict := asked.verdict()) is not None and await self.append(study, verdict):
            study.awaited = study.verdict
            log.info("verdict study=%s %s", study.ref.name, verdict.model_dump_json(exclude_defaults=True)[:500])
        await self.tell(study, ledger)
        await self._sweep(study, ledger)

    async def withdraw(self, study: Study, fences: list[int]) -> None:
        """Take the fences of chunks that nobody has started, as an agent would; who was quicker has them."""
        fresh = [fence for fence in fences if fence not in study.withdrawn]
        for at in range(0, len(fresh), AT_ONCE):
            await asyncio.gather(*(self._take(study, fence) for fence in fresh[at : at + AT_ONCE]))
        study.stale = study.stale or bool(fresh)

    async def _sweep(self, study: Study, ledger: Ledger) -> None:
        """Spare agents the look at chunks that they can't claim any more, once no other chunk waits beside them."""
        if study.stale and all(fence.holder is not None for fence in ledger.fences.values()):
            await self.core.broker.purge(self.core.space.task_stream, self.core.space.chunks_of(study.ref.uid))
            study.stale = False

    async def judge_priorities(self) -> None:
        """Withdraw what was published under another priority than a study has now: it lies in another band, or behind others."""
        for study in self.core.awake():
            if not study.active or not study.synced or study.broken or study.ledger is None:
                continue
            priority = study.switches.priority
            if study.ranked not in (None, priority):
                await self.withdraw(study, [at for at, fence in study.ledger.fences.items() if fence.holder is None])
            study.ranked = priority

    async def _take(self, study: Study, fence: int) -> None:
        core, uid = self.core, study.ref.uid
        subject = core.space.reports(uid, fence)
        word = wire.Withdrawn(fence=fence)
        with contextlib.suppress(Conflict):  # an agent was first, or an answer of ours got lost: the log tells
            await core.broker.append(subject, core.seal(uid, subject, word.encode()), expected=0)
        study.withdrawn.add(fence)

    async def tell(self, study: Study, ledger: Ledger) -> None:
        """Put the word for the agents where it differs from the one that stands."""
        core, uid = self.core, study.ref.uid
        subject, word = core.space.control(uid), core.control(study, ledger).word(uid, epoch=study.epoch)
        if word != await self.said(study):
            await core.broker.put(subject, core.seal(uid, subject, word.encode()))
            study.word = word

    async def said(self, study: Study) -> wire.Control:
        """Return the word that stands."""
        if study.word is None:
            uid, space = study.ref.uid, self.core.space
            stored = await self.core.broker.last(space.control_stream, space.control(uid))
            study.word = self.core.read_own(wire.Control, uid, stored) or wire.Control(study=uid)
        return study.word

    async def append(
        self,
        study: Study,
        verdict: wire.Noted | wire.Lost | wire.Excused | wire.Dropped | wire.Restarted | wire.Repaired,
    ) -> bool:
        """Append a verdict; False where another operator was first: the study is read again then."""
        core, subject = self.core, self.core.space.verdicts(study.ref.uid)
        envelope = core.seal(study.ref.uid, subject, verdict.encode())
        failpoints.reach("operator.verdict")
        try:
            study.verdict = await core.broker.append(subject, envelope, expected=study.verdict)
            failpoints.reach("operator.judged")
        except Conflict:
            last = await core.broker.last(core.space.report_stream, subject)
            study.verdict = last.sequence if last is not None else 0
            study.synced = False
            return False
        return True
