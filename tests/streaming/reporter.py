"""An agent that only speaks the protocol: it claims chunks and reports every task as succeeded, and runs nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from merlin_operator.core import AGENTS_SCOPE
from merlin_study import subjects, wire
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.seal import Keyring, SealError, Signer
from tests.ground import Broker

SITE = "testsite"
CONFLICT = 10071
"""nats-server's error where a subject has a message already."""


class Reporter:
    """Claims what is offered; ``runs`` counts how often each (step, task) was claimed.

    ``patience``: seconds for which it waits for eight chunks of one kind before it asks for the next kind.
    """

    patience = 0.05
    comes_to = (Outcome.SUCCEEDED, 0)
    """Outcome and exit code of each task."""

    def __init__(
        self,
        broker: Broker,
        keyring: Keyring,
        plan: Plan,
        *,
        samples: int,
        name: str = "reporter",
        works: bool = True,
        seconds: float = 0.001,
        queues: tuple[str, ...] = (),
    ) -> None:
        self.space = subjects.Space("ns")
        self.keyring, self.plan, self.samples, self.name = keyring, plan, samples, name
        self.runs: Counter[tuple[int, int]] = Counter()
        self.told: dict[str, list[tuple[str, wire.Message]]] = {}
        """By study what we wrote into its log, as an outcome log in a workspace would have it."""
        self.holds: set[tuple[str, int]] = set()
        self._answered: set[tuple[str, int, str]] = set()
        self._broker = broker
        self._queues = queues
        self._stopped, self._works, self._seconds = False, works, seconds
        self._taken: set[tuple[str, int]] = set()

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work until the block ends."""
        self._stopped = False
        self._client = Client()
        await self._client.connect(
            self._broker.url, max_reconnect_attempts=-1, reconnect_time_wait=1, **self._broker.credentials
        )
        self._js = self._client.jetstream(timeout=5)
        tasks = [asyncio.create_task(self._beat())]
        if self._works:
            tasks.append(asyncio.create_task(self._work()))
        try:
            yield
        finally:
            ended = [task for task in tasks if task.done()]
            self._stopped = True  # nats-py may swallow a cancellation on 3.11
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()
            assert not ended, f"the agent ended by itself: {ended}"

    async def _beat(self) -> None:
        subject = self.space.heartbeat(SITE, self.name)
        while not self._stopped:
            holds = tuple(sorted(self.holds))
            beat = wire.Heartbeat(
                agent=self.name, site=SITE, host="h", pid=1, version="0", slots=4, queues=self._queues, holds=holds
            )
            with contextlib.suppress(NatsError):
                await self._client.publish(
                    subject, self.keyring.seal(beat.encode(), scope=AGENTS_SCOPE, context=subject)
                )
            await asyncio.sleep(0.2)

    async def _work(self) -> None:
        while not self._stopped:
            try:
                for consumer in await self._offered():
                    await self._pull(consumer)
            except (NatsError, TimeoutError, OSError, SealError):  # a forged offer is none
                await asyncio.sleep(0.05)

    async def _offered(self) -> tuple[wire.Consumer, ...]:
        subject = self.space.offer(SITE)
        message = await self._js.get_msg(self.space.control_stream, subject=subject, direct=True)
        data = self.keyring.open(message.data or b"", scope=AGENTS_SCOPE, context=subject, signer=Signer.OPERATOR)
        offer = wire.Offer.model_validate_json(data)
        for recall in offer.recalls:
            if recall.agent == self.name and (recall.study, recall.epoch, recall.reading) not in self._answered:
                await self._recall(recall)
        return offer.consumers

    async def _recall(self, recall: wire.Recall) -> None:
        """Complete a log from what we know, which an agent would read in the workspace."""
        known = self.told.get(recall.study, [])
        for subject, entry in known:
            await self.append(recall.study, subject, entry, expected=None)
        word = wire.Recalled(agent=self.name, site=SITE, epoch=recall.epoch, found=bool(known), reading=recall.reading)
        await self.append(recall.study, self.space.recalled(recall.study), word, expected=None)
        self._answered.add((recall.study, recall.epoch, recall.reading))

    async def _pull(self, consumer: wire.Consumer) -> None:
        pull = await self._js.pull_subscribe_bind(consumer=consumer.name, stream=self.space.task_stream)
        messages = []
        try:
            with contextlib.suppress(TimeoutError):  # nothing there
                messages = await pull.fetch(8, timeout=self.patience)
            for message in messages:
                address = subjects.parse_chunk(message.subject)
                try:
                    data = self.keyring.open(
                        message.data, scope=address.study, context=message.subject, signer=Signer.OPERATOR
                    )
                except SealError:  # forged: refused for good, as an agent does
                    await message.term()
                    continue
                await self._take(wire.Chunk.model_validate_json(data))
                if self._stopped:
                    return  # perhaps before its claim, so that it has to stay in the stream
                await message.ack()
        finally:
            await pull.unsubscribe()

    async def _take(self, chunk: wire.Chunk) -> None:
        bound = wire.Bound(site=SITE, agent=self.name, mark="m", workspace="/w")
        with contextlib.suppress(APIError):
            await self.append(chunk.study, self.space.bound(chunk.study), bound, expected=0)
        subject = self.space.reports(chunk.study, chunk.fence)
        if (chunk.study, chunk.fence) in self._taken or not await self._claim(chunk, subject):
            return
        # Its acknowledgement may get lost: then it comes again, and was claimed by ourselves.
        self._taken.add((chunk.study, chunk.fence))
        self.holds.add((chunk.study, chunk.fence))
        self.runs.update((chunk.step, index) for index in chunk.tasks.indices())
        facts = wire.SampleFacts(count=self.samples, columns=1, digest="d") if chunk.step == 0 else None
        report = wire.Report(
            agent=self.name,
            fence=chunk.fence,
            serial=1,
            step=chunk.step,
            attempt=chunk.attempt,
            results=(wire.Result(outcome=self.comes_to[0], code=self.comes_to[1], tasks=chunk.tasks),),
            samples=facts,
            seconds=self._seconds * len(chunk.tasks),
            final=True,
        )
        while not self._stopped:
            try:
                await self.append(chunk.study, subject, report, expected=None)
            except (NatsError, TimeoutError, OSError):
                await asyncio.sleep(0.05)
            else:
                self.holds.discard((chunk.study, chunk.fence))
                return

    async def _claim(self, chunk: wire.Chunk, subject: str) -> bool:
        """Whether the chunk is ours now: as an agent does, ask until there is an answer, and after a conflict who was first."""
        start, unanswered = wire.Start(agent=self.name, chunk=chunk), False
        while not self._stopped:
            try:
                await self.append(chunk.study, subject, start, expected=0)
            except (NatsError, TimeoutError, OSError) as error:
                if isinstance(error, APIError) and error.err_code == CONFLICT:
                    return unanswered and await self._holder(chunk.study, subject) == self.name
                unanswered = True
                await asyncio.sleep(0.05)
            else:
                return True
        return False

    async def _holder(self, study: str, subject: str) -> str:
        """Who was first on a fence's subject; empty where nobody is known."""
        while not self._stopped:
            try:
                first = await self._js.get_msg(self.space.report_stream, 1, subject=subject, direct=True, next=True)
            except NotFoundError:
                return ""
            except (NatsError, TimeoutError, OSError):
                await asyncio.sleep(0.05)
            else:
                entry = wire.decode_log(
                    self.keyring.open(first.data or b"", scope=study, context=subject, signer=Signer.AGENT)
                )
                return entry.agent if isinstance(entry, wire.Start) else ""
        return ""

    async def purge(self, stream: str, subject: str) -> None:
        """Remove what a stream holds of a subject, as no agent may."""
        await self._js.purge_stream(stream, subject=subject)

    async def append(self, study: str, subject: str, entry: wire.Message, *, expected: int | None) -> None:
        """Append to the log, as the first message of its subject where ``expected`` is 0."""
        if isinstance(entry, wire.Start | wire.Report) and (subject, entry) not in self.told.setdefault(study, []):
            self.told[study].append((subject, entry))
        headers = {} if expected is None else {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        await self._js.publish(
            subject, self.keyring.seal(entry.encode(), scope=study, context=subject), headers=headers
        )
