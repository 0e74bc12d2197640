"""The agent's parts and their lives: what starts in which order, what a signal does, what is told when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import logging
import os
import pwd
import secrets
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, Final

from merlin_agent import allocation, config, launch, party, surroundings, warm
from merlin_agent.allowance import Allowance, share
from merlin_agent.assigned import Assigned
from merlin_agent.beat import Beat, Problems
from merlin_agent.binding import Place
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.config import Credentials, Settings
from merlin_agent.demand import Host, Load, Means
from merlin_agent.desk import Desk
from merlin_agent.intake import Intake, Offered, Reach, Taste
from merlin_agent.life import Lives
from merlin_agent.link import Link
from merlin_agent.measure import Measures
from merlin_agent.owndisk import OwnDisk
from merlin_agent.pairing import Leave
from merlin_agent.party import Party
from merlin_agent.post import Post
from merlin_agent.presence import Presence
from merlin_agent.reaper import Reaper
from merlin_agent.record import Recorder
from merlin_agent.retell import Reteller
from merlin_agent.slots import Slots
from merlin_agent.studies import Studies
from merlin_agent.submissions import Submissions
from merlin_study import wire
from merlin_study.seal import Keyring
from merlin_study.subjects import Space

_log: Final = logging.getLogger(__name__)
_VERSION: Final = version("merlin-agent")

AWAITING: Final = 10
"""How much longer an idle agent stays while a study that it serves has work left: retries that are due later, other agents' tasks."""
TERM_GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL for a task that has to end."""


def new_id(host: str, name: str = "") -> str:
    """Return a name for an agent that no other has had or will have; it begins with the one that its user gave it."""
    own = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
    return f"{name}-{own}" if name else own


class Agent:
    """One `merlin-agent`; `run` returns when it has left."""

    def __init__(self, settings: Settings, *, keys: Keyring, credentials: Credentials) -> None:
        if not (settings.lifeline or settings.this_node or "slots" in settings.model_fields_set):
            _refuse_elsewhere()
        self._settings = settings
        self._host = surroundings.host()
        self.id = new_id(self._host, settings.name)
        self._allocation = allocation.facts(allocation.here(), time.time())
        self._problems = Problems()
        self._means = Means()
        self._measures = Measures()
        self._done = self._refused = 0
        self._leaving = self._left = self._awaited = False
        self._busy_at = time.monotonic()
        self._grace, self._late = settings.drain_grace, False
        self._leave, self._hurry = asyncio.Event(), asyncio.Event()
        renew = functools.partial(config.renewed_credentials, settings)
        self._link = Link(server=settings.server, credentials=credentials, name=self.id, renew=renew)
        post = Post(self._link, keys, Space(settings.namespace))
        found = allocation.here()
        self._clock = allocation.clock()
        wide = party.wide_slots(found, settings.slots, alone=settings.lifeline)
        self._reaper = Reaper(settings.slots + wide)
        self._desk = Desk(has_command=importlib.util.find_spec("merlin_cli") is not None)
        for path in self._desk.leftovers():
            self._reaper.remove_at_end(path)
        environ = launch.environment(os.environb, coerced=launch.coerced_locale(os.environb))
        environ |= self._desk.variables(environ.get(b"PATH", b""))
        self._slots = Slots(
            settings.slots,
            gpus=settings.gpus,
            wide=wide,
            cpus=allocation.processors(found) if settings.bind else (),
            impossible=self._on_impossible,
            launcher=launch.DirectLauncher(environ),
            warm=warm.makers(environ, self._complain_from_slot),
            loss=lambda *task: self._party.loss(*task),  # noqa: PLW0108 - the party is made later
            watch=self._reaper.watch,
            deliver=self._on_ended,
            grace=TERM_GRACE,
            creates=Allowance(self._creates),
        )
        self._presence = Presence(self.id, self._reaper.remove_at_end)
        self._recorder = Recorder(self._complain)
        self._own_disk = OwnDisk(str(settings.scratch), self._reaper.remove_at_end)
        self._studies = Studies(
            post,
            Place(settings.site, self.id),
            str(settings.workspace),
            self._on_word,
            self._on_end,
            own_disk=self._own_disk,
            warn=None if settings.lifeline else self._complain_from_slot,  # the command of a local run looks itself
        )
        host = Host(settings.slots, len(settings.gpus), memory=settings.memory)
        self._lives = Lives(
            self.id,
            host=host,
            post=post,
            studies=self._studies,
            slots=self._slots,
            recorder=self._recorder,
            presence=self._presence,
            timing=lambda: self._intake.offer.timing,
            complain=self._complain,
        )
        self._party = Party(
            found,
            self._slots,
            agent=self.id,
            workspace=str(settings.workspace),
            group=(settings.namespace, settings.site, ",".join(settings.queues), settings.study),
            server=settings.server,
            gpus=len(settings.gpus),
            alone=settings.lifeline,
            spreads=not settings.this_node,
            has_part="slots" in settings.model_fields_set,
            idle=self._idle_for,
            changed=self._on_hosts_changed,
            freed=lambda: self._intake.wake(),  # noqa: PLW0108 - made later
            leave=self._on_led_away,
            complain=self._complain,
        )
        self._submissions = Submissions(
            post,
            self._slots.badges,
            agent=self.id,
            site=settings.site,
            allowed=settings.submissions,
            cancelled=self._studies.cancelled.__contains__,
        )
        self._assigned = Assigned(
            post, site=settings.site, agent=self.id, obey=self._on_assignment, refuse=self._on_refused
        )
        self._retiring: asyncio.Task[None] | None = None
        self._user = _user()
        self._reteller = Reteller(post, self._studies, agent=self.id, site=settings.site, complain=self._complain)
        self._beat = Beat(post, self._describe, lambda: self._intake.offer.timing.heartbeat)
        self._intake = Intake(
            post,
            Taste(settings.site, settings.queues, settings.study, host, self._host),
            load=self._load,
            reach=Reach(
                hosts=lambda: self._party.hosts,
                has_room=lambda: self._lives.entering_wide == 0 and self._slots.wide.waiting == 0,
            ),
            seconds_left=lambda: self._clock.seconds_left(time.time()),
            accept=self._lives.accept,
            refuse=self._on_refused,
            offered=Offered(retimed=self._beat.soon, quarantined=self._on_quarantined, recalled=self._reteller.heed),
        )
        self._lives.serve(self._intake, self._on_rehearsed)
        self._link.listen(post.space.rollcall, lambda _: self._beat.soon())
        self._link.on_connect(self._beat.soon)

    async def run(self) -> None:
        """Work until asked to leave."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._on_warning)
        await self._desk.open(self._submissions.serve)
        self._slots.start()
        _log.info("agent %s serves site %s with %d slots", self.id, self._settings.site, self._slots.count)
        linked = asyncio.create_task(self._link.run())
        helpers = [asyncio.create_task(part) for part in self._parts()]
        if self._settings.lifeline:
            self._watch_lifeline(loop)
        leaving = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait({leaving, linked, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            for part in (linked, *helpers):
                if part.done():
                    part.result()  # a part that ended by itself broke: say so, and leave properly all the same
        finally:
            await self._go(helpers, linked)

    def _parts(self) -> list[Coroutine[Any, Any, None]]:
        parts = [self._beat.run(), self._take_in(), self._be_present(), self._take_part(), self._leave_in_time()]
        settings = self._settings
        if settings.idle_exit is not None and not settings.keep_alive and not settings.lifeline:
            parts.append(self._leave_when_idle(settings.idle_exit))
        return parts

    async def _take_in(self) -> None:
        await self._party.begun.wait()
        await self._intake.run()

    async def _take_part(self) -> None:
        await self._party.run()
        await asyncio.Event().wait()

    async def _leave_in_time(self) -> None:
        """Drain before the allocation's end, so that nothing is cut off untold."""
        while True:
            left = self._clock.leaves_at(self._settings.end_margin) - time.time()
            if left <= 0:
                _log.info("the allocation ends; draining")
                self._leave_late()
                return
            await asyncio.sleep(min(left, 60.0))

    def _leave_late(self) -> None:
        """Leave, and let what runs go on as long as the allocation allows."""
        left = self._clock.seconds_left(time.time())
        self._late = left != allocation.FOREVER
        self._grace = left if self._late else self._settings.drain_grace
        self._leave.set()

    async def _go(self, helpers: list[asyncio.Task[None]], linked: asyncio.Task[None]) -> None:
        self._leaving = True
        if self._retiring is not None:
            self._retiring.cancel()
        self._slots.leaving.set()
        self._party.warn(late=self._late)
        await self._intake.stop()
        self._beat.soon()
        await self._lives.drain(self._grace, self._hurry)
        grace = self._clock.seconds_left(time.time()) if self._late else self._settings.drain_grace
        await self._party.leave(grace + 4 * TERM_GRACE, late=self._late)
        for helper in helpers:
            helper.cancel()
        await asyncio.wait(helpers, timeout=3)  # not for ever: nats-py swallows a cancellation now and then
        await asyncio.to_thread(self._slots.close)
        await asyncio.to_thread(self._own_disk.close)
        self._desk.close()
        self._recorder.close()
        self._presence.leave()
        self._left = True
        await self._beat.send()
        await self._link.flush()
        self._link.close()
        linked.cancel()
        await asyncio.wait({linked}, timeout=3)
        self._reaper.close()

    def _on_warning(self) -> None:
        if not self._leave.is_set():
            _log.info("warned of the allocation's end; draining")
            self._leave_late()

    def _on_signal(self) -> None:
        self._slots.leaving.set()  # what the same signal ended must not count as failed
        if self._leave.is_set():
            _log.warning("leaving at once")
            self._hurry.set()
            return
        _log.info("draining; a second signal leaves at once")
        self._leave.set()

    def _watch_lifeline(self, loop: asyncio.AbstractEventLoop) -> None:
        def ended() -> None:
            self._hurry.set()
            self._leave.set()

        def watch() -> None:  # a thread, because epoll knows neither files nor /dev/null
            with contextlib.suppress(OSError):
                while os.read(sys.stdin.fileno(), 4096):
                    continue
            with contextlib.suppress(RuntimeError):  # the loop is closed: we have left already
                loop.call_soon_threadsafe(ended)

        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    async def _leave_when_idle(self, seconds: float) -> None:
        while True:
            left = seconds - self._party.idle
            if left <= 0:
                _log.info("nothing came for %g s; leaving", seconds)
                self._leave.set()
                return
            await asyncio.sleep(min(left, 1.0))

    def _idle_for(self) -> float:
        """Return for how many seconds there was nothing to do; while a study that we serve is not over they count a tenth."""
        now = time.monotonic()
        if (
            not self._lives.empty
            or self._intake.waiting
            or self._slots.feed.keys
            or self._intake.awaits is not self._awaited
        ):
            self._busy_at, self._awaited = now, self._intake.awaits
        idle = now - max(self._busy_at, self._intake.last_arrival)
        return idle / AWAITING if self._awaited else idle

    async def _be_present(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._intake.offer.timing.presence)
            for info in self._lives.infos():
                try:
                    await loop.run_in_executor(None, self._presence.enter, info)
                except OSError as error:
                    self._complain(f"{info}: the presence file can't be touched: {error.strerror}")

    def _creates(self) -> float | None:
        """Return how many files and directories tasks' layout may make a second."""
        return share(self._settings.creates, self._settings.site_creates, self._intake.offer.agents)

    def _load(self) -> Load:
        ready = self._slots.feed.ready + self._lives.entering
        return Load(
            slots=self._slots.count, busy=self._slots.busy, ready=ready, mean=self._means.longest(self._lives.steps)
        )

    def _describe(self) -> wire.Heartbeat:
        return wire.Heartbeat(
            agent=self.id,
            site=self._settings.site,
            host=self._host,
            pid=os.getpid(),
            version=_VERSION,
            slots=self._slots.count,
            gpus=len(self._settings.gpus),
            memory=self._settings.memory,
            nodes=self._party.hosts,
            busy=self._slots.busy,
            queues=self._intake.queues,
            allocation=self._allocation,
            holds=self._lives.holds(),
            done=self._done,
            refused=self._refused,
            figures=self._measures.told(),
            problems=self._problems.current(),
            full=tuple(sorted(self._lives.full)[: wire.MAX_FULL]),
            leaving=self._leaving,
            left=self._left,
            user=self._user,
            assigned=self._assigned.number,
        )

    def _on_ended(self, batch: list[tuple[ChunkRun, Ended]]) -> None:
        took: dict[tuple[str, int], list[float]] = {}
        now = time.time()
        for run, ended in batch:
            run.ended()
            if ended.problem:
                self._complain(ended.problem)
            life = self._lives.by_run.get(run)
            if life is None:  # its life broke, and was logged as the bug that it is
                continue
            self._lives.note(life, ended)
            if ended.outcome is not None:
                took.setdefault(run.step, []).append(ended.seconds)
                waited = None if life.published is None else now - ended.seconds - life.published
                self._measures.note(life.queue, ended.outcome, ran=ended.seconds, waited=waited)
            life.settle()
        for step, seconds in took.items():
            self._done += len(seconds)
            self._means.add(step, sum(seconds), len(seconds))
        self._intake.wake()

    def _on_rehearsed(self, run: ChunkRun, count: int) -> None:
        """Tasks that took no time: the more can be claimed ahead."""
        self._done += count
        self._means.add(run.step, 0.0, count)

    def _on_word(self, word: wire.Control) -> None:
        if word.cancelled:
            _log.info("study %s is deleted", word.study)
            self._intake.cancel(word.study)
        self._lives.obey(word.study)
        ours = word.study == self._settings.study or (word.name and word.name == self._settings.study_name)
        if ours and self._is_retired(word):
            _log.info("a task of study %s asked to stop its agents; draining", word.study)
            self._leave.set()

    def _on_end(self, study: str) -> None:
        if study == self._settings.study and not self._settings.keep_alive:
            _log.info("study %s is over; leaving", study)
            self._finish()

    def _is_retired(self, word: wire.Control) -> bool:
        """Whether the study that this agent was started for lets it go: whole, or each queue that it serves."""
        queues = set(self._intake.queues)
        return word.retired or (bool(queues) and queues <= set(word.retired_queues))

    def _on_assignment(self, word: wire.Assignment) -> None:
        if word.queues is not None and word.queues != self._intake.queues:
            _log.info("told to serve %s from now on", ", ".join(word.queues) or "all queues")
            self._intake.serve(word.queues)
        if word.leave:
            self._finish()
        self._beat.soon()

    def _on_led_away(self, word: Leave) -> None:
        if word.finish:
            self._finish()
        elif word.late and not self._leave.is_set():
            self._leave_late()
        else:
            self._leave.set()

    def _finish(self) -> None:
        """Leave after what runs has ended; signals and the allocation's end count all the same."""
        if self._retiring is None and not self._leave.is_set():
            _log.info("told to leave; finishing what runs")
            self._retiring = asyncio.create_task(self._retire())

    async def _retire(self) -> None:
        self._leaving = True
        self._beat.soon()
        await self._intake.stop()
        await asyncio.gather(self._lives.finish(), self._party.retire())
        while self._slots.feed.keys:  # noqa: ASYNC110 kept for a task that the leader runs here, which nothing tells
            await asyncio.sleep(0.5)
        self._leave.set()

    def _on_quarantined(self) -> None:
        _log.warning(
            "the operator quarantined this host: what ran here failed, and succeeded elsewhere; taking nothing more"
        )
        self._lives.hand_back_all()

    def _on_hosts_changed(self) -> None:
        self._busy_at = time.monotonic()  # what can be offered now is not there yet
        self._beat.soon()
        self._intake.wake()

    def _on_impossible(self, run: ChunkRun) -> None:
        if (life := self._lives.by_run.get(run)) is not None:
            self._complain("too few hosts are left for a task of several; handing it back")
            self._lives.hand_back(life)

    def _on_refused(self, problem: str) -> None:
        self._refused += 1
        self._complain(problem)

    def _complain_from_slot(self, problem: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we have left
            self._slots.loop.call_soon_threadsafe(self._complain, problem)

    def _complain(self, problem: str) -> None:
        if self._problems.note(problem):
            _log.warning("%s", problem)
            self._beat.soon()


def _refuse_elsewhere() -> None:
    """End where nobody said that this host, which is none of the job's, is meant, or how much of it: all of it would be others'."""
    if wrong := allocation.elsewhere(allocation.here()):
        _log.error("%s", wrong)
        raise SystemExit(config.USAGE)


def _user() -> str:
    """Whose processes ours are, as this host names them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
