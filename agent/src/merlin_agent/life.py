"""A chunk's life: open its study, claim it, inherit what a lost holder finished, run it, tell what became of it.

The order is the promise: claim before anything runs; the log before the broker; the final report before the chunk is forgotten. While
the broker is away, tasks run on and the log grows; reports wait in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from merlin_agent import presence as present
from merlin_agent.binding import RefusedError
from merlin_agent.broker import Answer
from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.claim import Claimed, claim
from merlin_agent.intake import Held, Intake
from merlin_agent.post import Post, until_answered
from merlin_agent.presence import Presence
from merlin_agent.record import HolderLog, Recorder, log_path
from merlin_agent.report import Pending
from merlin_agent.sampling import SamplingWork
from merlin_agent.slots import Slots, Work
from merlin_agent.studies import NotYetError, Studies, Study, is_sampling
from merlin_study import outcomelog, wire
from merlin_study.seal import SealError

_log: Final = logging.getLogger(__name__)

TELL_EVERY: Final = 1.0
TELL_LATEST: Final = 30.0
"""How long results wait at most while the broker is away: each report is kept until it is delivered."""
_LOOK_EVERY: Final = 2.0
_RETURN_DELAY: Final = 5.0


@dataclass(eq=False)
class Life:
    """A claimed chunk with all that belongs to it."""

    run: ChunkRun
    study: Study
    consumer: str
    pending: Pending = field(default_factory=Pending)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    refused: str = ""
    serial: int = 1
    undelivered: int = 0

    def settle(self) -> None:
        """Notice that nothing of the chunk runs any more."""
        if self.run.over:
            self.over.set()


class _Reserved:
    """Slots' work that is on its way, so that no more is claimed for them; released once."""

    def __init__(self, lives: Lives, width: int) -> None:
        self._lives, self._width = lives, width
        lives.entering += width

    def release(self) -> None:
        self._lives.entering -= self._width
        self._width = 0


class Lives:
    """All chunks of this agent that are being claimed, run or reported."""

    def __init__(
        self,
        agent: str,
        *,
        post: Post,
        studies: Studies,
        slots: Slots,
        recorder: Recorder,
        presence: Presence,
        timing: Callable[[], wire.Timing],
        complain: Callable[[str], None],
    ) -> None:
        self._agent, self._post, self._studies, self._slots = agent, post, studies, slots
        self._recorder, self._presence, self._timing, self._complain = recorder, presence, timing, complain
        self._intake: Intake | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._logging: set[asyncio.Task[None]] = set()
        self.entering = 0
        """Tasks in chunks that are not fed yet: they count as ready, so that not too many are claimed."""
        self._draining = False
        self.by_run: dict[ChunkRun, Life] = {}

    def serve(self, intake: Intake) -> None:
        """Take chunks from this intake."""
        self._intake = intake

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run or to tell."""
        return not self._tasks

    def holds(self) -> tuple[tuple[str, int], ...]:
        """Return the fences that we started and have not told the end of."""
        return tuple((life.study.uid, life.run.chunk.fence) for life in self.by_run.values())

    def infos(self) -> set[str]:
        """Return the ``merlin_info`` directories of the workspaces where we hold chunks."""
        return {life.study.info for life in self.by_run.values()}

    def accept(self, held: Held) -> None:
        """Begin a chunk's life."""
        task = asyncio.create_task(self._live(held, _Reserved(self, len(held.chunk.tasks))))
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
            life = await self._enter(held)
            if life is None:
                return
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._tell(life))
                    group.create_task(self._feed(life, reserved))
            finally:
                del self.by_run[life.run]
        finally:
            reserved.release()

    async def _enter(self, held: Held) -> Life | None:
        """Open the study and claim the chunk; None where it is not ours."""
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
        if held.chunk.study in self._studies.cancelled:
            await self._intake.answer(held, Answer.DONE)
            return None
        won = await claim(self._post, wire.Start(agent=self._agent, chunk=held.chunk))
        life: Life | None = None
        if won is Claimed.WON and study is not None:
            life = Life(ChunkRun(held.chunk, urgent=held.urgent), study, held.consumer)
            self.by_run[life.run] = life
        await self._intake.answer(held, Answer.DONE)
        if won is Claimed.WON and study is None:
            await self._refuse(held, refused)
        return life

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
        run, study, loop = life.run, life.study, asyncio.get_running_loop()
        self._note(
            study,
            outcomelog.Entry(
                study=study.uid, plan=run.chunk.plan, start=wire.Start(agent=self._agent, chunk=run.chunk)
            ),
        )
        try:
            await loop.run_in_executor(None, self._presence.enter, study.info)
            work = await loop.run_in_executor(None, self._work, life)
        except (RefusedError, OSError) as error:
            life.refused = str(error)
            self._complain(life.refused)
            if self._intake is not None:
                self._intake.shun(life.consumer)
            self.hand_back(life)
            return
        if run.chunk.lost:
            reserved.release()  # this may take a minute and a half; others have the slots meanwhile
            self.wake()
            await self._inherit(life)
        if self._intake is not None:
            self._intake.praise(life.consumer)
        if self._draining:
            run.stop(Stop.HANDED_BACK)
        if run.chunk.study in self._studies.cancelled:
            run.stop(Stop.CANCELLED)
        self._slots.feed.add(run, work)
        reserved.release()
        life.settle()

    def _work(self, life: Life) -> Work:
        step = life.study.step(life.run.chunk)
        if is_sampling(life.study, life.run.chunk.step):
            return SamplingWork(life.study.layout(life.run.chunk.samples), step)
        return step.bound_to(lambda: life.pending.tells_more)

    async def _inherit(self, life: Life) -> None:
        """Adopt what lost holders finished, until none of them can run anything of it any more."""
        loop, info = asyncio.get_running_loop(), life.study.info
        logs = {lost: HolderLog(log_path(info, lost.agent), life.study.uid, lost.fence) for lost in life.run.chunk.lost}
        while True:
            gone = []
            for lost, log in logs.items():
                silent = await loop.run_in_executor(None, self._is_silent, info, lost)
                news = await loop.run_in_executor(None, log.news)  # after the look: what is silent writes no more
                life.pending.adopt(life.run.adopt(news))
                if silent or log.closed:
                    gone.append(lost)
            for lost in gone:
                del logs[lost]
            if not logs or life.run.unresolved == 0 or life.run.stopped:
                return
            await asyncio.sleep(min(_LOOK_EVERY, self._timing().presence_stale / 10))

    def _is_silent(self, info: str, lost: wire.LostHolder) -> bool:
        if lost.agent == self._agent:  # the operator thought that we were gone
            return not any(
                life.run.chunk.fence == lost.fence and not life.over.is_set() for life in list(self.by_run.values())
            )
        return present.age(info, self._agent, lost.agent) > self._timing().presence_stale

    async def _tell(self, life: Life) -> None:
        """Report what ended, now and then, and at last that the chunk is over."""
        chunk, study = life.run.chunk, life.study
        outbox: asyncio.Queue[wire.Report | None] = asyncio.Queue()
        sending = asyncio.create_task(self._send(life, outbox))
        try:
            while True:
                wait = min(TELL_LATEST, TELL_EVERY * (1 + life.undelivered))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await life.over.wait()
                final = life.over.is_set()
                if not final and not life.pending:
                    continue
                reports = life.pending.reports(
                    agent=self._agent,
                    chunk=chunk,
                    serial=life.serial,
                    final=final,
                    refused=life.refused if final else "",
                )
                life.serial += len(reports)
                for report in reports:
                    entry = outcomelog.Entry(study=study.uid, plan=chunk.plan, report=report)
                    await self._recorder.append(log_path(study.info, self._agent), outcomelog.encode_line(entry))
                    life.undelivered += 1
                    outbox.put_nowait(report)
                if final:
                    outbox.put_nowait(None)
                    await sending
                    return
        finally:
            sending.cancel()

    async def _send(self, life: Life, outbox: asyncio.Queue[wire.Report | None]) -> None:
        while (report := await outbox.get()) is not None:
            await self._deliver(life.study.uid, report)
            life.undelivered -= 1

    async def _deliver(self, study: str, report: wire.Report) -> None:
        subject = self._post.space.reports(study, report.fence)
        name = f"{study}.{report.fence}.{report.serial}"
        await until_answered(lambda: self._post.store(study, subject, report, message_id=name))

    def _note(self, study: Study, entry: outcomelog.Entry) -> None:
        """Log a line that nothing waits for; lines are written in their order."""
        task = asyncio.create_task(
            self._recorder.append(log_path(study.info, self._agent), outcomelog.encode_line(entry))
        )
        self._logging.add(task)
        task.add_done_callback(self._logging.discard)

    def hand_back(self, life: Life) -> None:
        """Start nothing more of a chunk; what runs of it goes on."""
        self._slots.stop(life.run, Stop.HANDED_BACK, strike=False)
        life.settle()

    def cancel(self, study: str) -> None:
        """End all that runs of a study."""
        for life in list(self.by_run.values()):
            if life.study.uid == study:
                self._slots.stop(life.run, Stop.CANCELLED, strike=True)
                life.settle()

    async def drain(self, grace: float, hurry: asyncio.Event) -> None:
        """Hand back what has not started, let what runs end within the grace, then end it; return when all is told."""
        self._draining = True
        for life in list(self.by_run.values()):
            self.hand_back(life)
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
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        for task in self._tasks:
            task.cancel()

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
