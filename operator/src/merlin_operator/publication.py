"""Publishing chunks: what `merlin_operator.unroll` decides, in one atomic batch with the cursor. Read, never repeat."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from merlin_operator import fleet, ranks, unroll
from merlin_operator.core import Core
from merlin_operator.shares import Clocks
from merlin_operator.stream import Conflict, Outage
from merlin_operator.study import Study
from merlin_study import failpoints, history, subjects, wire

log = logging.getLogger(__name__)


class Publisher:
    """Issues the next chunks of all studies; see the module."""

    def __init__(self, core: Core, withdraw: Callable[[Study, list[int]], Awaitable[None]]) -> None:
        self.core, self._withdraw, self._clocks = core, withdraw, Clocks()

    async def account(self) -> None:
        """Close the fences of batches that did not go through, as the sync after them has shown: the next cursor counts them.

        Nobody would find them anywhere else, and take the log for one that lacks something. A batch that comes late is of no use then.
        """
        for study in self.core.awake():
            if study.unsure and study.synced and study.ledger is not None:
                ledger = study.ledger
                gone = [
                    each for each in sorted(study.unsure) if each not in ledger.fences and each not in ledger.closed
                ]
                await self._withdraw(study, gone)
                study.unsure.clear()

    async def issue(self, now: float) -> None:
        """Publish what may go out at ``now`` (monotonic seconds)."""
        core = self.core
        studies = {
            study.ref.uid: study
            for study in core.awake()
            if study.active and study.synced and study.plan is not None and study.ledger is not None
            if not study.broken and study.awaited <= study.folded and not core.control(study, study.ledger).holds
        }
        candidates = [
            unroll.Candidate(
                study.ref.uid,
                study.plan.hash,
                study.epoch,
                study.ledger,
                study.site,
                study.share,
                priority=study.switches.priority,
                most=study.switches.max_in_flight,
                rehearse=study.switches.rehearse,
            )
            for study in studies.values()
            if study.plan is not None and study.ledger is not None
        ]
        if not candidates:
            self._clocks.competing = frozenset()
            return
        for uid, fences in ranks.overtaken(candidates).items():
            if core.studies.get(uid) is studies[uid]:
                await self._withdraw(studies[uid], fences)
        issues: dict[str, list[unroll.Issue]] = {}
        for issue in unroll.next_chunks(
            candidates,
            self._capacity(candidates, now),
            window=core.config.window_seconds,
            now=core.now,
            clocks=self._clocks,
        ):
            issues.setdefault(issue.chunk.study, []).append(issue)
        for uid, batch in issues.items():
            if core.studies.get(uid) is studies[uid]:  # else it was deleted while others were published
                await self._publish(studies[uid], batch)
        if issues:
            core.wake.set()

    async def _publish(self, study: Study, batch: list[unroll.Issue]) -> None:
        assert study.ledger is not None
        assert study.plan is not None
        core, uid = self.core, study.ref.uid
        cursor = wire.Cursor(study=uid, plan=study.plan.hash, epoch=study.epoch, next_fence=study.ledger.next_fence)
        cursor_subject = core.space.cursor(uid)
        chunks = []
        for issue in batch:
            subject = core.space.chunk(issue.route, uid, issue.chunk.fence)
            chunks.append((subject, core.seal(uid, subject, issue.chunk.encode())))
        if history.ON:
            for issue in batch:
                history.note("issued", chunk=issue.chunk.model_dump(mode="json"))
        failpoints.reach("operator.publish")
        try:
            study.cursor = await core.broker.publish_batch(
                (cursor_subject, core.seal(uid, cursor_subject, cursor.encode())), chunks, expected=study.cursor
            )
        except (Conflict, Outage) as error:
            for issue in batch:
                study.ledger.withdraw(issue.chunk)
            study.unsure.update(issue.chunk.fence for issue in batch)
            study.synced = False
            log.warning("publication unsure study=%s error=%s", study.ref.name, error)
            return
        failpoints.reach("operator.published")
        core.count(issued_chunks=len(batch), issued_tasks=sum(len(issue.chunk.tasks) for issue in batch))

    def _capacity(self, candidates: list[unroll.Candidate], now: float) -> dict[tuple[str, str, str], unroll.Capacity]:
        live = list(self.core.fleet.live(now))
        rates: dict[tuple[str, str, str], float] = {}
        for candidate in candidates:
            study = self.core.studies.get(candidate.uid)
            rate = (study.rate(now) if study is not None else None) or 0.0
            for queue, needs in candidate.ledger.plan.wants:
                key = (candidate.site, queue, needs)
                rates[key] = max(rate, rates.get(key, 0.0))
        return {key: unroll.Capacity(_slots(live, *key), rate) for key, rate in rates.items()}


def _slots(live: Sequence[wire.Heartbeat], at: str, queue: str, needs: str) -> int:
    """Return how many tasks of a shape all agents together run at once."""
    site = None if at == subjects.ANY_SITE else at
    return sum(fleet.room(agent, needs) for agent in live if fleet.serves(agent, site=site, queue=queue, needs=needs))
