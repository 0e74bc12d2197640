"""Makes the studies that steps ask for: once each, whoever asks again and whichever operator comes to it.

A submission stands in its parent's log. What became of it (`merlin_study.nested.Born`) is a last value of the control
stream, written after the Study was made: who dies in between finds the Study there, by its name and its label, and writes it
then. A Study that was made and deleted since is not made again.

It has a loop of its own, since the API server may take its time and a round must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from pydantic import ValidationError

from merlin_operator import allocations, family
from merlin_operator.core import Core
from merlin_operator.stream import Outage, Stored
from merlin_operator.study import Study
from merlin_operator.view import StudyRef
from merlin_study import nested, subjects
from merlin_study.seal import SealError, Signer

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 1.0
RETRY: Final = 5.0
"""Seconds until a study is tried again that could not be made for no fault of its own."""


class NotNowError(Exception):
    """Whoever makes studies can't at the moment; nothing is decided."""


class Nursery(Protocol):
    """Makes studies: objects of a cluster, or studies of a local engine."""

    remembers: bool
    """Whether what it makes outlives this process, so that it must not be made again."""

    async def bear(self, parent: StudyRef, own: family.Lineage, child: family.Child) -> nested.Born:
        """Make a study, or find that it is there, or refuse it.

        Raises:
            NotNowError: try again later.
        """

    async def change(self, ref: StudyRef, changes: Mapping[str, Any]) -> str:
        """Change switches in a study's ``spec``; return why that is refused, or nothing.

        Raises:
            NotNowError: try again later.
        """

    async def dismiss(self, agents: Mapping[str, Collection[str]]) -> str:
        """Have agents leave, named by their allocations; return why that is refused, or nothing.

        Raises:
            NotNowError: try again later.
        """


class Births:
    """Looks after what is asked for in the logs of all studies."""

    def __init__(self, core: Core, nursery: Nursery | None) -> None:
        self.core, self._nursery = core, nursery
        self._wake = asyncio.Event()

    # The log's part

    def take(self, study: Study, stored: Stored) -> bool:
        """Take note of a log entry that is a submission; False where it is none."""
        _, word = subjects.parse_report(stored.subject)
        kind, dash, key = word.partition("-")
        if f"{kind}{dash}" not in (subjects.CHILD, subjects.ORDER):
            return False
        study.folded = max(study.folded, stored.sequence)
        if key in study.children or key in study.orders:
            return True  # the first one counts
        try:
            self._take(study, stored, key, is_order=f"{kind}{dash}" == subjects.ORDER)
        except (SealError, ValidationError) as error:
            self.core.refuse(error)
            log.warning("submission refused study=%s sequence=%d error=%s", study.ref.name, stored.sequence, error)
        self._wake.set()
        return True

    def _take(self, study: Study, stored: Stored, key: str, *, is_order: bool) -> None:
        uid, keyring = study.ref.uid, self.core.config.keyring
        payload = keyring.open(stored.data, scope=uid, context=stored.subject, signer=Signer.AGENT)
        if is_order:
            study.orders[key] = family.Ordered(key, nested.decode_order(payload))
            return
        asked = nested.Submission.model_validate_json(payload)
        if asked.key(uid) != key:
            raise SealError("a submission's name does not follow from who asks")
        study.children[key] = family.Child(key, asked)

    # The loop

    async def run(self) -> None:
        """Make what is asked for, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()
            self._wake.clear()
            if not self.core.broker.connected:
                continue
            try:
                await self._look()
            except Outage as error:
                log.info("births interrupted error=%s", error)
                await asyncio.sleep(LOOK_EVERY)
            except NotNowError as error:
                log.warning("a study can't be made now, trying again: %s", error)
                await asyncio.sleep(RETRY)
                self._wake.set()

    async def _look(self) -> None:
        members = self._members()
        for study in [each for each in self.core.all() if each.children or each.orders or each.lineage.root]:
            for child in list(study.children.values()):
                if child.born is None and study.synced:
                    await self._settle(study, child, members)
            for ordered in list(study.orders.values()):
                if ordered.born is None and study.synced:
                    await self._carry_out(study, ordered)
            await self._inherit(study)
            await self._tell(study, members)

    def _members(self) -> Counter[str]:
        """How many studies each family has had, by the root's uid."""
        members: Counter[str] = Counter()
        for study in self.core.all():
            if study.children:
                born = sum(child.born is not None and bool(child.born.uid) for child in study.children.values())
                members[study.lineage.root or study.ref.uid] += born
        return members

    async def _settle(self, study: Study, child: family.Child, members: Counter[str]) -> None:
        uid = study.ref.uid
        child.born = await self._settled(uid, child.key)
        if child.born is not None:
            return
        root = study.lineage.root or uid
        refused = family.refusal(child, study.lineage, members=members[root], ended=self._ended(study))
        if not refused and self._nursery is None:
            refused = "this operator starts no studies for steps"
        if refused:
            born = nested.Born(refused=refused)
        else:
            assert self._nursery is not None
            born = await self._nursery.bear(study.ref, study.lineage, child)
        if uid not in self.core.studies:
            return  # deleted meanwhile: its children go with the root, and nobody asks any more
        await self._remember(uid, child.key, born)
        child.born = born
        members[root] += bool(born.uid)
        if born.refused:
            log.warning("submission refused study=%s step=%s: %s", study.ref.name, child.asked.step, born.refused)
        else:
            log.info("study started study=%s by=%s step=%s", born.name, study.ref.name, child.asked.step)

    async def _inherit(self, study: Study) -> None:
        """Cancel what a cancelled study had started, directly or not: those between may be over long since."""
        if not study.lineage.root or not study.active or study.switches.cancel or self._nursery is None:
            return
        if not self._ended(study):
            return
        refused = await self._nursery.change(study.ref, {"cancel": True})
        study.switches = replace(study.switches, cancel=True)  # the object says so soon; until then we do not ask again
        log.info("study cancelled study=%s of=%s %s", study.ref.name, study.lineage.root_name, refused)

    def _ended(self, study: Study) -> bool:
        """Whether a study or any that it descends from was cancelled."""
        each: Study | None = study
        while each is not None and not each.ended:
            each = self.core.studies.get(each.lineage.parent or each.lineage.root)
        root = self.core.studies.get(study.lineage.root)
        return each is not None or (root is not None and root.ended)

    async def _settled(self, uid: str, key: str) -> nested.Born | None:
        """What was decided before, by us or by an operator that is gone."""
        if self._nursery is None or not self._nursery.remembers:
            return None
        space = self.core.space
        stored = await self.core.broker.last(space.control_stream, space.born(uid, key))
        return self.core.read_own(nested.Born, uid, stored)  # None: the Study is found by its label

    async def _remember(self, uid: str, key: str, born: nested.Born) -> None:
        subject = self.core.space.born(uid, key)
        await self.core.broker.put(subject, self.core.seal(uid, subject, born.encode()))

    async def _carry_out(self, study: Study, ordered: family.Ordered) -> None:
        """Do what a step ordered, once."""
        uid, order = study.ref.uid, ordered.order
        ordered.born = await self._settled(uid, ordered.key)
        if ordered.born is not None:
            return
        if self._nursery is None:
            born = nested.Born(refused="this operator takes no orders from steps")
        elif isinstance(order, nested.Dismissal):
            born = await self._dismiss(study, order, self._nursery)
        else:
            born = await self._change(study, order, self._nursery)
        await self._remember(uid, ordered.key, born)
        ordered.born = born
        log.info("order of study=%s: %s: %s", study.ref.name, order.kind, born.refused or "done")

    async def _change(self, study: Study, order: nested.Order, nursery: Nursery) -> nested.Born:
        """Change the study that an order means."""
        members = (family.Member(each.ref, each.lineage) for each in self.core.all())
        meant = family.target(order, family.Member(study.ref, study.lineage), members)
        if isinstance(meant, str):
            return nested.Born(refused=meant)
        refused = await nursery.change(meant.ref, order.changes())
        return nested.Born(name=meant.ref.name, uid=meant.ref.uid, refused=refused)

    async def _dismiss(self, study: Study, order: nested.Dismissal, nursery: Nursery) -> nested.Born:
        """Have the agents leave that serve a study's family and run as the user who runs the step that asks."""
        root = study.lineage.root or study.ref.uid
        relatives = (each for each in self.core.all() if root in (each.lineage.root, each.ref.uid))
        queues = {queue for each in relatives if each.plan is not None for queue, _ in each.plan.wants}
        fleet = self.core.fleet
        chosen = family.dismissed(order, fleet.known(order.agent), fleet.live(time.monotonic()), queues=queues)
        if isinstance(chosen, str):
            return nested.Born(refused=chosen)
        groups: dict[str, list[str]] = {}
        for beat in chosen:
            groups.setdefault(allocations.name_of(beat), []).append(beat.agent)
        return nested.Born(refused=await nursery.dismiss(groups), agents=len(chosen))

    async def _tell(self, study: Study, members: Counter[str]) -> None:
        """Tell agents what they can refuse by themselves, where that is anything."""
        if not study.lineage.root and not members[study.ref.uid]:
            return  # there is nothing that they could refuse
        full = family.fullness(study.lineage, members=members[study.lineage.root or study.ref.uid])
        word = nested.Family(study=study.ref.uid, depth=study.lineage.depth, full=full)
        if not study.active or word in (study.told, nested.Family(study=study.ref.uid)):
            return
        subject = self.core.space.family(study.ref.uid)
        await self.core.broker.put(subject, self.core.seal(study.ref.uid, subject, word.encode()))
        study.told = word
