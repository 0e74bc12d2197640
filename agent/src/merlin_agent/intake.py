"""Intake: from the consumers that the operator offers to chunks that are worth a claim.

    offer ─► consumers that fit ─► sweep (what is there, urgent first) ─► long polls (nothing was there) ─► held ─► claim

While there is room, a sweep asks each consumer in turn for what it has; only when none has anything, all are polled for seconds. So
urgent chunks come first, and an agent at rest costs one message a consumer every ten seconds. What does not open is refused: counted,
told in the heartbeat, terminated, never run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import ValidationError

from merlin_agent import demand
from merlin_agent.broker import Answer, Message, Pulled, UnansweredError
from merlin_agent.demand import Backoff, Host, Load
from merlin_agent.measure import behind
from merlin_agent.post import AGENTS, Post
from merlin_study import subjects
from merlin_study.bitmap import Bitmap
from merlin_study.seal import SealError, Signer
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk, Consumer, Offer, Recall

POLL: Final = 10.0
REREAD: Final = 30.0
_LONGEST_BACKOFF: Final = 30.0


@dataclass(frozen=True, slots=True)
class Held:
    """A chunk that was fetched and opened; all copies of it that came are answered alike."""

    copies: list[Message]
    chunk: Chunk
    consumer: str
    urgent: bool
    width: int
    """How many slots' worth of tasks it holds; none where they run over several hosts."""
    wide: bool = False
    plenty: bool = False
    """Whether more chunks waited behind it."""


@dataclass(slots=True)
class _Source:
    """What is remembered of a consumer between pulls."""

    gone: Backoff = field(default_factory=lambda: Backoff(0.5, _LONGEST_BACKOFF))
    shunned: Backoff = field(default_factory=lambda: Backoff(1.0, _LONGEST_BACKOFF))
    armed: bool = False
    plenty: bool = False
    """Whether more waited there than we took last."""

    def rests(self, now: float) -> bool:
        return self.armed or now < max(self.gone.until, self.shunned.until)


@dataclass(frozen=True, slots=True)
class Taste:
    """What this agent serves. ``study`` empty: any. ``name``: of the host."""

    site: str
    queues: tuple[str, ...]
    study: str
    host: Host
    name: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """Over how many hosts a task of ours may run now, and whether there is room for a chunk of tasks that run over several."""

    hosts: Callable[[], int]
    has_room: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Offered:
    """Whom to tell that an offer changed the clocks, that this host gets no work for a while, which logs are to be completed."""

    retimed: Callable[[], None]
    quarantined: Callable[[], None]
    recalled: Callable[[tuple[Recall, ...]], None]


class Intake:
    """Fetches chunks and hands each to ``accept`` when there is room for it."""

    def __init__(
        self,
        post: Post,
        taste: Taste,
        *,
        load: Callable[[], Load],
        reach: Reach,
        seconds_left: Callable[[], float],
        accept: Callable[[Held], None],
        refuse: Callable[[str], None],
        offered: Offered,
    ) -> None:
        """Keep what is needed.

        Args:
            post: How messages travel.
            taste: What we serve.
            load: How our slots stand.
            reach: How far tasks may spread.
            seconds_left: For how long a task may run.
            accept: Begins a chunk's life.
            refuse: Told of what does not open.
            offered: Told what an offer changes.
        """
        self._post, self._taste = post, taste
        self._retimed, self._on_quarantined, self._on_recalls = offered.retimed, offered.quarantined, offered.recalled
        self._hosts, self._wide_room = reach.hosts, reach.has_room
        self._tell_load, self.seconds_left, self._accept, self._refuse = load, seconds_left, accept, refuse
        self._wake = asyncio.Event()
        self._offer_wanted = asyncio.Event()
        self._sources: dict[str, _Source] = {}
        self._polls: set[asyncio.Task[None]] = set()
        self._held: list[Held] = []
        self._accepted: dict[tuple[str, int], Held] = {}
        self._settled: dict[str, Bitmap] = {}
        self._cancelled: set[str] = set()
        self._width = 1.0
        self._turn = 0
        self._paused = Backoff(2.0, _LONGEST_BACKOFF)
        self._stopped = False
        self.offer = Offer()
        self.last_arrival = time.monotonic()
        post.broker.listen(post.space.offer(taste.site), self._on_offer)
        post.broker.on_connect(self._offer_wanted.set)

    def wake(self) -> None:
        """Look again whether there is room."""
        self._wake.set()

    def pause(self) -> None:
        """Take nothing for a while, longer each time: the host can't run tasks."""
        self._paused.fail(time.monotonic())

    def go_on(self) -> None:
        """Tasks run again: the next `pause` is a short one."""
        if time.monotonic() >= self._paused.until:
            self._paused.succeed()

    def shun(self, consumer: str) -> None:
        """Leave a consumer alone for a while, longer each time: its chunks are not for us."""
        self._source(consumer).shunned.fail(time.monotonic())

    def praise(self, consumer: str) -> None:
        """A consumer's chunk could be run."""
        self._source(consumer).shunned.succeed()

    def serve(self, queues: tuple[str, ...]) -> None:
        """Serve these queues from now on (empty: all), and give back what waits of others."""
        self._taste = replace(self._taste, queues=queues)
        kept = {consumer.name for consumer in self._fitting()}
        dropped = [held for held in self._held if held.consumer not in kept]
        self._held = [held for held in self._held if held.consumer in kept]
        for name in self._sources.keys() - kept:
            self._sources[name].plenty = False
        for held in dropped:
            for message in held.copies:
                self._answer(message, Answer.BACK)
        self.wake()

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that we serve; empty: all."""
        return self._taste.queues

    def cancel(self, study: str) -> None:
        """Drop what waits of a study, and whatever still comes of it."""
        self._cancelled.add(study)
        dropped = [held for held in self._held if held.chunk.study == study]
        self._held = [held for held in self._held if held.chunk.study != study]
        for held in dropped:
            for message in held.copies:
                self._answer(message, Answer.DONE)

    def _give_back_held(self) -> None:
        held, self._held = self._held, []
        for each in held:
            for message in each.copies:
                self._answer(message, Answer.BACK)

    @property
    def waiting(self) -> int:
        """How many chunks are held unclaimed."""
        return len(self._held)

    async def stop(self) -> None:
        """Take nothing more and give back what was not accepted."""
        self._stopped = True
        for held in self._held:
            await self.answer(held, Answer.BACK)
        self._held.clear()

    async def run(self) -> None:
        """Fetch and hand over until cancelled."""
        rereading = asyncio.create_task(self._keep_offer())
        try:
            while True:
                self._wake.clear()
                self._hand_over()
                wanted, wide = self._wanted(), self._wants_wide()
                if (wanted or wide) and await self._sweep(wanted, wide=wide):
                    continue
                if wanted or wide:
                    self._arm(narrow=wanted > 0, wide=wide)
                await self._rest()
        finally:
            rereading.cancel()
            for poll in self._polls:
                poll.cancel()

    async def _rest(self) -> None:
        """Wait until something changes, or the nearest back-off is over."""
        now = time.monotonic()
        ends = [max(source.gone.until, source.shunned.until) for source in self._sources.values() if not source.armed]
        ends = [end for end in (*ends, self._paused.until) if end > now]
        try:
            async with asyncio.timeout(min(ends) - now if ends else None):  # wait_for may swallow a cancellation
                await self._wake.wait()
        except TimeoutError:
            return

    @property
    def _quarantined(self) -> bool:
        return self._taste.name in self.offer.quarantined

    def _load(self) -> Load:
        """Return how the slots stand, and whether there is more than we take of anything that we may take: who serves that has no slot free."""
        now = time.monotonic()
        more = any(held.plenty for held in self._held)
        more = more or any(source.plenty and not source.rests(now) for source in self._sources.values())
        return replace(self._tell_load(), plenty=more)

    @property
    def _proving(self) -> bool:
        """Whether this host gets one chunk at a time, and has one."""
        load = self._tell_load()
        return self._taste.name in self.offer.proving and bool(self._held or self._accepted or load.busy or load.ready)

    def _hand_over(self) -> None:
        while not self._stopped:
            narrow, wide = demand.room(self._load()) > 0, self._wide_room()
            fit = [held for held in self._held if (wide if held.wide else narrow)]
            if not fit:
                return
            held = next((held for held in fit if held.urgent), fit[0])
            self._held.remove(held)
            self._accepted[held.chunk.study, held.chunk.fence] = held
            self._accept(held)

    def _wanted(self) -> int:
        if self._rests:
            return 0
        wanted = demand.to_fetch(self._load(), held=self._count(wide=False), width=self._width)
        return min(wanted, 1) if self._taste.name in self.offer.proving else wanted

    @property
    def _rests(self) -> bool:
        return self._stopped or time.monotonic() < self._paused.until or self._quarantined or self._proving

    def _wants_wide(self) -> bool:
        if self._rests or self._hosts() == 1:
            return False
        return self._wide_room() and not self._count(wide=True)

    def _count(self, *, wide: bool) -> int:
        return sum(held.wide is wide for held in self._held)

    @property
    def awaits(self) -> bool:
        """Whether a study that we serve has work left, though it may not be there yet."""
        return bool(self._fitting())

    def _fitting(self) -> list[Consumer]:
        left, queues = self.seconds_left(), self._taste.queues
        host = replace(self._taste.host, nodes=self._hosts())
        return [c for c in self.offer.consumers if demand.serves(c, host=host, queues=queues, seconds_left=left)]

    def _consumers(self, *, narrow: bool, wide: bool) -> list[Consumer]:
        fit = [c for c in self._fitting() if (wide if demand.is_wide(c) else narrow)]
        now = time.monotonic()
        return [c for c in demand.in_order(fit, self._turn) if not self._source(c.name).rests(now)]

    async def _sweep(self, wanted: int, *, wide: bool) -> bool:
        """Ask one consumer after the other for what it has; return whether there was anything."""
        self._turn += 1
        before, at_first = len(self._held), self._count(wide=False)
        for consumer in self._consumers(narrow=wanted > 0, wide=wide):
            missing = 1 - self._count(wide=True)
            if not demand.is_wide(consumer):
                missing = wanted - (self._count(wide=False) - at_first)
            if self._stopped:
                break
            if missing > 0:
                await self._pull(consumer, batch=missing, expires=0.0)
        return len(self._held) > before

    def _arm(self, *, narrow: bool, wide: bool) -> None:
        for consumer in self._consumers(narrow=narrow, wide=wide):
            self._source(consumer.name).armed = True
            poll = asyncio.create_task(self._poll(consumer))
            self._polls.add(poll)
            poll.add_done_callback(self._polls.discard)

    async def _poll(self, consumer: Consumer) -> None:
        try:
            await self._pull(consumer, batch=1, expires=POLL)
        finally:
            self._source(consumer.name).armed = False
            self.wake()

    async def _pull(self, consumer: Consumer, *, batch: int, expires: float) -> None:
        def deliver(message: Message) -> None:
            self._arrived(message, consumer)

        source = self._source(consumer.name)
        source.plenty = False
        stream = self._post.space.task_stream
        how = await self._post.broker.pull(stream, consumer.name, deliver, batch=batch, expires=expires)
        if how is Pulled.GONE:
            source.gone.fail(time.monotonic())
            self._offer_wanted.set()
        else:
            source.gone.succeed()

    def _arrived(self, message: Message, consumer: Consumer) -> None:
        try:
            chunk = open_chunk(self._post, message)
        except (SealError, ValidationError, ValueError) as error:
            self._refuse(f"{message.subject}: refused: {str(error).splitlines()[0]}")
            self._answer(message, Answer.NEVER)
            return
        wide = demand.is_wide(consumer)
        source = self._source(consumer.name)
        source.plenty = behind(message.reply) > 0 and not wide  # those may wait for more hosts than are idle
        if self._taste.study in ("", chunk.study):
            self.last_arrival = time.monotonic()
        if self._taste.study and chunk.study != self._taste.study:
            self.shun(consumer.name)
            self._answer(message, Answer.BACK)  # at once, for others; we ourselves stay away for a while
        elif chunk.fence in self._known(chunk.study) or chunk.study in self._cancelled:
            self._answer(message, Answer.DONE)
        elif (same := self._here(chunk)) is not None:
            same.copies.append(message)
        elif self._stopped or self._quarantined or self._is_full(wide=wide):
            self._answer(message, Answer.BACK)
        elif wide:
            self._held.append(Held([message], chunk, consumer.name, consumer.band == "urgent", 0, wide=True))
            self.wake()
        else:
            host = self._taste.host
            width = len(chunk.tasks) * host.room_of(consumer.shape).cost(cores=host.cores, gpus=host.gpus)
            self._width = 0.7 * self._width + 0.3 * width
            self._held.append(
                Held([message], chunk, consumer.name, consumer.band == "urgent", width, plenty=source.plenty)
            )
            self.wake()

    def _is_full(self, *, wide: bool) -> bool:
        if self._taste.name in self.offer.proving:
            return self._proving
        most = 1 if wide else demand.may_hold(self._load(), width=self._width)
        return self._count(wide=wide) >= most

    async def answer(self, held: Held, answer: Answer, *, delay: float = 0.0) -> None:
        """Say what became of a chunk; until then nothing is said of any copy of it, for a copy's ack deletes the chunk."""
        self._accepted.pop((held.chunk.study, held.chunk.fence), None)
        if answer is Answer.DONE:
            self._known(held.chunk.study).add(TaskSet(first=held.chunk.fence, width=1))
        for message in held.copies:
            await self._post.broker.answer(message, answer, delay=delay)

    def _answer(self, message: Message, answer: Answer) -> None:
        task = asyncio.create_task(self._post.broker.answer(message, answer))
        self._polls.add(task)
        task.add_done_callback(self._polls.discard)

    def _here(self, chunk: Chunk) -> Held | None:
        """Return the chunk as we hold it, or are claiming it."""
        for held in self._held:
            if (held.chunk.study, held.chunk.fence) == (chunk.study, chunk.fence):
                return held
        return self._accepted.get((chunk.study, chunk.fence))

    def _source(self, name: str) -> _Source:
        return self._sources.setdefault(name, _Source())

    def _known(self, study: str) -> Bitmap:
        return self._settled.setdefault(study, Bitmap())

    def _on_offer(self, message: Message) -> None:
        self._take_offer(message.subject, message.data)

    def _take_offer(self, subject: str, data: bytes) -> None:
        offer = self._post.word(Offer, subject, data, scope=AGENTS, refuse=self._refuse)
        if offer is None:
            return
        if offer.timing != self.offer.timing:
            self._retimed()  # a heartbeat of the old pace could come after we count as lost by the new one
        if offer != self.offer:
            free = not self._quarantined
            self.offer = offer
            self._on_recalls(offer.recalls)
            if free and self._quarantined:
                self._give_back_held()
                self._on_quarantined()
            names = {consumer.name for consumer in offer.consumers}
            self._sources = {name: source for name, source in self._sources.items() if name in names or source.armed}
            self.wake()

    async def _keep_offer(self) -> None:
        """Read the offer when connected, when a consumer is gone, and now and then."""
        subject = self._post.space.offer(self._taste.site)
        while True:
            self._offer_wanted.clear()
            try:
                data = await self._post.broker.last(self._post.space.control_stream, subject)
                if data is not None:
                    self._take_offer(subject, data)
            except UnansweredError:
                pass  # the streams are not there yet, or the broker is not; the next turn tells
            await asyncio.sleep(0.2)
            try:
                async with asyncio.timeout(REREAD):
                    await self._offer_wanted.wait()
            except TimeoutError:
                continue


def open_chunk(post: Post, message: Message) -> Chunk:
    """Return the chunk of a message.

    Raises:
        SealError, ValueError: it is none, or not for this place.
    """
    address = subjects.parse_chunk(message.subject)
    payload = post.open(message.subject, message.data, scope=address.study, signer=Signer.OPERATOR)
    chunk = Chunk.model_validate_json(payload)
    if (chunk.study, chunk.fence) != (address.study, address.fence):
        raise SealError(f"says study {chunk.study} and fence {chunk.fence}, unlike its subject")
    return chunk
