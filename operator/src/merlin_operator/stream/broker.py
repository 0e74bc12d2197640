"""The broker of a namespace: what the engine reads from its streams and writes to them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from merlin_operator.load import BrokerLoad
from merlin_operator.stream import batch, configuration, fullness
from merlin_operator.stream.answers import Missing, Stored
from merlin_operator.stream.configuration import ConsumerSpec
from merlin_operator.stream.connection import OUTAGES, Connection
from merlin_operator.stream.following import follow
from merlin_study import subjects


class Broker(Connection):
    """A connection that knows the streams of its namespace."""

    def __init__(
        self,
        space: subjects.Space,
        *,
        server: str,
        options: dict[str, Any],
        renew: Callable[[], dict[str, Any]] | None = None,
        replicas: int = 1,
    ) -> None:
        """Keep what a connection needs.

        Args:
            space: the names of the namespace.
            server: the address, ``nats://host:4222`` or ``tls://…``; several of one cluster with commas between them.
            options: what `nats.connect` takes beside it: token, or user and password.
            renew: reads ``options`` again before a connection that is not the first: credentials change.
            replicas: how many servers of a cluster shall keep each stream.
        """
        self.space = space
        super().__init__(server, options=options, renew=renew)
        self._replicas = replicas
        self._any_replica = True
        """Whether any server that keeps a stream may answer a read: in a cluster only the leader knows the latest."""

    # Streams and consumers

    async def ensure_streams(self) -> None:
        """Make the namespace's streams where they are missing, and have enough servers of a cluster keep them.

        Streams that more servers keep than was asked for are left so. This does not wait until servers that are new to a
        stream have it: `load` says how far they are. Until then they may not lead it, and it depends on the old one.

        Raises:
            Outage: the broker did not answer.
        """
        self._any_replica = True
        for config in configuration.streams(self.space, replicas=self._replicas):
            kept = await self.ask(functools.partial(configuration.ensure_stream, config=config))
            self._any_replica = self._any_replica and kept == 1

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        """Make a pull consumer of the task stream where it is missing."""
        config = configuration.consumer(spec)
        await self.ask(lambda js: js.add_consumer(self.space.task_stream, config))

    async def delete_consumer(self, name: str) -> None:
        """Remove a consumer; none is fine too."""
        with contextlib.suppress(Missing):
            await self.ask(lambda js: js.delete_consumer(self.space.task_stream, name))

    async def consumers(self) -> list[str]:
        """Return the names of the task stream's consumers."""
        return [info.name for info in await fullness.consumers(self, self.space.task_stream)]

    async def load(self) -> BrokerLoad:
        """Return how full the broker is: four requests, and one more for each further 256 consumers.

        Raises:
            Outage: the broker did not answer.
        """
        return await fullness.measure(self, self.space)

    async def purge(self, stream: str, subject: str) -> None:
        """Remove every message of a stream whose subject matches."""
        await self.ask(lambda js: js.purge_stream(stream, subject=subject))

    # Reads

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the last message of a subject."""
        try:
            message = await self.ask(lambda js: js.get_msg(stream, subject=subject, direct=self._any_replica))
        except Missing:
            return None
        return _stored(message)

    async def stored(self, stream: str, sequence: int) -> Stored | None:
        """Return the message of a sequence; None where there is none any more."""
        try:
            return _stored(await self.ask(lambda js: js.get_msg(stream, seq=sequence, direct=self._any_replica)))
        except Missing:
            return None

    async def incarnation(self, stream: str) -> str:
        """Return which creation of a stream this is."""
        return (await self.extent(stream))[0]

    async def extent(self, stream: str) -> tuple[str, int, int]:
        """Return which creation of a stream this is, and the sequences of its oldest and newest message.

        Raises:
            Absent: there is no such stream.
            Outage: the broker did not answer.
        """
        info = await self.ask(lambda js: js.stream_info(stream))
        return str(info.created), int(info.state.first_seq), int(info.state.last_seq)

    async def length(self, stream: str) -> int:
        """Return how many messages a stream holds."""
        return int((await self.ask(lambda js: js.stream_info(stream))).state.messages)

    async def subjects(self, stream: str, filter_subject: str) -> set[str]:
        """Return the subjects of a stream's messages that match."""
        return {subject async for page in self.subject_pages(stream, filter_subject) for subject in page}

    async def subject_pages(self, stream: str, filter_subject: str) -> AsyncGenerator[set[str], None]:
        """Yield the subjects of a stream's messages that match, as many at once as the server tells: 100,000."""
        told = 0
        while True:
            asked = json.dumps({"subjects_filter": filter_subject, "offset": told}).encode()
            name = f"STREAM.INFO.{stream}"
            info = await self.ask(functools.partial(_api, name=name, asked=asked))
            page = set(info["state"].get("subjects") or ())
            yield page
            told += len(page)
            if not page or told >= int(info.get("total") or 0):
                return

    async def chunks(self, study: str) -> list[Stored]:
        """Return the chunks of a study that wait in the task stream."""
        space, found = self.space, []
        for subject in await self.subjects(space.task_stream, space.chunks_of(study)):
            message = await self.last(space.task_stream, subject)
            if message is not None:
                found.append(message)
        return found

    async def last_sequence(self, stream: str) -> int:
        """Return the sequence of a stream's newest message."""
        info = await self.ask(lambda js: js.stream_info(stream))
        return int(info.state.last_seq)

    def read_log(self, filter_subject: str, *, start: int) -> AsyncGenerator[Stored, None]:
        """Yield the log from sequence ``start`` on, for ever; raises `Outage` when a gap or a silence shows that it broke."""
        return follow(self, self.space.report_stream, filter_subject, start=start)

    # Writes

    async def publish_batch(
        self, cursor: tuple[str, bytes], chunks: Sequence[tuple[str, bytes]], *, expected: int
    ) -> int:
        """Publish a cursor and chunks, all or nothing, if the cursor's last sequence is still ``expected`` (0: none).

        Returns:
            The cursor's new sequence.

        Raises:
            Conflict: it is not; nothing was published.
            Outage: nobody knows; read the cursor.
        """
        return await batch.publish(self, cursor, chunks, expected=expected)

    async def append(self, subject: str, data: bytes, *, expected: int) -> int:
        """Append to the log if the subject's last sequence is still ``expected``; return the new one.

        Raises:
            Conflict: it is not.
            Outage: nobody knows; the log will tell.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        ack = await self.ask(lambda js: js.publish(subject, data, headers=headers))
        return int(ack.seq)

    async def put(self, subject: str, data: bytes, *, keep: float | None = None) -> None:
        """Set a last value, for good or for ``keep`` seconds."""
        await self.ask(lambda js: js.publish(subject, data, msg_ttl=keep))

    # Core NATS

    async def listen(self, subject: str, take: Callable[[str, bytes], None]) -> None:
        """Call ``take(subject, data)`` for each message, as long as this connection lives."""

        async def deliver(message: Msg) -> None:
            take(message.subject, message.data)

        await self.client().subscribe(subject, cb=deliver)

    async def tell(self, subject: str) -> None:
        """Publish an empty message that nothing stores."""
        with contextlib.suppress(*OUTAGES):
            await self.client().publish(subject, b"")


async def _api(js: JetStreamContext, *, name: str, asked: bytes) -> dict[str, Any]:
    """Ask the server what nats-py has no method for."""
    timeout, prefix = js._timeout, js._prefix  # noqa: SLF001 as its own methods do
    answer: dict[str, Any] = await js._api_request(f"{prefix}.{name}", asked, timeout=timeout)  # noqa: SLF001
    return answer


def _stored(message: api.RawStreamMsg) -> Stored:
    assert message.seq is not None
    at = message.time.timestamp() if message.time is not None else 0.0
    return Stored(message.seq, message.subject or "", at, message.data or b"")
