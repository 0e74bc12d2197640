"""NATS, as the engine sees it: the only module of the operator that speaks it.

Three streams a namespace: tasks (WorkQueue: chunks and cursors), reports (the log), control (last values). Every write
either says that it happened, or that it was refused by a compare-and-set (`Conflict`), or that nobody knows (`Unknown`):
after the last, read, never write again. nats-py closes for good on an expired credential or an ``-ERR`` of the server, so
`Broker.run` keeps making new connections, with jitter, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError

from merlin_operator import certificate
from merlin_operator.load import BrokerLoad, ConsumerLoad, StreamLoad
from merlin_study import subjects

log = logging.getLogger(__name__)

WRONG_LAST_SEQUENCE: Final = 10071
_REQUEST_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 5
_SILENCE_SECONDS: Final = 12
"""More than two of the log reader's idle heartbeats."""
_NO_STREAM: Final = 10059
_NO_CONTENT: Final = "204"
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at whether the connection still stands."""
_COPY_SECONDS: Final = 30.0
"""Within which the next piece of a stream's copy has to come, and a stream has to be made of one."""
_PIECE: Final = 128 << 10
"""Bytes of a stream's copy that travel at once."""
_PAGE: Final = 256
"""Consumers that the server lists at once."""
_BACKOFF: Final = (0.1, 2.0)
"""Seconds between attempts to connect, at first and at most; each is drawn between half of it and all of it."""
_OUTAGES: Final = (NatsError, OSError, asyncio.TimeoutError)


class Outage(Exception):  # noqa: N818 a state of the world, not a mistake
    """The broker can't be reached, or does not answer."""


class Absent(Outage):
    """There is no such stream: somebody deleted it, or it was not made yet."""


class Missing(Outage):
    """The message or consumer that was asked for is not there."""


class Conflict(Exception):  # noqa: N818
    """A compare-and-set found another value: somebody else wrote first, or an earlier write of ours happened after all."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream: where it lies, when the broker stored it (Unix seconds), what it holds."""

    sequence: int
    subject: str
    at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A pull consumer that should exist: its name and what it filters."""

    name: str
    filter: str
    description: str


class Broker:
    """One connection, made anew whenever it is lost for good."""

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
        self.reconnects = 0
        self.problem = "not connected yet"
        self.certificate_ends: float | None = None
        """When the certificate ends that the broker last showed, in Unix seconds; None without TLS."""
        if "tls" in options:
            certificate.watch(options["tls"], self._see_certificate)
        self._server, self._options, self._renew, self._replicas = server, options, renew, replicas
        self._any_replica = True
        """Whether any server that keeps a stream may answer a read: in a cluster only the leader knows the latest."""
        self._client: Client | None = None
        self._js: JetStreamContext | None = None
        self._closed = asyncio.Event()
        self._up = asyncio.Event()

    def _see_certificate(self, ends: float) -> None:
        self.certificate_ends = ends

    @property
    def connected(self) -> bool:
        """Whether the connection stands at the moment."""
        return self._client is not None and self._client.is_connected

    @property
    def server_id(self) -> str:
        """Which process of a server this connection is with: another one after each start of a server."""
        info = self._client._server_info if self._client is not None else {}  # noqa: SLF001 nats-py shows it nowhere else
        return str(info.get("server_id") or "")

    async def wait_connected(self) -> None:
        """Return once there is a connection."""
        await self._up.wait()

    async def run(self, on_connect: Callable[[], Awaitable[None]]) -> None:
        """Keep a connection for ever; call ``on_connect`` after each new one (it may raise `Outage`: then try again)."""
        delay = _BACKOFF[0]
        while True:
            try:
                await self._connect()
                await on_connect()
                delay = _BACKOFF[0]
                await self._until_closed()
                self.problem = f"connection to {self._server} lost"
            except (Outage, *_OUTAGES) as error:
                self.problem = f"no connection to {self._server}: {str(error) or type(error).__name__}"
                log.warning("broker connection failed server=%s error=%s", self._server, error)
            finally:
                await self.close()
            self.reconnects += 1
            self._read_options()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 jitter, not a secret
            delay = min(2 * delay, _BACKOFF[1])

    async def _until_closed(self) -> None:
        """Return once the connection is gone: nats-py calls nobody where one was reset that still had something to send."""
        while self._client is not None and not self._client.is_closed and not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._closed.wait()

    def _read_options(self) -> None:
        """Take the credentials as they are now; the old ones where they can't be read."""
        if self._renew is None:
            return
        try:
            self._options = self._renew()
        except Exception as error:  # noqa: BLE001 a file that is being replaced: the next attempt reads it
            log.warning("credentials not read again error=%s", error)
            return
        if "tls" in self._options:
            certificate.watch(self._options["tls"], self._see_certificate)

    async def _connect(self) -> None:
        self._closed.clear()

        async def gone() -> None:
            self._closed.set()

        async def failed(error: Exception) -> None:
            self.problem = str(error) or type(error).__name__
            log.debug("broker error=%s", error)

        self._client = Client()  # kept from here on, so that a refused attempt is closed as well
        await self._client.connect(
            self._server.split(","),
            name="merlin-operator",
            max_reconnect_attempts=1,  # of one server, before `run` waits and tries all of them again
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=10,
            max_outstanding_pings=2,
            allow_reconnect=False,  # one mechanism, `run`: a new connection makes streams that are gone, too
            closed_cb=gone,
            error_cb=failed,
            **self._options,
        )
        self._js = self._client.jetstream(timeout=_REQUEST_SECONDS)
        self.problem = ""
        self._up.set()

    def drop(self) -> None:
        """End the connection as if it had broken; `run` makes another, and all that follows a new one follows."""
        self._closed.set()

    async def close(self) -> None:
        """Drop the connection; `run` makes another."""
        client, self._client, self._js = self._client, None, None
        self._up.clear()
        if client is not None:
            with _heeding_cancellation(), contextlib.suppress(*_OUTAGES):
                await client.close()

    # Streams and consumers

    async def ensure_streams(self) -> None:
        """Make the namespace's streams where they are missing, and have enough servers of a cluster keep them.

        Streams that more servers keep than was asked for are left so. This does not wait until servers that are new to a
        stream have it: `load` says how far they are. Until then they may not lead it, and it depends on the old one.

        Raises:
            Outage: the broker did not answer.
        """
        space = self.space
        self._any_replica = True
        for config in (
            api.StreamConfig(
                name=space.task_stream,
                subjects=[space.all_chunks, space.all_cursors],
                retention=api.RetentionPolicy.WORK_QUEUE,
                discard=api.DiscardPolicy.NEW,
                storage=api.StorageType.FILE,
                allow_direct=True,
                allow_atomic=True,
                allow_rollup_hdrs=True,
                deny_delete=True,
            ),
            api.StreamConfig(
                name=space.report_stream,
                subjects=[space.all_reports],
                retention=api.RetentionPolicy.LIMITS,
                discard=api.DiscardPolicy.NEW,
                storage=api.StorageType.FILE,
                allow_direct=True,
                deny_delete=True,
            ),
            api.StreamConfig(
                name=space.control_stream,
                subjects=[space.all_control],
                retention=api.RetentionPolicy.LIMITS,
                max_msgs_per_subject=1,
                allow_msg_ttl=True,
                storage=api.StorageType.FILE,
                allow_direct=True,
                deny_delete=True,
            ),
        ):
            config.num_replicas = self._replicas
            kept = await self._ask(functools.partial(_ensure_stream, config=config))
            self._any_replica = self._any_replica and kept == 1

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        """Make a pull consumer of the task stream where it is missing."""
        config = api.ConsumerConfig(
            durable_name=spec.name,
            description=spec.description,
            filter_subject=spec.filter,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=10,  # a chunk is acknowledged once it is claimed, not once it is run
            max_ack_pending=65_536,
            max_waiting=16_384,
        )
        await self._ask(lambda js: js.add_consumer(self.space.task_stream, config))

    async def delete_consumer(self, name: str) -> None:
        """Remove a consumer; none is fine too."""
        with contextlib.suppress(Missing):
            await self._ask(lambda js: js.delete_consumer(self.space.task_stream, name))

    async def consumers(self) -> list[str]:
        """Return the names of the task stream's consumers."""
        return [info.name for info in await self._consumer_infos()]

    async def _consumer_infos(self) -> list[api.ConsumerInfo]:
        found: list[api.ConsumerInfo] = []
        while True:
            offset = len(found)
            page = await self._ask(functools.partial(_consumer_page, stream=self.space.task_stream, offset=offset))
            found += page
            if len(page) < _PAGE:
                return found

    async def load(self) -> BrokerLoad:
        """Return how full the broker is: four requests, and one more for each further 256 consumers.

        Raises:
            Outage: the broker did not answer.
        """
        space, streams = self.space, []
        account = await self._ask(lambda js: js.account_info())
        names = {"tasks": space.task_stream, "reports": space.report_stream, "control": space.control_stream}
        infos = await self._consumer_infos()
        for role, name in names.items():
            info = await self._ask(functools.partial(_stream_info, name=name))
            limit, kept = info.config.max_bytes or 0, info.config.num_replicas or 1
            clusters = [info.cluster, *(each.cluster for each in infos if role == "tasks")]
            streams.append(
                StreamLoad(
                    role,
                    info.state.messages,
                    info.state.bytes,
                    limit if limit > 0 else None,
                    replicas=kept,
                    current=min(kept if found is None else _current(found) for found in clusters),
                )
            )
        consumers = [_consumer_load(info) for info in infos]
        limit = account.limits.max_storage
        return BrokerLoad(account.storage, limit if limit > 0 else None, tuple(streams), tuple(filter(None, consumers)))

    async def purge(self, stream: str, subject: str) -> None:
        """Remove every message of a stream whose subject matches."""
        await self._ask(lambda js: js.purge_stream(stream, subject=subject))

    async def copy(self, stream: str, take: Callable[[bytes], None]) -> dict[str, Any]:
        """Hand a copy of a stream to ``take`` in a thread, piece by piece; return what the server needs beside it to `put_back`.

        Raises:
            Outage: there is no such stream, or the copy is not whole.
        """
        client, pieces = self._need_client(), asyncio.Queue[Msg]()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=pieces.put)
        try:
            ask = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": _PIECE}
            said = await self._ask_api(f"STREAM.SNAPSHOT.{stream}", json.dumps(ask).encode())
            while True:
                async with asyncio.timeout(_COPY_SECONDS):
                    piece = await pieces.get()
                if not piece.data:
                    break
                await asyncio.to_thread(take, piece.data)
                if piece.reply:  # the server waits for it before it sends many more
                    await client.publish(piece.reply, b"")
        except _OUTAGES as error:
            raise Outage(f"copying {stream}: {str(error) or type(error).__name__}") from error
        finally:
            with contextlib.suppress(*_OUTAGES):
                await subscription.unsubscribe()
        if (status := (piece.headers or {}).get("Status", _NO_CONTENT)) != _NO_CONTENT:
            raise Outage(f"copying {stream}: it ended with {status}")
        return {"config": said["config"], "state": said["state"]}

    async def put_back(self, stream: str, about: dict[str, Any], pieces: Iterable[bytes]) -> None:
        """Make a stream of what `copy` gave; where it can't be made, there is none.

        Raises:
            Outage: there is one already, or the server refuses the copy.
        """
        said = await self._ask_api(f"STREAM.RESTORE.{stream}", json.dumps(about).encode())
        for piece in itertools.chain(pieces, (b"",)):
            await self._ask_api(said["deliver_subject"], piece, prefix="")

    async def drop_stream(self, stream: str) -> None:
        """Delete a stream."""
        await self._ask(lambda js: js.delete_stream(stream))

    async def stream_names(self) -> set[str]:
        """Return the names of all streams of the account."""
        return set((await self._ask_api("STREAM.NAMES")).get("streams") or ())

    async def _ask_api(self, subject: str, data: bytes = b"", *, prefix: str = "$JS.API.") -> dict[str, Any]:
        """Make a request of the server that nats-py has no function for.

        Raises:
            Outage: no answer, or a refusal.
        """
        try:
            with _heeding_cancellation():
                reply = await self._need_client().request(prefix + subject, data, timeout=_COPY_SECONDS)
        except _OUTAGES as error:
            raise Outage(f"{subject}: {str(error) or type(error).__name__}") from error
        answer: dict[str, Any] = json.loads(reply.data or b"{}")
        if "error" in answer:
            raise Outage(f"{subject}: {answer['error'].get('description')}")
        return answer

    # Reads

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the last message of a subject."""
        try:
            message = await self._ask(lambda js: js.get_msg(stream, subject=subject, direct=self._any_replica))
        except Missing:
            return None
        return _stored(message)

    async def stored(self, stream: str, sequence: int) -> Stored | None:
        """Return the message of a sequence; None where there is none any more."""
        try:
            return _stored(await self._ask(lambda js: js.get_msg(stream, seq=sequence, direct=self._any_replica)))
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
        info = await self._ask(lambda js: js.stream_info(stream))
        return str(info.created), int(info.state.first_seq), int(info.state.last_seq)

    async def subjects(self, stream: str, filter_subject: str) -> set[str]:
        """Return the subjects of a stream's messages that match."""
        info = await self._ask(lambda js: js.stream_info(stream, subjects_filter=filter_subject))
        return set(info.state.subjects or {})

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
        info = await self._ask(lambda js: js.stream_info(stream))
        return int(info.state.last_seq)

    async def read_log(self, filter_subject: str, *, start: int) -> AsyncGenerator[Stored, None]:
        """Yield the log from sequence ``start`` on, for ever; raises `Outage` when a gap or a silence shows that it broke."""
        inbox = self._need_client().new_inbox()
        queue: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await self._need_client().subscribe(inbox, cb=queue.put, pending_bytes_limit=256 << 20)
        config = api.ConsumerConfig(
            deliver_subject=inbox,
            filter_subject=filter_subject,
            ack_policy=api.AckPolicy.NONE,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            idle_heartbeat=5.0,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            await self._ask(lambda js: js.add_consumer(self.space.report_stream, config))
            expected, connection = 1, self.reconnects
            while True:
                message = await self._next(queue, connection)
                if message.headers and message.headers.get("Status"):
                    continue
                metadata = message.metadata
                if metadata.sequence.consumer != expected:
                    raise Outage("a gap in the log's delivery")
                expected += 1
                yield Stored(metadata.sequence.stream, message.subject, metadata.timestamp.timestamp(), message.data)
        finally:
            with contextlib.suppress(*_OUTAGES):
                await subscription.unsubscribe()

    async def _next(self, queue: asyncio.Queue[Msg], connection: int) -> Msg:
        """Return the next message; raise `Outage` after a silence, or once the connection is another one than it was."""
        for _ in range(_SILENCE_SECONDS):
            try:
                async with asyncio.timeout(1.0):  # wait_for would swallow a cancellation on 3.11
                    return await queue.get()
            except TimeoutError:
                if self.reconnects != connection:  # the consumer was in the server's memory
                    break
        raise Outage("the log fell silent")

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
        client = self._need_client()
        batch = f"{random.getrandbits(96):024x}"
        subject, data = cursor
        headers = {
            "Nats-Batch-Id": batch,
            "Nats-Batch-Sequence": "1",
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-Rollup": "sub",
        }
        messages = [(subject, data, headers)]
        for number, (chunk_subject, chunk) in enumerate(chunks, start=2):
            messages.append((chunk_subject, chunk, {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}))
        messages[-1][2]["Nats-Batch-Commit"] = "1"
        try:
            for each_subject, payload, each_headers in messages[:-1]:
                await client.publish(each_subject, payload, headers=each_headers)
            last_subject, payload, last_headers = messages[-1]
            with _heeding_cancellation():
                reply = await client.request(last_subject, payload, timeout=_REQUEST_SECONDS, headers=last_headers)
        except _OUTAGES as error:
            raise Outage(f"publishing chunks: {str(error) or type(error).__name__}") from error
        answer = json.loads(reply.data)
        if "error" in answer:
            _raise_refusal(answer["error"])
        return int(answer["seq"]) - len(messages) + 1

    async def append(self, subject: str, data: bytes, *, expected: int) -> int:
        """Append to the log if the subject's last sequence is still ``expected``; return the new one.

        Raises:
            Conflict: it is not.
            Outage: nobody knows; the log will tell.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        ack = await self._ask(lambda js: js.publish(subject, data, headers=headers))
        return int(ack.seq)

    async def put(self, subject: str, data: bytes, *, keep: float | None = None) -> None:
        """Set a last value, for good or for ``keep`` seconds."""
        await self._ask(lambda js: js.publish(subject, data, msg_ttl=keep))

    # Core NATS

    async def listen(self, subject: str, take: Callable[[str, bytes], None]) -> None:
        """Call ``take(subject, data)`` for each message, as long as this connection lives."""

        async def deliver(message: Msg) -> None:
            take(message.subject, message.data)

        await self._need_client().subscribe(subject, cb=deliver)

    async def tell(self, subject: str) -> None:
        """Publish an empty message that nothing stores."""
        with contextlib.suppress(*_OUTAGES):
            await self._need_client().publish(subject, b"")

    def _need(self) -> JetStreamContext:
        if self._js is None:
            raise Outage(self.problem or "not connected")
        return self._js

    def _need_client(self) -> Client:
        if self._client is None or not self._client.is_connected:
            raise Outage(self.problem or "not connected")
        return self._client

    async def _ask(self, request: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
        """Make a request.

        Raises:
            Conflict: a compare-and-set found another value.
            Absent, Missing: the stream, or what was asked for in it, is not there.
            Outage: any other refusal, or no answer.
        """
        js = self._need()
        self._need_client()
        try:
            with _heeding_cancellation():
                return await request(js)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                raise Conflict(error.description or "") from error
            if isinstance(error, NotFoundError):
                raise (Absent if error.err_code == _NO_STREAM else Missing)(str(error)) from error
            raise Outage(str(error)) from error
        except _OUTAGES as error:
            raise Outage(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """End a task that was cancelled while nats-py waited, whatever came of that.

    Its `asyncio.wait_for` swallows a cancellation on Python 3.11 where the answer, or the end of the connection, comes with it.
    """
    try:
        yield
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


async def _ensure_stream(js: JetStreamContext, *, config: api.StreamConfig) -> int:
    """Return how many servers keep the stream, which is there now."""
    assert config.name is not None
    wanted = config.num_replicas or 1
    try:
        found = (await js.stream_info(config.name)).config
    except NotFoundError:
        await js.add_stream(config)
        return wanted
    if (found.num_replicas or 1) < wanted:
        log.warning(
            "stream gets more replicas stream=%s replicas=%d; stop no server until all hold it", config.name, wanted
        )
        await js.update_stream(found.evolve(num_replicas=wanted))
        return wanted
    return found.num_replicas or 1


async def _stream_info(js: JetStreamContext, *, name: str) -> api.StreamInfo:
    return await js.stream_info(name)


async def _consumer_page(js: JetStreamContext, *, stream: str, offset: int) -> list[api.ConsumerInfo]:
    return await js.consumers_info(stream, offset=offset)


def _current(cluster: api.ClusterInfo) -> int:
    """Return how many servers hold all of a stream or a consumer: its leader, and who is up to date with that one."""
    peers = cluster.replicas or ()
    return bool(cluster.leader) + sum(bool(peer.current) and not peer.offline for peer in peers)


def _consumer_load(info: api.ConsumerInfo) -> ConsumerLoad | None:
    """What a consumer says of itself; None for one that is no route's."""
    config = info.config
    try:
        route = subjects.parse_chunks(config.filter_subject or "")
    except ValueError:
        return None
    return ConsumerLoad(
        route.site,
        route.queue,
        pending=info.num_pending or 0,
        ack_pending=info.num_ack_pending or 0,
        ack_limit=config.max_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
    )


def _stored(message: api.RawStreamMsg) -> Stored:
    assert message.seq is not None
    at = message.time.timestamp() if message.time is not None else 0.0
    return Stored(message.seq, message.subject or "", at, message.data or b"")


def _raise_refusal(error: dict[str, Any]) -> None:
    if error.get("err_code") == WRONG_LAST_SEQUENCE:
        raise Conflict(error.get("description", ""))
    raise Outage(f"the broker refused a batch: {error.get('description', error)}")
