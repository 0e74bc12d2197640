"""Repair: what follows where a study's log may not be the one that it was.

A log is in doubt where it stands on another stream than before, or on a server that nobody followed across its start
(`merlin_operator.origin`), where an entry that was folded is gone, or where fences were issued of which neither log nor task stream
knows. A study of which the log says that it is over needs no more than that, until somebody asks for more. What was lost, the outcome
logs in the workspace say, since whoever runs a chunk has written its claim there before. So, in this order:

1. The study's *epoch* is raised: in its cursor, so that no other operator issues anything of the earlier one. What still waits in the
   task stream is dropped. Then it is raised in its word, which agents read after each claim, once that claim is in their outcome log.
2. The log is read up to its end. What is claimed after that does not run, since its agent finds the word; what ran before
   stands in an outcome log.
3. The offer asks one agent of the study's site to tell the log what the workspace records and the log does not (`merlin_agent.retell`).
4. When it said so to whoever asked and has read the log since, the verdict `Repaired` closes the earlier epochs. Only then anything is decided or issued again.

Each step can be taken twice, by this operator or the next one: whoever finds the cursor without the word takes the first one again. Verdicts that were lost are taken anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Final

from merlin_operator import doubt
from merlin_operator.core import Core
from merlin_operator.stream import Conflict
from merlin_operator.study import Study
from merlin_operator.verdicts import Judge
from merlin_study import failpoints, wire
from merlin_study.ledger import Ledger

log = logging.getLogger(__name__)

PATIENCE: Final = 60.0
"""Seconds without an entry in the study's log until another agent of a site is asked; one that is gone, or that sees no workspace,
is followed at once. What runs of the study may report meanwhile and count as such an entry; nothing new is issued, so that ends."""
AT_ONCE: Final = 64
"""Studies whose logs a site completes at the same time: an offer has to stay small."""


class Repairer:
    """Completes logs that are in doubt; see the module."""

    def __init__(self, core: Core, judge: Judge) -> None:
        self.core, self._judge = core, judge

    async def repair(self, now: float) -> None:
        """Take the next step for every study that needs one, at ``now`` (monotonic seconds)."""
        live = {agent.agent: agent.site for agent in self.core.fleet.live(now)}
        asked = sum(study.recall is not None for study in self.core.awake())
        for study in self.core.awake():
            if not self._needs(study):
                study.recall, study.lost_log, study.lost = None, "", study.lost and study.broken
                study.unheard = False
            elif study.announced < study.epoch or not await self._is_said(study):
                await self._raise(study)
            elif study.recall is not None or asked < AT_ONCE:
                had = study.recall is not None
                await self._ask(study, live, now)
                asked += (study.recall is not None) - had

    def _needs(self, study: Study) -> bool:
        if study.ledger is None or not study.synced or not study.broken or study.cancelled:
            return False
        return not study.over  # what is over needs nothing, until somebody asks for more

    async def _ask(self, study: Study, live: Mapping[str, str], now: float) -> None:
        assert study.ledger is not None
        assert study.plan is not None
        reading = study.reading
        sites = doubt.sites_to_ask(
            study.ledger, study.epoch, study.past, reading=reading, site=study.site, live=live.values()
        )
        if not sites:
            await self._conclude(study, study.ledger)
            return
        words = [word for word in doubt.words(study.ledger, study.epoch, reading).values() if not word.found]
        blind, unread = {word.agent for word in words}, {word.agent: word.unread for word in words if word.unread}
        if study.recall is not None and study.folded != study.recall_folded:
            study.recall_folded, study.asked[study.recall.agent] = study.folded, now
        recall = study.recall
        is_telling = recall is not None and live.get(recall.agent) in sites and recall.agent not in blind
        if is_telling and recall is not None and now - study.asked[recall.agent] < PATIENCE:
            return
        study.recall = None
        fresh = [
            agent
            for agent, site in live.items()
            if site in sites and now - study.asked.get(agent, -PATIENCE) >= PATIENCE
        ]
        study.unheard = not fresh
        is_missed = (study.begun or unread) and not fresh  # one that never began waits for agents as any study does
        study.lost_log = doubt.complaint(study.past, sites[0], blind, unread) if is_missed else ""
        if not fresh:
            return
        agent = min(fresh, key=lambda each: (study.asked.get(each, -math.inf), each))
        study.recall = wire.Recall(
            study=study.ref.uid,
            plan=study.plan.hash,
            epoch=study.epoch,
            agent=agent,
            known=doubt.known_fences(study.ledger.closed, returned=study.ledger.late.returned),
            reading=reading,
        )
        study.recall_site, study.recall_folded, study.asked[agent] = live[agent], study.folded, now
        failpoints.reach("operator.recall")
        log.warning(
            "log in doubt, asking for what it lacks study=%s agent=%s epoch=%d", study.ref.name, agent, study.epoch
        )

    async def _conclude(self, study: Study, ledger: Ledger) -> None:
        """Say that the log is whole; unless it told of a later epoch than ours, whose clock was set back since."""
        highest = max(map(wire.epoch_of, (ledger.next_fence - 1, *ledger.fences)))
        if highest > study.epoch:
            study.epoch = highest + 1
            return
        failpoints.reach("operator.repaired")
        verdict = wire.Repaired(epoch=study.epoch, entries=ledger.entries)
        if study.awaited <= study.folded and await self._judge.append(study, verdict):
            study.awaited = study.verdict
            log.warning("log repaired study=%s epoch=%d", study.ref.name, study.epoch)

    async def _is_said(self, study: Study) -> bool:
        """Whether agents can read of the epoch: who raised it may have died before it said so to them."""
        said = (await self._judge.said(study)).epoch
        if said > study.epoch:
            study.epoch = said + 1  # what they were told once they go by
        return said == study.epoch

    async def _raise(self, study: Study) -> None:
        """Say the new epoch to operators, drop what waits of the old one, say it to agents; then read the log again."""
        assert study.plan is not None
        assert study.ledger is not None
        core, uid = self.core, study.ref.uid
        study.ledger.next_fence = max(study.ledger.next_fence, wire.first_fence(study.epoch))
        cursor = wire.Cursor(study=uid, plan=study.plan.hash, epoch=study.epoch, next_fence=study.ledger.next_fence)
        subject = core.space.cursor(uid)
        study.synced, study.recall = False, None
        study.asked.clear()
        failpoints.reach("operator.epoch")
        try:
            await core.broker.publish_batch(
                (subject, core.seal(uid, subject, cursor.encode())), [], expected=study.cursor
            )
        except Conflict:
            return  # another operator was first; read what it wrote
        failpoints.reach("operator.raised")
        await core.broker.purge(core.space.task_stream, core.space.chunks_of(uid))
        await self._judge.tell(study, study.ledger)  # at last: it stands for all of this
