"""A connection to the broker that is made anew whenever it is lost for good, and what its failures mean.

nats-py closes for good on an expired credential or an ``-ERR`` of the server, so `Connection.run` keeps making new
connections, with jitter, for ever. Whatever is asked goes through `Connection.ask`, which knows each failure by its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from merlin_operator import certificate
from merlin_operator.stream.answers import Absent, Conflict, Missing, Outage

log = logging.getLogger(__name__)

OUTAGES: Final = (NatsError, OSError, asyncio.TimeoutError)
"""What nats-py raises where the broker can't be reached, refuses, or does not answer."""
REQUEST_SECONDS: Final = 5.0
WRONG_LAST_SEQUENCE: Final = 10071
_NO_STREAM: Final = 10059
_CONNECT_SECONDS: Final = 5
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at whether the connection still stands."""
_BACKOFF: Final = (0.1, 2.0)
"""Seconds between attempts to connect, at first and at most; each is drawn between half of it and all of it."""


class Connection:
    """One connection, made anew whenever it is lost for good."""

    def __init__(
        self, server: str, *, options: dict[str, Any], renew: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        """Keep what a connection needs; for the arguments see `merlin_operator.stream.Broker`."""
        self.reconnects = 0
        self.problem = "not connected yet"
        self.certificate_ends: float | None = None
        """When the certificate ends that the broker last showed, in Unix seconds; None without TLS."""
        if "tls" in options:
            certificate.watch(options["tls"], self._see_certificate)
        self._server, self._options, self._renew = server, options, renew
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
        return self._server_says("server_id")

    @property
    def cluster(self) -> str:
        """The name of the cluster that this server is one of; empty where it is on its own."""
        return self._server_says("cluster")

    def _server_says(self, key: str) -> str:
        info = self._client._server_info if self._client is not None else {}  # noqa: SLF001 nats-py shows it nowhere else
        return str(info.get(key) or "")

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
            except (Outage, *OUTAGES) as error:
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
        self._js = self._client.jetstream(timeout=REQUEST_SECONDS)
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
            with heeding_cancellation(), contextlib.suppress(*OUTAGES):
                await client.close()

    def jetstream(self) -> JetStreamContext:
        """Return what speaks to the streams.

        Raises:
            Outage: there is no connection.
        """
        if self._js is None:
            raise Outage(self.problem or "not connected")
        return self._js

    def client(self) -> Client:
        """Return what speaks to the server beside the streams.

        Raises:
            Outage: there is no connection.
        """
        if self._client is None or not self._client.is_connected:
            raise Outage(self.problem or "not connected")
        return self._client

    async def ask(self, request: Callable[[JetStreamContext], Awaitable[Any]]) -> Any:
        """Make a request.

        Raises:
            Conflict: a compare-and-set found another value.
            Absent, Missing: the stream, or what was asked for in it, is not there.
            Outage: any other refusal, or no answer.
        """
        js = self.jetstream()
        self.client()
        try:
            with heeding_cancellation():
                return await request(js)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                raise Conflict(error.description or "") from error
            if isinstance(error, NotFoundError):
                raise (Absent if error.err_code == _NO_STREAM else Missing)(str(error)) from error
            raise Outage(str(error)) from error
        except OUTAGES as error:
            raise Outage(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def heeding_cancellation() -> Iterator[None]:
    """End a task that was cancelled while nats-py waited, whatever came of that.

    Its `asyncio.wait_for` swallows a cancellation on Python 3.11 where the answer, or the end of the connection, comes with it.
    """
    try:
        yield
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
