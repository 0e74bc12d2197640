"""Waiting in the outer rings, where a real neighbour gives no event to await."""

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# Short enough that a test's time is the neighbour's, long enough that polling does not slow the neighbour on two cores.
INTERVAL = 0.02
# Seconds: what a machine of two cores that does much else may take. Nobody waits so long where all is well.
GENEROUS = 180.0


def eventually(
    predicate: Callable[[], T], *, timeout: float = GENEROUS, message: str = "", interval: float = INTERVAL
) -> T:
    """Poll until the predicate is truthy and return that value; AssertionError with the last value otherwise.

    An exception of the predicate is not swallowed: what may fail for a while, the predicate has to say itself.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_late(predicate, message, timeout, value))
        time.sleep(interval)


async def eventually_async(
    predicate: Callable[[], Awaitable[T]],
    *,
    timeout: float = GENEROUS,  # noqa: ASYNC109 - asyncio.timeout knows neither the last value nor the message
    message: str = "",
    interval: float = INTERVAL,
) -> T:
    """`eventually` for a coroutine function; the event loop goes on between two polls."""
    deadline = time.monotonic() + timeout
    while True:
        value = await predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_late(predicate, message, timeout, value))
        await asyncio.sleep(interval)


def _late(predicate: object, message: str, timeout: float, value: object) -> str:
    what = message or getattr(predicate, "__qualname__", repr(predicate))
    return f"{what}: not within {timeout:g} s; the last value was {value!r}"


# Below the kernel's ephemeral range (32768 on). A port of that range can be taken, as a client's source port, while the
# server that owned it is down; worse, a client that retries it over loopback may connect to itself.
_PORTS = range(20_000, 32_000)


def own(ports: Sequence[int]) -> Sequence[int]:
    """The ports that are this process's own among those that pytest-xdist runs tests in; all where it does not.

    A server that is down for a while, as a test wants it, finds its port again.
    """
    count, name = (int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), os.environ.get("PYTEST_XDIST_WORKER", "gw0"))
    return ports[int(name.removeprefix("gw")) % count :: count]


def _endless(ports: Sequence[int]) -> Iterator[int]:
    chance = random.SystemRandom()  # hypothesis seeds the common one, alike in every process
    while True:
        yield from chance.sample(ports, len(ports))


_candidates = _endless(own(_PORTS))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; its number does not come again soon."""
    for port in _candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the candidates never end")
