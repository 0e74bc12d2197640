"""The operator's verdicts: appended to a study's log by compare-and-set, so that two operators cannot disagree."""

from __future__ import annotations

import logging

from merlin_operator.core import Core
from merlin_operator.stream import Conflict
from merlin_operator.study import Study
from merlin_study import wire

log = logging.getLogger(__name__)


class Judge:
    """Decides what only the operator may decide, and writes it into the log; nothing follows before it is read there."""

    def __init__(self, core: Core) -> None:
        self.core = core

    async def judge_losses(self, now: float) -> None:
        """Call fences lost whose holder is gone at ``now`` (monotonic seconds)."""
        for study in self.core.all():
            if not study.active or not study.synced or study.ledger is None:
                continue
            for number, fence in list(study.ledger.fences.items()):
                if fence.holder is None or number in study.judged:
                    continue
                if self.core.fleet.is_gone(fence.holder, now):
                    await self._lose(study, wire.Lost(fence=number, agent=fence.holder))

    async def _lose(self, study: Study, verdict: wire.Lost) -> None:
        if await self._append(study, verdict):
            study.judged.add(verdict.fence)
            self.core.tally.lose(study.site)
            log.warning("chunk lost study=%s fence=%d agent=%s", study.ref.name, verdict.fence, verdict.agent)

    async def _append(self, study: Study, verdict: wire.Lost) -> bool:
        """Append a verdict; False where another operator was first: the study is read again then."""
        core, subject = self.core, self.core.space.verdicts(study.ref.uid)
        envelope = core.seal(study.ref.uid, subject, verdict.encode())
        try:
            study.verdict = await core.broker.append(subject, envelope, expected=study.verdict)
        except Conflict:
            last = await core.broker.last(core.space.report_stream, subject)
            study.verdict = last.sequence if last is not None else 0
            study.synced = False
            return False
        return True
