"""The log as it grows: each entry once and in its order, or an `Outage`, after which it is read again from where that was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from nats.aio.msg import Msg
from nats.js import api

from merlin_operator.stream.answers import Outage, Stored
from merlin_operator.stream.connection import OUTAGES, Connection

_SILENCE_SECONDS: Final = 12
"""More than two of the log reader's idle heartbeats."""


async def follow(
    connection: Connection, stream: str, filter_subject: str, *, start: int
) -> AsyncGenerator[Stored, None]:
    """Yield a stream's messages; see `merlin_operator.stream.Broker.read_log`."""
    inbox = connection.client().new_inbox()
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await connection.client().subscribe(inbox, cb=queue.put, pending_bytes_limit=256 << 20)
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
        await connection.ask(lambda js: js.add_consumer(stream, config))
        expected, reconnects = 1, connection.reconnects
        while True:
            message = await _next(connection, queue, reconnects)
            if message.headers and message.headers.get("Status"):
                continue
            metadata = message.metadata
            if metadata.sequence.consumer != expected:
                raise Outage("a gap in the log's delivery")
            expected += 1
            yield Stored(metadata.sequence.stream, message.subject, metadata.timestamp.timestamp(), message.data)
    finally:
        with contextlib.suppress(*OUTAGES):
            await subscription.unsubscribe()


async def _next(connection: Connection, queue: asyncio.Queue[Msg], reconnects: int) -> Msg:
    """Return the next message; raise `Outage` after a silence, or once the connection is another one than it was."""
    for _ in range(_SILENCE_SECONDS):
        try:
            async with asyncio.timeout(1.0):  # wait_for would swallow a cancellation on 3.11
                return await queue.get()
        except TimeoutError:
            if connection.reconnects != reconnects:  # the consumer was in the server's memory
                break
    raise Outage("the log fell silent")
