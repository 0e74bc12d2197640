"""A chunk's life: open its study, claim it, inherit what a lost holder finished, run it, tell what became of it.

The order is the promise: claim before anything runs; the log before the broker; the final report before the chunk is forgotten. While
the broker is away, tasks run on and the log grows; reports wait in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from merlin_agent import files, leftovers, scan
from merlin_agent import presence as present
from merlin_agent.binding import RefusedError
from merlin_agent.broker import Answer
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.claim import Claimed, claim
from merlin_agent.demand import Host
from merlin_agent.execute import ChunkWork
from merlin_agent.ground import Ground
from merlin_agent.intake import Held, Intake
from merlin_agent.lean import LeanWork
from merlin_agent.measure import published_at
from merlin_agent.packed import PackedWork
from merlin_agent.post import Post, until_answered
from merlin_agent.presence import Presence
from merlin_agent.record import HolderLogs, Recorder, log_path
from merlin_agent.rehearsal import RehearsedWork, at_once
from merlin_agent.report import Pending
from merlin_agent.sampling import SamplingWork
from merlin_agent.slots import Slots, Work
from merlin_agent.studies import NotYetError, Studies, Study, is_sampling
from merlin_study import failpoints, history, outcomelog, wire
from merlin_study.outcome import Outcome
from merlin_study.seal import SealError
from merlin_study.workspace import OUTCOMES

_log: Final = logging.getLogger(__name__)

TELL_EVERY: Final = 1.0
TELL_LATEST: Final = 30.0
"""How long results wait at most while the broker is away: each report is kept until it is delivered."""
TOLD_WITHIN: Final = 10.0
"""Seconds that an agent which leaves gives the broker to take its last reports."""
SYNCED_WITHIN: Final = 600.0
"""Seconds that it takes for archives of what its tasks left. Thrown away, their tasks would run again; a file system that hangs must not
keep the agent for ever, and a second signal ends the waiting."""
_LOOK_EVERY: Final = 2.0
_RETURN_DELAY: Final = 5.0


class OutdatedError(Exception):
    """A chunk was issued in an earlier epoch of its study; the operator issues its tasks again."""


@dataclass(eq=False)
class Life:
    """A claimed chunk with all that belongs to it."""

    run: ChunkRun
    study: Study
    consumer: str
    pending: Pending = field(default_factory=Pending)
    telling: Pending = field(default_factory=Pending)
    """What ended and is on disk, on its way into a report."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    work: Work | None = None
    refused: str = ""
    serial: int = 1
    untold: deque[wire.Report] = field(default_factory=deque)
    """Reports that are made and not delivered, in their order."""
    recorded: bool = False
    """Whether all that became of it is in our log."""
    queue: str = ""
    wide: bool = False
    """Whether its tasks run over several hosts."""
    syncing: bool = False
    """Whether what its tasks left is being brought from here to where it stays."""
    forerunners: tuple[wire.LostHolder, ...] = ()
    """Who had claimed its fence before a broker was put back that knew of it; lost holders as any."""
    published: float | None = None
    """When its chunk was handed to the broker, by the broker's clock; None where that is not known."""

    @property
    def earlier(self) -> tuple[wire.LostHolder, ...]:
        """Who held the chunk before, and may have run some of it."""
        return *self.run.chunk.lost, *self.forerunners

    @property
    def patience(self) -> float:
        """See `Work.patience`."""
        return 0.0 if self.work is None else self.work.patience

    def settle(self) -> None:
        """Notice that nothing of the chunk runs any more."""
        if self.run.over:
            self.over.set()


class _Reserved:
    """Slots' work that is on its way, so that no more is claimed for them; released once."""

    def __init__(self, lives: Lives, held: Held) -> None:
        self._lives, self._width, self._wide = lives, held.width, int(held.wide)
        lives.entering += self._width
        lives.entering_wide += self._wide

    def release(self) -> None:
        self._lives.entering -= self._width
        self._lives.entering_wide -= self._wide
        self._width = self._wide = 0


class Lives:
    """All chunks of this agent that are being claimed, run or reported."""

    def __init__(  # noqa: PLR0913 - its parts
        self,
        agent: str,
        *,
        host: Host,
        post: Post,
        studies: Studies,
        slots: Slots,
        recorder: Recorder,
        presence: Presence,
        timing: Callable[[], wire.Timing],
        complain: Callable[[str], None],
    ) -> None:
        self._host = host
        self._agent, self._post, self._studies, self._slots = agent, post, studies, slots
        self._recorder, self._presence, self._timing, self._complain = recorder, presence, timing, complain
        self._intake: Intake | None = None
        self._rehearsed: Callable[[ChunkRun, int], None] = lambda _, __: None
        self._tasks: set[asyncio.Task[None]] = set()
        self.entering = 0
        """Slots' worth of tasks in chunks that are not fed yet: they count as ready, so that not too many are claimed."""
        self.entering_wide = 0
        """Chunks of tasks of several hosts that are not fed yet."""
        self._draining = False
        self._holder_logs = HolderLogs()
        self._ground = Ground(post)
        self._tidied: set[tuple[str, int]] = set()
        self.by_run: dict[ChunkRun, Life] = {}
        self.full: set[str] = set()
        """Studies for whose files there is no room, as far as we know."""

    def serve(self, intake: Intake, rehearsed: Callable[[ChunkRun, int], None]) -> None:
        """Take chunks from this intake; ``rehearsed`` hears of tasks that were rehearsed in no time."""
        self._intake, self._rehearsed = intake, rehearsed

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run or to tell."""
        return not self._tasks

    def holds(self) -> tuple[tuple[str, int], ...]:
        """Return the fences that we started and have not told the end of."""
        return tuple((life.study.uid, life.run.chunk.fence) for life in self.by_run.values())

    @property
    def steps(self) -> set[tuple[str, int]]:
        """The steps of the chunks that we hold, study and number, but for those whose tasks run over several hosts."""
        return {life.run.step for life in self.by_run.values() if not life.wide}

    def infos(self) -> set[str]:
        """Return the ``merlin_info`` directories of the workspaces where we hold chunks."""
        return {life.study.info for life in self.by_run.values()}

    def accept(self, held: Held) -> None:
        """Begin a chunk's life."""
        task = asyncio.create_task(self._live(held, _Reserved(self, held)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a chunk's life broke; this is a bug, please report it", exc_info=task.exception())
        self.wake()

    def wake(self) -> None:
        """Have the intake look again."""
        if self._intake is not None:
            self._intake.wake()

    async def _live(self, held: Held, reserved: _Reserved) -> None:
        try:
            try:
                entered = await self._enter(held)
            except Exception as error:  # noqa: BLE001 - a chunk's boundary: kept unanswered, it would run nowhere
                _log.exception("a chunk could not be claimed; this is a bug, please report it")
                await self._give_back(held, _bug(error))
                return
            if entered is not None:
                await self._lead(held, *entered, reserved)
        finally:
            reserved.release()

    async def _enter(self, held: Held) -> tuple[Study | None, str] | None:
        """Open the study and claim the chunk; return the study, or why it can't be run, and None where the chunk is not ours."""
        assert self._intake is not None, "a chunk came from nowhere; this is a bug"
        refused = ""
        study: Study | None = None
        try:
            study = await self._studies.open(held.chunk)
        except NotYetError as error:
            await self._give_back(held, str(error))
            return None
        except (RefusedError, SealError, OSError) as error:
            refused = str(error)
        except Exception as error:  # noqa: BLE001 - claimed, its fault is told; given back in silence, nobody would know
            _log.exception("a study could not be opened; this is a bug, please report it")
            refused = _bug(error)
        if held.chunk.study in self._studies.cancelled or self._studies.is_outdated(held.chunk):
            await self._intake.answer(held, Answer.DONE)
            return None
        if study is not None and (why := self._is_too_late(study, held.chunk)):
            await self._give_back(held, why)
            return None
        failpoints.reach("agent.claim")
        won = await claim(self._post, wire.Start(agent=self._agent, chunk=held.chunk))
        failpoints.reach("agent.claimed")
        if won is not Claimed.WON:
            await self._intake.answer(held, Answer.DONE)
            return None
        history.note("claimed", study=held.chunk.study, fence=held.chunk.fence, agent=self._agent)
        return study, refused

    async def _lead(self, held: Held, study: Study | None, refused: str, reserved: _Reserved) -> None:
        """Take a claimed chunk to its final report, whatever happens: while we live nobody else may run it."""
        assert self._intake is not None
        life: Life | None = None
        try:
            if study is not None:
                life = self._begin(held, study)
            await self._intake.answer(held, Answer.DONE)
            if life is None:
                await self._refuse(held, refused)
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell(life))
                group.create_task(self._feed(life, reserved))
        except Exception as error:  # noqa: BLE001 - a chunk's boundary: its fence is ours until we give it up
            _log.exception("a chunk's life broke; this is a bug, please report it")
            with contextlib.suppress(Exception):  # it may be what broke
                await self._intake.answer(held, Answer.DONE)
            if life is None:
                await self._refuse(held, _bug(error))
            else:
                await self._abandon(life, _bug(error))
        finally:
            if life is not None:
                del self.by_run[life.run]
                if life.work is not None:
                    await asyncio.to_thread(life.work.close)

    def _begin(self, held: Held, study: Study) -> Life:
        life = Life(ChunkRun(held.chunk, urgent=held.urgent), study, held.consumer)
        life.published = published_at(held.copies[0].reply)
        with contextlib.suppress(RefusedError):  # who prepares it says so
            life.queue = study.lane(held.chunk).queue
        self.by_run[life.run] = life
        return life

    async def _abandon(self, life: Life, why: str) -> None:
        """End what runs of a chunk whose life broke, tell what can be told of it, and hand back the rest."""
        self._complain(why)
        if self._intake is not None:
            self._intake.shun(life.consumer)
        self._slots.stop(life.run, Stop.HANDED_BACK, strike=True)
        life.settle()
        await life.over.wait()
        if not life.untold or not life.untold[-1].final:
            life.untold.extend(self._last_reports(life, why))
        for report in life.untold:
            entry = outcomelog.Entry(study=life.study.uid, plan=life.run.chunk.plan, report=report)
            steps = (
                functools.partial(self._record, life.study, entry),
                functools.partial(self._deliver, life.study.uid, report),
            )
            for step in steps:
                try:
                    await step()
                except Exception:  # noqa: BLE001 - one that can't be told must not keep back the last one
                    _log.exception("a report can't be told; this is a bug, please report it")

    def _last_reports(self, life: Life, why: str) -> list[wire.Report]:
        told: list[wire.Report] = []
        with contextlib.suppress(Exception):  # what was to be told may be what broke; then its tasks run again
            told = life.telling.reports(
                agent=self._agent, chunk=life.run.chunk, serial=life.serial, final=False, refused=""
            )
        serial = life.serial + len(told)
        for pending in (life.pending, Pending()):
            with contextlib.suppress(Exception):
                return told + pending.reports(
                    agent=self._agent, chunk=life.run.chunk, serial=serial, final=True, refused=why
                )
        return told

    async def _give_back(self, held: Held, why: str) -> None:
        assert self._intake is not None
        self._complain(why)
        self._intake.shun(held.consumer)
        await self._intake.answer(held, Answer.BACK, delay=_RETURN_DELAY)

    async def _refuse(self, held: Held, why: str) -> None:
        """Hand a chunk back that we claimed only to say that we can't run it."""
        assert self._intake is not None
        self._complain(why)
        self._intake.shun(held.consumer)
        (report,) = Pending().reports(agent=self._agent, chunk=held.chunk, serial=1, final=True, refused=why)
        await self._deliver(held.chunk.study, report)

    async def _feed(self, life: Life, reserved: _Reserved) -> None:
        """Do what comes before the first task, then let the slots have the chunk."""
        run = life.run
        try:
            await self._stand_by(life)
            work = await self._prepare(life, reserved)
        except OutdatedError as error:
            life.refused = str(error)
            self.hand_back(life)
            return
        except (RefusedError, OSError) as error:
            if isinstance(error, OSError) and error.errno in files.FULL:
                self.full.add(life.study.uid)
            self._decline(life, str(error))
            return
        except Exception as error:  # noqa: BLE001 - nothing runs yet, so it can be handed back
            _log.exception("a chunk could not be prepared; this is a bug, please report it")
            self._decline(life, _bug(error))
            return
        if why := self._is_too_late(life.study, run.chunk):
            self._decline(life, why)
            return
        if self._intake is not None:
            self._intake.praise(life.consumer)
        if self._draining:
            run.stop(Stop.HANDED_BACK)
        if (stopped := self._studies.stopped(run.chunk)) is not None:
            run.stop(stopped)
        self._start(life, work)
        reserved.release()
        self.wake()  # slots take what is ready, and what was ready for them has to be replaced
        life.settle()

    def _is_too_late(self, study: Study, chunk: wire.Chunk) -> str:
        """Return why a chunk's tasks would not end in time; empty where they would, as far as they declare a walltime.

        Its consumer says the class of that only.
        """
        try:
            walltime = study.lane(chunk).walltime
        except RefusedError:  # who prepares it says so
            return ""
        if walltime is None or self._intake is None or self._intake.seconds_left() >= walltime:
            return ""
        return f"study {chunk.study}, step {chunk.step}: declares a walltime of {walltime} s, more than this allocation has left"

    def _start(self, life: Life, work: Work) -> None:
        lane = life.study.lane(life.run.chunk)
        needs = self._host.room_of(lane.shape)
        if needs.nodes == 1:
            self._slots.feed.add(life.run, work, needs)
        elif self._slots.wide.can(needs):
            life.wide = True
            self._slots.wide.add(life.run, work, needs)
        else:
            self._decline(life, f"expected {needs.nodes} hosts for a task, found fewer by now")
            return
        if lane.walltime is None or self._intake is None:
            return
        if (left := self._intake.seconds_left()) < float("inf"):
            # What has not started by then would not end in time.
            asyncio.get_running_loop().call_later(max(0.0, left - lane.walltime), self.hand_back, life)

    async def _stand_by(self, life: Life) -> None:
        """Write our claim where a log that is lost can be told from, and only then ask whether it still counts.

        In this order: whoever raises the epoch says so before it has the workspace read. So either our claim is read there, or we
        see the epoch. Whoever finds our claim has to find us present, too.

        Raises:
            RefusedError: the claim can't be written.
            OutdatedError: it counts for nothing.
            OSError: the claims of others can't be read.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._presence.enter, life.study.info)
        chunk = life.run.chunk
        start = wire.Start(agent=self._agent, chunk=chunk)
        failpoints.reach("agent.standby")
        written = outcomelog.Entry(study=life.study.uid, plan=chunk.plan, start=start)
        if (problem := await self._record(life.study, written)) is not None:
            if problem.errno in files.FULL:
                self.full.add(life.study.uid)
            path = log_path(life.study.info, self._agent)
            raise RefusedError(f"{path}: the outcome log can't be written: {problem.strerror}")
        failpoints.reach("agent.stoodby")
        if not await self._studies.counts(chunk):
            raise OutdatedError(f"chunk {chunk.fence}: issued before its study's log was lost; it is issued again")
        if await self._ground.may_return(life.published):
            await self._look_back(life, start)

    async def _look_back(self, life: Life, start: wire.Start) -> None:
        """Find out who had claimed a chunk before that the broker may have handed out twice, once our own claim is written down.

        Of two that find each other's claims, the one whose claim is the first in the log goes on, and waits for the other.

        Raises:
            OutdatedError: that is not we.
            OSError: the claims can't be read.
        """
        if await claim(self._post, start) is not Claimed.WON:
            raise OutdatedError(f"chunk {start.chunk.fence}: another agent claimed it, too")
        directory = f"{life.study.info}/{OUTCOMES}"
        life.forerunners = await asyncio.to_thread(self._ground.claims.others, directory, start, made=self._ground.made)
        if life.forerunners:
            names = ", ".join(each.agent for each in life.forerunners)
            _log.warning("study %s, chunk %d: claimed before by %s", life.study.uid, start.chunk.fence, names)

    async def _prepare(self, life: Life, reserved: _Reserved) -> Work:
        """Make ready what runs the tasks, and inherit what earlier holders of the chunk finished."""
        loop = asyncio.get_running_loop()
        work = life.work = await loop.run_in_executor(None, self._work, life)
        if life.run.chunk.scan:
            layout = life.study.layout(life.run.chunk.samples)
            seen = await loop.run_in_executor(None, scan.look, layout, life.run.chunk)
            life.pending.adopt(life.run.adopt(seen))
            return work
        if found := life.run.adopt(() if is_sampling(life.study, life.run.chunk.step) else at_once(life.run.chunk)):
            life.pending.adopt(found)
            self._rehearsed(life.run, sum(len(each.tasks) for each in found))
        if life.earlier and life.run.unresolved:
            reserved.release()  # this may take a minute and a half; others have the slots meanwhile
            self.wake()
            await self._inherit(life)
        if isinstance(work, PackedWork) and (life.earlier or life.run.step not in self._tidied):
            self._tidied.add(life.run.step)
            await loop.run_in_executor(None, self._tidy, life, work)
        return work

    def _tidy(self, life: Life, work: PackedWork) -> None:
        """Remove what dead agents left half beside the archives of a chunk; one that stays is in nobody's way."""
        tasks, stale = life.run.chunk.tasks, self._timing().presence_stale
        with contextlib.suppress(OSError):
            leftovers.remove(
                work.archives, range(tasks.first, tasks.end), info=life.study.info, agent=self._agent, stale=stale
            )

    def _decline(self, life: Life, why: str) -> None:
        """Hand a chunk back of which nothing runs yet; `_tell` says why."""
        life.refused = why
        self._complain(why)
        if self._intake is not None:
            self._intake.shun(life.consumer)
        self.hand_back(life)

    def _work(self, life: Life) -> Work:
        chunk = life.run.chunk
        sampling = is_sampling(life.study, chunk.step)
        if chunk.scan or (chunk.rehearse is not None and not sampling):
            life.study.check(chunk)
            return RehearsedWork(chunk.rehearse or 0.0)
        step = life.study.step(chunk)
        if sampling:
            return SamplingWork(life.study.layout(chunk.samples), step)
        if step.is_lean:
            kind = PackedWork if step.is_packed else LeanWork
            return kind(step, chunk, agent=self._agent, tells=lambda: life.pending.tells_more)
        return ChunkWork(step, lambda: life.pending.tells_more)

    async def _inherit(self, life: Life) -> None:
        """Adopt what earlier holders finished, until none of them can run anything of it any more.

        Not so of the samples: their number goes with the success, and finding it again costs no more than reading the file.
        """
        loop, info = asyncio.get_running_loop(), life.study.info
        adopts = not is_sampling(life.study, life.run.chunk.step)
        logs = {
            lost: self._holder_logs.of(log_path(info, lost.agent), life.study.uid, lost.fence) for lost in life.earlier
        }
        while True:
            gone = []
            for lost, log in logs.items():
                silent = await loop.run_in_executor(None, self._is_silent, life, lost)
                news = await loop.run_in_executor(None, log.news)  # after the look: what is silent writes no more
                if adopts:
                    life.pending.adopt(life.run.adopt(news))
                if silent or log.closed:
                    gone.append(lost)
            for lost in gone:
                del logs[lost]
            if not logs or life.run.unresolved == 0 or life.run.stopped:
                return
            await asyncio.sleep(min(_LOOK_EVERY, self._timing().presence_stale / 10))

    def _is_silent(self, life: Life, lost: wire.LostHolder) -> bool:
        if lost.agent == self._agent:  # the operator thought that we were gone, or the broker has forgotten us
            before = itertools.takewhile(lambda each: each is not life, list(self.by_run.values()))
            return not any(each.run.chunk.fence == lost.fence and not each.recorded for each in before)
        return present.age(life.study.info, self._agent, lost.agent) > self._timing().presence_stale

    async def _tell(self, life: Life) -> None:
        """Report what ended, now and then, and at last that the chunk is over."""
        chunk, study = life.run.chunk, life.study
        outbox: asyncio.Queue[wire.Report | None] = asyncio.Queue()
        sending = asyncio.create_task(self._send(life, outbox))
        try:
            while True:
                wait = max(life.patience, min(TELL_LATEST, TELL_EVERY * (1 + len(life.untold))))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await life.over.wait()
                final = life.over.is_set()
                if not final and not life.pending:
                    continue
                ended, life.pending = life.pending, Pending()
                if not await self._is_durable(life, ended):
                    ended = Pending()  # nothing of it was told: its tasks are handed back
                life.telling = ended
                reports = ended.reports(
                    agent=self._agent,
                    chunk=chunk,
                    serial=life.serial,
                    final=final,
                    refused=life.refused if final else "",
                )
                life.serial += len(reports)
                life.untold.extend(reports)
                life.telling = Pending()
                for report in reports:
                    entry = outcomelog.Entry(study=study.uid, plan=chunk.plan, report=report)
                    failpoints.reach("agent.record")
                    await self._record(study, entry)
                    failpoints.reach("agent.recorded")
                    outbox.put_nowait(report)
                if final:
                    life.recorded = True
                    outbox.put_nowait(None)
                    await sending
                    return
        finally:
            sending.cancel()

    async def _is_durable(self, life: Life, ended: Pending) -> bool:
        """Have what the tasks left be on disk before their success is told; return whether it is."""
        if life.work is None:
            return True
        life.syncing = True
        try:
            await asyncio.get_running_loop().run_in_executor(None, life.work.sync)
        except OSError as error:
            self._complain(f"{life.study.root}: what tasks left can't be synced: {error.strerror}; they run again")
            if self._intake is not None:
                self._intake.pause()
            if error.errno in files.FULL:
                self.full.add(life.study.uid)
            self.hand_back(life)
            return False
        finally:
            life.syncing = False
        if life.patience and ended:
            self._goes_well(life)
        return True

    def note(self, life: Life, ended: Ended) -> None:
        """Take what became of a task, and see by it whether tasks can be run here."""
        life.pending.add(ended)
        if ended.full:
            self.full.add(life.study.uid)
        if ended.outcome is None and ended.problem:
            if self._intake is not None:
                self._intake.pause()
            self.hand_back(life)
        elif ended.outcome is Outcome.SUCCEEDED and not life.patience:
            self._goes_well(life)

    def _goes_well(self, life: Life) -> None:
        """Tasks can be run here, and what they leave is kept."""
        self.full.discard(life.study.uid)
        if self._intake is not None:
            self._intake.go_on()

    async def _send(self, life: Life, outbox: asyncio.Queue[wire.Report | None]) -> None:
        while (report := await outbox.get()) is not None:
            await self._deliver(life.study.uid, report)
            life.untold.popleft()

    async def _deliver(self, study: str, report: wire.Report) -> None:
        subject = self._post.space.reports(study, report.fence)
        name = f"{study}.{report.fence}.{report.serial}"
        await until_answered(lambda: self._post.store(study, subject, report, message_id=name))
        failpoints.reach("agent.reported")
        history.note("reported", study=study, fence=report.fence, serial=report.serial, final=report.final)

    async def _record(self, study: Study, entry: outcomelog.Entry) -> OSError | None:
        return await self._recorder.append(log_path(study.info, self._agent), outcomelog.encode_line(entry))

    def hand_back(self, life: Life) -> None:
        """Start nothing more of a chunk; what runs of it goes on."""
        self._slots.stop(life.run, Stop.HANDED_BACK, strike=False)
        life.settle()

    def hand_back_all(self) -> None:
        """Start nothing more of any chunk."""
        for life in list(self.by_run.values()):
            self.hand_back(life)

    def obey(self, study: str) -> None:
        """Stop what the word on a study stops: nothing more of it starts, and what was cancelled ends."""
        for life in list(self.by_run.values()):
            if life.study.uid == study and (why := self._studies.stopped(life.run.chunk)) is not None:
                self._slots.stop(life.run, why, strike=why is Stop.CANCELLED)
                life.settle()

    async def finish(self) -> None:
        """Hand back what has not started, and return when what runs has ended, however long it takes, and all is told."""
        self._start_no_more()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _start_no_more(self) -> None:
        self._draining = True
        self.hand_back_all()

    async def drain(self, grace: float, hurry: asyncio.Event) -> None:
        """Hand back what has not started, let what runs end within the grace, then end it; return when all is told."""
        self._start_no_more()
        await self._all_over(grace, hurry)
        deadline = time.monotonic() + 20
        patient = not hurry.is_set()
        while any(life.run.running for life in self.by_run.values()) and time.monotonic() < deadline:
            for life in list(self.by_run.values()):
                if patient:
                    self._slots.stop(life.run, Stop.HANDED_BACK, strike=True)
                else:
                    self._slots.kill(life.run, Stop.HANDED_BACK)
            await self._all_over(6.0 if patient else 0.2, hurry)
            patient = False
        await self._all_told(hurry)
        for task in self._tasks:
            task.cancel()

    async def _all_told(self, hurry: asyncio.Event) -> None:
        """Wait until all is told, or nobody would hear it, or what tasks left can't be kept in any reasonable time."""
        quiet, syncing = TOLD_WITHIN, SYNCED_WITHIN
        while self._tasks and quiet > 0 and syncing > 0:
            syncs = any(life.syncing for life in self.by_run.values())
            began = time.monotonic()
            await asyncio.wait(self._tasks, timeout=0.2)
            passed = time.monotonic() - began
            if syncs and not hurry.is_set():
                syncing -= passed
            else:
                quiet -= passed

    async def _all_over(self, seconds: float, hurry: asyncio.Event) -> None:
        """Wait until nothing runs, the time is up, or somebody is in a hurry."""
        waits = [asyncio.ensure_future(self._none_runs()), asyncio.ensure_future(hurry.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for waited in waits:
            waited.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _none_runs(self) -> bool:
        for life in list(self.by_run.values()):
            await life.over.wait()
        return True


def _bug(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"internal error: {type(error).__name__}: {error}; this is a bug, please report it"
