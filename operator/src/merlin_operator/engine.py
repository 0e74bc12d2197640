"""The engine: a loop that folds what agents report and issues what comes next, for all studies of a namespace.

Level-triggered: it looks at what is there, decides (`merlin_operator.unroll`, `merlin_operator.fleet`), and carries the
decision out; nothing depends on which event woke it. What it knows of a study is the fold of that study's log, so a new
engine that reads the same log is the same engine.

Its parts, in the order of a round: `merlin_operator.logreader` (the log, and the sync that a study needs before it may
issue), `merlin_operator.repair` (logs that may lack something), `merlin_operator.verdicts` (what only the operator decides),
`merlin_operator.warden` (hosts that fail everything), `merlin_operator.assignments` (what agents are told),
`merlin_operator.routing` (consumers and offers), `merlin_operator.publication` (chunks); beside them
`merlin_operator.removal` and `merlin_operator.showing`. Any refused or unanswered write makes the study unsynced again:
read, never repeat.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from merlin_operator import acceptance, contents, measures
from merlin_operator.assignments import Foreman, wishes_of
from merlin_operator.births import Births, Nursery
from merlin_operator.board import AgentView, Board, Submission
from merlin_operator.brokerwatch import BrokerWatch
from merlin_operator.control import switches_of
from merlin_operator.core import AGENTS_SCOPE, Core, Counters, EngineConfig
from merlin_operator.doubt import Past
from merlin_operator.family import Lineage
from merlin_operator.keeper import Keeper
from merlin_operator.load import BrokerLoad
from merlin_operator.logreader import LogReader
from merlin_operator.publication import Publisher
from merlin_operator.removal import Remover
from merlin_operator.repair import Repairer
from merlin_operator.routing import Router
from merlin_operator.showing import Gallery
from merlin_operator.stream import Outage
from merlin_operator.study import Study
from merlin_operator.verdicts import Judge
from merlin_operator.view import FULL, StudyRef, StudyView
from merlin_operator.warden import Warden
from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.seal import SealError, Signer

log = logging.getLogger(__name__)

_PAUSE = 2.0
"""Seconds without a round after which this process, not its agents, counts as the one that was away."""
_PATIENCE = 45.0
"""Seconds that chunks may wait unstarted in a study whose log is still, before the task stream is read again."""
_TICK = 0.5
"""Seconds between rounds where nothing happens."""
_REST = 4.0
"""Where nothing happens, rounds and shows take this share of the time at most: one part in five."""
_FAILED_SYNCS = 2
"""Studies that a round tries to sync in vain, each for as long as a request may take; the others have their turn in the next one."""
_UNREADABLE = 60.0
"""Seconds until a log that can't be folded is read again, at least; and it takes a twentieth of the time at most."""
_SHOW_EVERY = 0.25
"""Seconds between two shows of the board, at least."""


class Engine:
    """Runs the studies of one namespace; see the module."""

    def __init__(
        self,
        config: EngineConfig,
        board: Board,
        nursery: Nursery | None = None,
        *,
        reader: contents.Reader | None = None,
    ) -> None:
        self.config, self.core, self.board = config, Core(config), board
        self.tally = self.core.tally
        self.rounds = measures.Spread(measures.ROUND_BUCKETS)
        """How long it took to go round all studies."""
        self._turn = asyncio.Lock()
        """Held for a round and for a removal: a round in flight would publish again what a removal has purged."""
        self._births, self._contents = Births(self.core, nursery), contents.Contents(self.core, reader)
        self._keeper = Keeper(self.core, self._contents, keeps_kin=nursery is None or nursery.remembers)
        self._warden = Warden(self.core)
        self._reader = LogReader(self.core, self._births, self._contents, self._keeper, self._warden)
        self._judge = Judge(self.core)
        self._router, self._publisher = Router(self.core), Publisher(self.core, self._judge.withdraw)
        self._foreman = Foreman(self.core)
        self._repairer = Repairer(self.core, self._judge)
        self._remover = Remover(self.core, self._turn)
        self._watch = BrokerWatch(self.core)
        self._gallery = Gallery(self.core)
        self._last_loop = time.monotonic()
        self._last_show = 0.0
        self._took = self._show_took = 0.0
        """How long the last round took, and the last show, in seconds."""
        self.space, self.broker, self.fleet = self.core.space, self.core.broker, self.core.fleet
        self.studies = self.core.studies

    # What the handlers call

    async def observe(self, submission: Submission) -> None:
        """Take note of a Study as it is now; compile it where it is new."""
        known = self.studies.get(submission.ref.uid)
        if known is not None and known.generation == submission.generation:
            return
        if known is not None and known.plan is not None and known.settled(acceptance.accepted(submission.status)):
            known.generation = submission.generation
            verdict = acceptance.redirect(submission, known.plan)
            known.warnings = verdict.warnings or verdict.faults
            if not verdict.faults:  # what can't be read changes nothing
                known.switches = verdict.switches
        else:
            self.studies[submission.ref.uid] = await self._compiled(submission)
        self._last_show = 0.0
        self.core.wake.set()

    async def _compiled(self, submission: Submission) -> Study:
        study = Study(submission.ref, submission.generation, created=submission.created, lineage=submission.lineage)
        study.made, study.past = submission.created, Past.of(submission.status)
        try:
            table = await self._contents.table(submission)
            taken = () if acceptance.accepted(submission.status) else self._taken(submission.ref.uid)
            verdict = acceptance.judge(submission, table, taken=taken)
        except contents.ContentError as error:
            study.lacking, study.unread = str(error), submission
            return study
        study.faults, study.warnings, study.spec_site = verdict.faults, verdict.warnings, verdict.site
        study.notes, study.switches = verdict.notes, verdict.switches
        study.accepted_hash = str(submission.status.get("planHash") or "")
        if verdict.plan is not None:
            study.adopt(verdict.plan)
        log.info("study compiled study=%s faults=%d", submission.ref.name, len(verdict.faults))
        return study

    def _taken(self, uid: str) -> frozenset[acceptance.Directory]:
        """Return the directories of all other studies."""
        return frozenset(
            acceptance.directory(each.plan) for each in self.core.all() if each.plan is not None and each.ref.uid != uid
        )

    async def _compile_again(self) -> None:
        """Look again for tables of parameters that were not there."""
        for study in self.core.studies.awake():
            if study.unread is not None and self._contents.due(study.ref.uid):
                again = await self._compiled(study.unread)
                if self.studies.get(study.ref.uid) is study:
                    self.studies[study.ref.uid] = again

    def switch(self, uid: str, changes: Mapping[str, Any]) -> None:
        """Change switches of a study that no object of a cluster holds; ``changes`` are named as in ``spec``."""
        study = self.studies.get(uid)
        if study is not None:
            asked = switches_of(changes)
            study.switches = replace(study.switches, **{name: getattr(asked, name) for name in changes})
            self.core.wake.set()

    def direct(self, allocation: str, spec: Mapping[str, Any]) -> None:
        """Take note of what an Allocation's ``spec`` wishes of its agents; nothing, where the object is gone."""
        self._foreman.wish(allocation, wishes_of(spec))
        self.core.wake.set()

    def halt(self) -> None:
        """Have all studies start nothing more, as if a task of each had asked to stop the agents: for a local run, which ends then."""
        for study in self.core.all():
            study.switches = replace(study.switches, halt=True)
        self.core.wake.set()

    def add(self, ref: StudyRef, plan: Plan, lineage: Lineage | None = None, *, created: float | None = None) -> None:
        """Take a compiled study, as the local engine does; ``created`` in Unix seconds, None for one that is new."""
        study = Study(ref, 1, created=time.time() if created is None else created, lineage=lineage or Lineage())
        study.made = math.inf if created is None else created
        study.adopt(plan)
        self.studies[ref.uid] = study
        self.core.wake.set()

    async def forget(self, ref: StudyRef, *, timeout: float, retain: bool = False) -> bool:  # noqa: ASYNC109 several requests
        """End a study and remove what the broker holds of it; False where that took longer than ``timeout`` seconds.

        With ``retain`` its log and its plan stay there.
        """
        study = self.studies.get(ref.uid)
        if study is not None:
            study.cancelled = True
        try:
            return await self._remover.remove(ref.uid, timeout=timeout, retain=retain)
        finally:
            self.studies.pop(ref.uid, None)
            self._reader.forget(ref.uid)
            self.core.wake.set()

    async def sweep(self, live: frozenset[str]) -> None:
        """Clean what the broker holds of studies whose objects are gone; ``live`` has the uids of those that are there."""
        if self.broker.connected:
            try:
                await self._remover.sweep(live)
            except Outage as error:
                log.info("sweep interrupted, trying again error=%s", error)

    def known(self) -> frozenset[tuple[str, int]]:
        """Return (uid, generation) of every study that was observed."""
        return frozenset((uid, study.generation) for uid, study in self.studies.items())

    def quiet_seconds(self) -> float:
        """Return how long ago the loop last went round."""
        return time.monotonic() - self._last_loop

    @property
    def knows_broker(self) -> bool:
        """Whether the connection stands, and it is known what the broker has of the logs that were read."""
        return self._reader.knows_broker

    def met_broker(self) -> bool:
        """Whether there was a connection to the broker, with its streams in place."""
        return self._reader.ready.is_set()

    @property
    def load(self) -> BrokerLoad | None:
        """What the broker last said of itself; None while it cannot be asked."""
        return self._watch.load

    def counters(self) -> Counters:
        """Return the engine's counts so far."""
        broker = self.broker
        return replace(
            self.core.counters,
            broker_reconnects=broker.reconnects,
            broker_connected=broker.connected,
            broker_certificate_ends=broker.certificate_ends,
        )

    def views(self) -> Sequence[StudyView]:
        """Return every study as its user should see it."""
        full, thin = (FULL if self.load.full else "", self.load.thin) if self.load is not None else ("", "")
        return self._gallery.views(time.monotonic(), broker_full=full, broker_note=thin)

    # The loop

    async def run(self) -> None:
        """Run for ever; cancel to stop."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.broker.run(self._connected))
            tasks.create_task(self._reader.follow())
            tasks.create_task(self._reader.watch())
            tasks.create_task(self._rounds())
            tasks.create_task(self._births.run())
            tasks.create_task(self._watch.run())
            tasks.create_task(self._keep())

    async def _connected(self) -> None:
        await self.broker.ensure_streams()
        self._router.connected()
        self._warden.connected()
        await self._reader.connected()
        await self.broker.listen(self.space.all_heartbeats, self._hear)
        self.fleet.start_clocks(time.monotonic())
        await self.broker.tell(self.space.rollcall)
        self._reader.ready.set()
        self.core.wake.set()

    async def _rounds(self) -> None:
        connections = -1
        while True:
            try:
                async with asyncio.timeout(max(_TICK, _REST * self._took)):
                    await self.core.wake.wait()
                await asyncio.sleep(0.005)  # one round for a burst of reports, not one for each
            except TimeoutError:
                pass
            self.core.wake.clear()
            now = time.monotonic()
            if now - self._last_loop > max(_PAUSE, self.config.timing.heartbeat):
                self.fleet.start_clocks(now)  # it was us who paused: heartbeats wait unread, nobody was silent
            self._last_loop = now
            self.core.count(loops=1)
            if self.broker.connected and connections != self.broker.reconnects:
                connections = self.broker.reconnects
                self.fleet.start_clocks(self._last_loop)
                for study in self.core.all():
                    study.synced = False
            if self._reader.knows_broker:
                try:
                    async with self._turn:
                        await self._round()
                except Outage as error:
                    self.core.count(interrupted=1)
                    log.warning("round interrupted error=%s", error)
            await self._show()

    async def _round(self) -> None:
        now = time.monotonic()
        await self._compile_again()
        self.core.look(now)
        for study in self.core.awake():
            study.doubt(now, patience=_PATIENCE)
        await self._sync()
        await self._publisher.account()
        await self._repairer.repair(now)
        await self._judge.judge_losses(now)
        await self._warden.judge(now)
        await self._judge.judge_switches()
        await self._judge.judge_priorities()
        await self._foreman.tell(now)
        await self._router.route(now)
        await self._publisher.issue(now)
        for study in self.core.awake():
            await self._contents.settle_end(study)
            study.note_progress(now)
        self.core.let_rest(now)
        self.fleet.forget_long_gone(now)
        self._took = time.monotonic() - now
        self.rounds.add(self._took)

    async def _sync(self) -> None:
        """Sync the studies that need it; where the broker does not answer for one, or its log can't be folded, the others go on.

        Raises:
            Outage: the connection is gone, so that nothing is known of any study.
        """
        failed = 0
        for study in self.core.awake():
            began = time.monotonic()
            if study.ledger is None or study.synced or study.cancelled or began < study.sync_at:
                continue
            if study.confused:
                study.start_over()
            try:
                await self._reader.sync(study)
            except Outage as error:
                if not self._reader.knows_broker:
                    raise
                now, failed = time.monotonic(), failed + 1
                study.sync_at = now + max(_TICK, _REST * (now - began))
                self.core.count(interrupted=1)
                log.warning("sync interrupted study=%s error=%s", study.ref.name, error)
                if failed == _FAILED_SYNCS:
                    return
            except Exception as error:  # a new operator would come no further: it must not be the end of all others
                log.exception("a log can't be folded; this is a bug, please report it study=%s", study.ref.name)
                study.confused, why = True, f"{type(error).__name__}: {str(error)[:200]}"
                study.lacking = f"its log can't be read: internal error: {why}; this is a bug, please report it"
                study.sync_at = time.monotonic() + max(_UNREADABLE, 20 * (time.monotonic() - began))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            if self._reader.knows_broker:
                try:
                    await self._keeper.keep()
                except Outage as error:
                    log.info("snapshot interrupted error=%s", error)

    async def _show(self) -> None:
        now = time.monotonic()
        if now - self._last_show < max(_SHOW_EVERY, _REST * self._show_took):
            return
        self._last_show = now
        held = self.core.watch.held
        agents = [
            AgentView(beat, now - member.heard, held.get((beat.site, beat.host)))
            for member in self.fleet.members.values()
            for beat in (member.heartbeat,)
        ]
        views = self.views()
        await self.board.show(views, agents, self._gallery.news())
        self._show_took = time.monotonic() - now

    def _hear(self, subject: str, data: bytes) -> None:
        try:
            keyring = self.config.keyring
            payload = keyring.open(data, scope=AGENTS_SCOPE, context=subject, signer=Signer.AGENT)
            heartbeat = wire.Heartbeat.model_validate_json(payload)
        except (SealError, ValidationError) as error:
            self.core.refuse(error)
            log.warning("heartbeat refused subject=%s error=%s", subject, error)
            return
        self.tally.hear(heartbeat)
        if self.fleet.hear(heartbeat, time.monotonic()):
            self.core.wake.set()
