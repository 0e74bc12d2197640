"""The engine: a loop that folds what agents report and issues what comes next, for all studies of a namespace.

Level-triggered: it looks at what is there, decides (`merlin_operator.unroll`, `merlin_operator.fleet`), and carries the
decision out; nothing depends on which event woke it. What it knows of a study is the fold of that study's log, so a new
engine that reads the same log is the same engine.

A study may issue chunks only while it is *synced*: its cursor was read, then the chunks in the task stream, then the log
up to where it ended after that. In this order nothing slips through, because a chunk leaves the task stream only after its
start stands in the log. Any refused or unanswered write makes the study unsynced again: read, never repeat.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from merlin_operator import acceptance, fleet, measures, unroll
from merlin_operator.board import AgentView, Board, Submission
from merlin_operator.stream import Broker, Conflict, ConsumerSpec, Outage, Stored
from merlin_operator.study import Study
from merlin_operator.view import StudyRef, StudyView
from merlin_study import subjects, wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring, SealError, Signer

log = logging.getLogger(__name__)

AGENTS_SCOPE = "agents"
"""The key scope of what belongs to no study: heartbeats and offers."""
_PAUSE = 2.0
"""Seconds without a round after which this process, not its agents, counts as the one that was away."""
_PATIENCE = 45.0
"""Seconds that chunks may wait unstarted in a study whose log is still, before the task stream is read again."""
_KEEP_WORD = 86_400.0
"""Seconds that the word on a deleted study is kept for agents that were out of reach."""
_TICK = 0.5
"""Seconds between rounds where nothing happens."""
_SHOW_EVERY = 0.25
"""Seconds between two shows of the board, at least."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know; ``options`` is what `nats.connect` takes for credentials."""

    namespace: str
    server: str
    options: dict[str, Any]
    keyring: Keyring
    timing: wire.Timing = field(default_factory=wire.Timing)
    window_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Monotonically increasing numbers for metrics, and whether the broker is there."""

    issued_tasks: int = 0
    issued_chunks: int = 0
    reports: int = 0
    refused: int = 0
    lost_fences: int = 0
    loops: int = 0
    interrupted: int = 0
    broker_reconnects: int = 0
    broker_connected: bool = False


class Engine:
    """Runs the studies of one namespace; see the module."""

    def __init__(self, config: EngineConfig, board: Board) -> None:
        self.config, self.board = config, board
        self.space = subjects.Space(config.namespace)
        self.broker = Broker(self.space, server=config.server, options=config.options)
        self.fleet = fleet.Fleet(config.timing)
        self.tally = measures.Tally()
        self.rounds = measures.Spread(measures.ROUND_BUCKETS)
        """How long it took to go round all studies."""
        self.studies: dict[str, Study] = {}
        self._wake = asyncio.Event()
        self._counters = Counters()
        self._last_loop = time.monotonic()
        self._last_show = 0.0
        self._read_from = 0
        self._offers: dict[str, wire.Offer] = {}
        self._consumers: set[str] | None = None
        self._unwanted: dict[str, float] = {}
        self._broker_clock_ahead = 0.0
        self._ready = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held for a round and for a removal: a round in flight would publish again what a removal has purged."""

    # What the handlers call

    async def observe(self, submission: Submission) -> None:
        """Take note of a Study as it is now; compile it where it is new."""
        known = self.studies.get(submission.ref.uid)
        if known is not None and known.generation == submission.generation:
            return
        if known is not None and known.settled(acceptance.accepted(submission.status)):
            known.generation = submission.generation
            known.warnings = acceptance.judge(submission).warnings
        else:
            self.studies[submission.ref.uid] = self._compiled(submission)
        self._last_show = 0.0
        self._wake.set()

    def _compiled(self, submission: Submission) -> Study:
        verdict = acceptance.judge(submission)
        study = Study(submission.ref, submission.generation, created=submission.created)
        study.faults, study.warnings, study.spec_site = verdict.faults, verdict.warnings, verdict.site
        study.accepted_hash = str(submission.status.get("planHash") or "")
        if verdict.plan is not None:
            study.adopt(verdict.plan)
        log.info("study compiled study=%s faults=%d", submission.ref.name, len(verdict.faults))
        return study

    def add(self, ref: StudyRef, plan: Plan) -> None:
        """Take a compiled study, as the local engine does."""
        study = Study(ref, 1, created=time.time())
        study.adopt(plan)
        self.studies[ref.uid] = study
        self._wake.set()

    async def forget(self, ref: StudyRef, *, timeout: float) -> bool:  # noqa: ASYNC109 the bound covers several requests
        """Cancel a study and remove what the broker holds of it; False where that took longer than ``timeout`` seconds."""
        study = self.studies.get(ref.uid)
        if study is not None:
            study.cancelled = True
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        await self.broker.wait_connected()
                        async with self._turn:
                            await self._clean(ref.uid)
                        break
                    except Outage:
                        await asyncio.sleep(0.5)
        except TimeoutError:
            return False
        finally:
            self.studies.pop(ref.uid, None)
            self._wake.set()
        return True

    async def _clean(self, uid: str) -> None:
        """Tell agents to stop, then purge: tasks first, then the log, so that no step of it can be misread as loss.

        The word to stop stays for a day, for agents that are out of reach now; the broker drops it by itself.
        """
        space, broker = self.space, self.broker
        word = wire.Control(study=uid, cancelled=True)
        subject = space.control(uid)
        envelope = self.config.keyring.seal(word.encode(), scope=uid, context=subject)
        await broker.put(subject, envelope, keep=_KEEP_WORD)
        await broker.purge(space.task_stream, space.chunks_of(uid))
        await broker.purge(space.task_stream, space.cursor(uid))
        await broker.purge(space.report_stream, space.reports_of(uid))
        await broker.purge(space.control_stream, space.plans_of(uid))

    def known(self) -> frozenset[tuple[str, int]]:
        """Return (uid, generation) of every study that was observed."""
        return frozenset((uid, study.generation) for uid, study in self.studies.items())

    def quiet_seconds(self) -> float:
        """Return how long ago the loop last went round."""
        return time.monotonic() - self._last_loop

    def counters(self) -> Counters:
        """Return the engine's counts so far."""
        return replace(self._counters, broker_reconnects=self.broker.reconnects, broker_connected=self.broker.connected)

    def views(self) -> list[StudyView]:
        """Return every study as its user should see it."""
        now = time.monotonic()
        problem = "" if self.broker.connected else self.broker.problem
        live = list(self.fleet.live(now))
        return [
            study.view(
                agents=self._serving(study, live),
                waiting_for=self._waiting_for(study, live),
                broker_problem=problem,
                clock=now,
            )
            for study in self.studies.values()
        ]

    @staticmethod
    def _serving(study: Study, live: list[wire.Heartbeat]) -> int:
        if study.plan is None:
            return 0
        site = None if study.site == subjects.ANY_SITE else study.site
        wants = {(step.queue, step.shape) for step in study.plan.steps}
        return sum(
            any(fleet.serves(agent, site=site, queue=queue, needs=needs) for queue, needs in wants) for agent in live
        )

    @staticmethod
    def _waiting_for(study: Study, live: list[wire.Heartbeat]) -> str:
        """Say in one sentence which queue has work and no agent; empty where every queue is served."""
        if not study.active or study.plan is None or study.ledger is None:
            return ""
        site = None if study.site == subjects.ANY_SITE else study.site
        for at, step in enumerate(study.plan.steps):
            tasks = study.ledger.steps[at]
            if tasks.complete or not (tasks.available or len(tasks.issued) > len(tasks.final)):
                continue
            if not any(fleet.serves(agent, site=site, queue=step.queue, needs=step.shape) for agent in live):
                where = f" at site {site}" if site is not None else ""
                return f"no agent serves queue '{step.queue}'{where}; start merlin-agent in an allocation"
        return ""

    # The loop

    async def run(self) -> None:
        """Run for ever; cancel to stop."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.broker.run(self._connected))
            tasks.create_task(self._follow_log())
            tasks.create_task(self._rounds())

    async def _connected(self) -> None:
        await self.broker.ensure_streams()
        self._consumers = None
        self._offers.clear()
        for study in self.studies.values():
            study.synced = False
        newest = await self.broker.last_sequence(self.space.report_stream)
        if self._read_from > newest + 1:
            self._start_over()
        # Before any study is synced: what is appended from here on reaches it through the follower, what stands by sync.
        self._read_from = self._read_from or newest + 1
        await self.broker.listen(self.space.all_heartbeats, self._hear)
        self.fleet.start_clocks(time.monotonic())
        await self.broker.tell(self.space.rollcall)
        self._ready.set()
        self._wake.set()

    async def _rounds(self) -> None:
        connections = -1
        while True:
            try:
                async with asyncio.timeout(_TICK):
                    await self._wake.wait()
                await asyncio.sleep(0.005)  # one round for a burst of reports, not one for each
            except TimeoutError:
                pass
            self._wake.clear()
            now = time.monotonic()
            if now - self._last_loop > max(_PAUSE, self.config.timing.heartbeat):
                self.fleet.start_clocks(now)  # it was us who paused: heartbeats wait unread, nobody was silent
            self._last_loop = now
            self._count(loops=1)
            if self.broker.connected and connections != self.broker.reconnects:
                connections = self.broker.reconnects
                self.fleet.start_clocks(self._last_loop)
                for study in self.studies.values():
                    study.synced = False
            if self.broker.connected and self._ready.is_set():
                try:
                    async with self._turn:
                        await self._round()
                except Outage as error:
                    self._count(interrupted=1)
                    log.warning("round interrupted error=%s", error)
            await self._show()

    async def _round(self) -> None:
        now = time.monotonic()
        for study in list(self.studies.values()):
            study.doubt(now, patience=_PATIENCE)
            if study.ledger is not None and not study.synced and not study.cancelled:
                await self._sync(study)
        await self._judge_losses(now)
        await self._route(now)
        await self._issue(now)
        for study in self.studies.values():
            study.note_progress(now)
        self.fleet.forget_long_gone(now)
        self.rounds.add(time.monotonic() - now)

    async def _show(self) -> None:
        now = time.monotonic()
        if now - self._last_show < _SHOW_EVERY:
            return
        self._last_show = now
        agents = [AgentView(member.heartbeat, now - member.heard) for member in self.fleet.members.values()]
        await self.board.show(self.views(), agents)

    # Log

    async def _follow_log(self) -> None:
        """Feed new entries of every study, from where the last reader ended."""
        while True:
            await self._ready.wait()
            try:
                async with aclosing(self.broker.read_log(self.space.all_reports, start=self._read_from)) as entries:
                    async for stored in entries:
                        self._read_from = stored.sequence + 1
                        self._take(stored)
            except Outage as error:
                log.info("log reader starts again error=%s", error)
            except Exception as error:  # noqa: BLE001 an API error of the broker: the reader is made anew
                log.warning("log reader failed error=%s", error)
            await asyncio.sleep(0.2)

    def _start_over(self) -> None:
        """The log is shorter than what was read of it: another stream. Every ledger is folded anew from what it holds."""
        log.error("the log was replaced or rewound; folding every study again")
        self._read_from = 0
        for study in self.studies.values():
            study.start_over()

    def _take(self, stored: Stored) -> None:
        uid, _ = subjects.parse_report(stored.subject)
        study = self.studies.get(uid)
        if study is None or study.ledger is None:
            return
        if study.synced:
            self._fold(study, stored)
            self._wake.set()
        else:
            study.pending.append(stored)

    def _fold(self, study: Study, stored: Stored) -> None:
        if stored.sequence <= study.folded:
            return
        try:
            entry = self._entry(study.ref.uid, stored)
        except (SealError, ValidationError) as error:
            self._count(refused=1)
            study.folded = stored.sequence
            log.warning("log entry refused study=%s sequence=%d error=%s", study.ref.name, stored.sequence, error)
            return
        self._broker_clock_ahead = stored.at - time.time()
        self._count(reports=1)
        study.entry(stored, entry)

    def _entry(self, uid: str, stored: Stored) -> wire.Bound | wire.Start | wire.Report | wire.Lost:
        """Open a log entry: verdicts are the operator's, on a subject of their own, and all else is the agents'."""
        verdict = stored.subject == self.space.verdicts(uid)
        signer = Signer.OPERATOR if verdict else Signer.AGENT
        payload = self.config.keyring.open(stored.data, scope=uid, context=stored.subject, signer=signer)
        entry = wire.decode_log(payload)
        if isinstance(entry, wire.Lost) != verdict:
            raise SealError(f"a {entry.kind} has no place on {stored.subject}")
        return entry

    async def _sync(self, study: Study) -> None:
        """Bring a study's ledger to what the broker holds; the order of the reads is what makes it exact."""
        assert study.plan is not None
        assert study.ledger is not None
        await self._settle_plan(study)
        uid, ledger, space = study.ref.uid, study.ledger, self.space
        cursor = await self.broker.last(space.task_stream, space.cursor(uid))
        waiting = await self.broker.chunks(uid)
        found = [chunk for each in waiting if (chunk := self._chunk(uid, each)) is not None]
        end = await self.broker.last_sequence(space.report_stream)
        await self._catch_up(study, end)
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
        ledger.settle_waiting()
        study.cursor = cursor.sequence if cursor is not None else 0
        study.note_inherited()
        study.synced = True
        while study.pending:
            self._fold(study, study.pending.popleft())
        log.info("study synced study=%s folded=%d out=%d", study.ref.name, study.folded, len(ledger.fences))

    def _chunk(self, uid: str, stored: Stored) -> wire.Chunk | None:
        """Open a chunk; what is none is refused, counted, and left out, so that its tasks are issued anew."""
        try:
            return wire.Chunk.model_validate_json(self._own(uid, stored))
        except (SealError, ValidationError) as error:
            self._count(refused=1)
            log.warning("chunk refused subject=%s error=%s", stored.subject, error)
            return None

    def _next_fence(self, uid: str, cursor: Stored) -> int:
        try:
            return wire.Cursor.model_validate_json(self._own(uid, cursor)).next_fence
        except (SealError, ValidationError) as error:
            self._count(refused=1)
            log.warning("cursor refused subject=%s error=%s", cursor.subject, error)
            return 1

    def _own(self, uid: str, stored: Stored) -> bytes:
        """Open what an operator wrote: a chunk, a cursor, a plan."""
        return self.config.keyring.open(stored.data, scope=uid, context=stored.subject, signer=Signer.OPERATOR)

    async def _catch_up(self, study: Study, end: int) -> None:
        """Fold the study's log up to the stream's sequence ``end``."""
        subject = self.space.reports_of(study.ref.uid)
        last = await self.broker.last(self.space.report_stream, subject)
        if last is None or last.sequence <= study.folded:
            return
        async with aclosing(self.broker.read_log(subject, start=study.folded + 1)) as entries:
            async for stored in entries:
                self._fold(study, stored)
                if stored.sequence >= min(last.sequence, end):
                    return

    async def _settle_plan(self, study: Study) -> None:
        """Store the plan; where the study was accepted with another one (by an older version), go on with that."""
        assert study.plan is not None
        uid, keyring, stream = study.ref.uid, self.config.keyring, self.space.control_stream
        if study.accepted_hash not in ("", study.plan.hash):
            stored = await self.broker.last(stream, self.space.plan(uid, study.accepted_hash))
            try:
                if stored is not None:
                    study.adopt(Plan.from_json(zlib.decompress(self._own(uid, stored))))
            except (SealError, ValidationError, zlib.error) as error:
                log.warning("accepted plan refused study=%s error=%s", study.ref.name, error)
        subject = self.space.plan(uid, study.plan.hash)
        if await self.broker.last(stream, subject) is None:
            payload = zlib.compress(study.plan.to_json(), 6)
            await self.broker.put(subject, keyring.seal(payload, scope=uid, context=subject))

    # Agents

    def _hear(self, subject: str, data: bytes) -> None:
        try:
            payload = self.config.keyring.open(data, scope=AGENTS_SCOPE, context=subject, signer=Signer.AGENT)
            heartbeat = wire.Heartbeat.model_validate_json(payload)
        except (SealError, ValidationError) as error:
            self._count(refused=1)
            log.warning("heartbeat refused subject=%s error=%s", subject, error)
            return
        self.tally.hear(heartbeat)
        if self.fleet.hear(heartbeat, time.monotonic()):
            self._wake.set()

    async def _judge_losses(self, now: float) -> None:
        """Call fences lost whose holder is gone: a verdict in the log, by compare-and-set, nothing else."""
        for study in list(self.studies.values()):
            if not study.active or not study.synced or study.ledger is None:
                continue
            for number, fence in list(study.ledger.fences.items()):
                if fence.holder is None or number in study.judged:
                    continue
                if self.fleet.is_gone(fence.holder, now):
                    await self._lose(study, wire.Lost(fence=number, agent=fence.holder))

    async def _lose(self, study: Study, verdict: wire.Lost) -> None:
        subject = self.space.verdicts(study.ref.uid)
        envelope = self.config.keyring.seal(verdict.encode(), scope=study.ref.uid, context=subject)
        try:
            study.verdict = await self.broker.append(subject, envelope, expected=study.verdict)
        except Conflict:
            last = await self.broker.last(self.space.report_stream, subject)
            study.verdict = last.sequence if last is not None else 0
            study.synced = False
            return
        study.judged.add(verdict.fence)
        self._count(lost_fences=1)
        log.warning("chunk lost study=%s fence=%d agent=%s", study.ref.name, verdict.fence, verdict.agent)

    async def _route(self, now: float) -> None:
        """Make the consumers that live agents and active studies need, remove others, and tell agents of them."""
        plans = [(study.site, study.plan) for study in self.studies.values() if study.active and study.plan is not None]
        routes = fleet.routes(plans, list(self.fleet.live(now)))
        wanted = {route.consumer: route for each in routes.values() for route in each}
        if self._consumers is None:
            self._consumers = set(await self.broker.consumers())
        missing = sorted(set(wanted) - self._consumers)
        if missing:
            self._offers.clear()  # who pulled from one of these before backs off until the offer comes again
        for name in missing:
            spec = ConsumerSpec(name, self.space.chunks(wanted[name]), wanted[name].token)
            await self.broker.ensure_consumer(spec)
            self._consumers.add(name)
        for site, each in routes.items():
            await self._offer(site, each)
        self._unwanted = {name: self._unwanted.get(name, now) for name in self._consumers - set(wanted)}
        for name, since in sorted(self._unwanted.items()):
            if now - since > self.config.timing.lost_after:  # one allocation's end is often another's start
                await self.broker.delete_consumer(name)
                self._consumers.discard(name)

    async def _offer(self, site: str, routes: set[subjects.Route]) -> None:
        consumers = tuple(
            wire.Consumer(name=route.consumer, queue=route.queue, shape=route.shape, band=_band(route))
            for route in sorted(routes, key=lambda route: (route.band == unroll.BULK, route.token))
        )
        offer = wire.Offer(consumers=consumers, timing=self.config.timing)
        if self._offers.get(site) != offer:
            subject = self.space.offer(site)
            await self.broker.put(
                subject, self.config.keyring.seal(offer.encode(), scope=AGENTS_SCOPE, context=subject)
            )
            self._offers[site] = offer

    # Chunks

    async def _issue(self, now: float) -> None:
        candidates = [
            unroll.Candidate(uid, study.plan.hash, study.epoch, study.ledger, study.site, study.served)
            for uid, study in self.studies.items()
            if study.active and study.synced and study.plan is not None and study.ledger is not None
        ]
        if not candidates:
            return
        issues: dict[str, list[unroll.Issue]] = {}
        broker_now = time.time() + self._broker_clock_ahead
        for issue in unroll.next_chunks(
            candidates, self._capacity(candidates, now), window=self.config.window_seconds, now=broker_now
        ):
            issues.setdefault(issue.chunk.study, []).append(issue)
        for candidate in candidates:
            self.studies[candidate.uid].served = candidate.served
        for uid, batch in issues.items():
            await self._publish(self.studies[uid], batch)
        if issues:
            self._wake.set()

    async def _publish(self, study: Study, batch: list[unroll.Issue]) -> None:
        assert study.ledger is not None
        assert study.plan is not None
        uid, seal = study.ref.uid, self.config.keyring.seal
        cursor = wire.Cursor(study=uid, plan=study.plan.hash, epoch=study.epoch, next_fence=study.ledger.next_fence)
        cursor_subject = self.space.cursor(uid)
        chunks = []
        for issue in batch:
            subject = self.space.chunk(issue.route, uid, issue.chunk.fence)
            chunks.append((subject, seal(issue.chunk.encode(), scope=uid, context=subject)))
        try:
            study.cursor = await self.broker.publish_batch(
                (cursor_subject, seal(cursor.encode(), scope=uid, context=cursor_subject)),
                chunks,
                expected=study.cursor,
            )
        except (Conflict, Outage) as error:
            for issue in batch:
                study.ledger.withdraw(issue.chunk)
            study.synced = False
            log.warning("publication unsure study=%s error=%s", study.ref.name, error)
            return
        self._count(issued_chunks=len(batch), issued_tasks=sum(len(issue.chunk.tasks) for issue in batch))

    def _capacity(self, candidates: list[unroll.Candidate], now: float) -> dict[tuple[str, str, str], unroll.Capacity]:
        live = list(self.fleet.live(now))
        result: dict[tuple[str, str, str], unroll.Capacity] = {}
        for candidate in candidates:
            site = None if candidate.site == subjects.ANY_SITE else candidate.site
            rate = self.studies[candidate.uid].rate(now) or 0.0
            for step in candidate.ledger.plan.steps:
                key = (candidate.site, step.queue, step.shape)
                slots = sum(
                    agent.slots for agent in live if fleet.serves(agent, site=site, queue=step.queue, needs=step.shape)
                )
                known = result.get(key)
                result[key] = unroll.Capacity(slots, max(rate, known.rate if known is not None else 0.0))
        return result

    def _count(self, **more: int) -> None:
        old = self._counters
        self._counters = replace(old, **{name: getattr(old, name) + value for name, value in more.items()})


def _band(route: subjects.Route) -> Any:
    return route.band
