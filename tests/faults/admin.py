"""What somebody with the broker's credentials does to a run from outside: filling, deleting, playing back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import nats
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from merlin_study import subjects
from tests.ground import Broker

SPACE = subjects.Space("local")
FILLER = "FILLER"
T = TypeVar("T")


def act(broker: Broker, what: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    """Do something over a connection of one's own."""

    async def run() -> T:
        async with _connected(broker) as js:
            return await what(js)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _connected(broker: Broker) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(broker.url, **broker.credentials)
    try:
        yield client.jetstream(timeout=30)
    finally:
        await client.close()


async def fill(js: JetStreamContext) -> None:
    """Take all the room that is left to the streams, to the last kilobyte."""
    await js.add_stream(name=FILLER, subjects=[f"{FILLER}.>"])
    for size in (64 << 10, 1 << 10, 16):
        with contextlib.suppress(APIError):
            while True:
                await js.publish(f"{FILLER}.x", b"x" * size)


async def make_room(js: JetStreamContext) -> None:
    """Give it back."""
    await js.delete_stream(FILLER)


async def delete_consumers(js: JetStreamContext) -> int:
    """Delete every consumer of the task stream; return how many there were."""
    names = [info.name for info in await js.consumers_info(SPACE.task_stream)]
    for name in names:
        await js.delete_consumer(SPACE.task_stream, name)
    return len(names)


async def play_back(js: JetStreamContext, *, seed: int) -> int:
    """Publish all that both streams hold a second time, in another order; return how many messages."""
    found = []
    for stream in (SPACE.report_stream, SPACE.task_stream):
        state = (await js.stream_info(stream)).state
        for sequence in range(state.first_seq, state.last_seq + 1):
            with contextlib.suppress(NotFoundError):
                message = await js.get_msg(stream, seq=sequence, direct=True)
                found.append((message.subject or "", message.data or b""))
    random.Random(seed).shuffle(found)
    for subject, data in found:
        await js.publish(subject, data)
    return len(found)
