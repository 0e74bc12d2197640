"""The only module that speaks NATS: one connection that comes back for ever, and the few requests of `broker.Broker`.

nats-py reconnects by itself, but with a fixed wait, and not at all after an ``-ERR`` such as an expired credential. So
its own reconnecting is off, and there is one mechanism for every loss: a new client, after a jittered and growing wait.
Subscriptions are kept here and made again.

Pulls are raw requests to ``$JS.API.CONSUMER.MSG.NEXT``, not nats-py's ``fetch``: that one creates consumers where they are missing,
hides the statuses that tell an empty consumer from a deleted one, and may sit out its whole timeout on an orphaned pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from merlin_agent.broker import Answer, ConflictError, Handler, Message, Pulled, UnansweredError
from merlin_agent.config import ConfigError, Credentials
from merlin_study import transport

if "nats.aio.transport" not in sys.modules and "aiohttp" not in sys.modules:
    # nats-py imports aiohttp where it finds it, for websockets that we do not use: 10 MiB and half a second.
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    import nats.aio.client

    del sys.modules["aiohttp"]
import nats.aio.client
import nats.errors

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_log: Final = logging.getLogger(__name__)

REQUEST_TIMEOUT: Final = 5.0
LONGEST_WAIT: Final = 15.0
"""Between two attempts to connect; jittered by half, so that ten thousand agents do not come back at once."""
COMPLAIN_EVERY: Final = 60.0
_LOOK_EVERY: Final = 1.0
_WRONG_LAST_SEQUENCE: Final = 10071


@dataclass(slots=True)
class _Pull:
    """The one open pull of a consumer: a delivered message carries its own subject, so it can't tell which pull it is for."""

    deliver: Handler
    missing: int
    ended: asyncio.Future[Pulled] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, how: Pulled) -> None:
        if not self.ended.done():
            self.ended.set_result(how)


class Link:
    """`broker.Broker` over NATS."""

    def __init__(
        self, *, server: str, credentials: Credentials, name: str, renew: Callable[[], Credentials] | None = None
    ) -> None:
        """Keep what a connection needs.

        Args:
            server: the address; several of one cluster with commas between them.
            credentials: those of the first connection.
            name: what the broker shows for us.
            renew: reads the credentials again before each further connection: they change while we run. Where they named the server,
                they do so from then on, too: it may have moved.
        """
        self._server, self._credentials, self._name, self._renew = server, credentials, name, renew
        self._client: nats.aio.client.Client | None = None
        self._listeners: list[tuple[str, Handler]] = []
        self._greeters: list[Callable[[], None]] = []
        self._pulls: dict[str, _Pull] = {}
        self._pull_inboxes: dict[str, str] = {}
        self._complained = -COMPLAIN_EVERY
        self._last_error: Exception | None = None
        self._closing = False
        self._lost = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as anybody knows."""
        return self._client is not None and self._client.is_connected

    def listen(self, subject: str, handler: Handler) -> None:
        """See `broker.Broker`."""
        self._listeners.append((subject, handler))

    def server(self) -> tuple[str, str]:
        """See `broker.Broker`."""
        info = self._client._server_info if self._client is not None else {}  # noqa: SLF001 - nats-py shows it nowhere else
        return str(info.get("server_id") or ""), str(info.get("cluster") or "")

    def on_connect(self, callback: Callable[[], None]) -> None:
        """See `broker.Broker`."""
        self._greeters.append(callback)

    async def run(self) -> None:
        """Keep a connection until `close`."""
        failures = 0
        while not self._closing:
            client = nats.aio.client.Client()
            self._lost = lost = asyncio.Event()
            try:
                await self._connect(client, lost)
                failures = 0
                await _until_lost(client, lost)
                if not self._closing:
                    _log.warning("the connection to %s is lost: %s", self._server, self._last_error or "closed")
            except Exception as error:  # noqa: BLE001 - whatever a half-dead server makes nats-py raise: try again
                self._complain(error)
            finally:
                self._client = None
                for pull in self._pulls.values():
                    pull.end(Pulled.GONE)
                await _close(client)
            self._read_credentials()
            failures += 1
            longest = min(LONGEST_WAIT, 0.1 * 2**failures)
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret

    def _read_credentials(self) -> None:
        """Take the credentials as they are now; the old ones where they can't be read."""
        try:
            if self._renew is not None:
                before, self._credentials = self._credentials, self._renew()
                if self._server == before.server and self._credentials.server not in ("", before.server):
                    self._server = self._credentials.server
                    _log.info("the server is at %s now", self._server)
        except ConfigError as error:  # a file that is just being replaced: the next attempt reads it
            _log.warning("the old credentials are kept: %s", error)

    def close(self) -> None:
        """Let `run` end; cancelling it would not do, because nats-py swallows cancellations now and then."""
        self._closing = True
        self._lost.set()

    async def _connect(self, client: nats.aio.client.Client, lost: asyncio.Event) -> None:
        async def closed() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            self._last_error = error

        self._last_error = None
        await client.connect(
            self._server.split(","),
            name=self._name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            ping_interval=15,
            max_outstanding_pings=2,
            error_cb=failed,
            closed_cb=closed,
            **self._credentials.as_options(),
            **transport.options(self._server, user=self._credentials.user, ca=self._credentials.ca),
        )
        self._pull_inboxes.clear()
        for subject, handler in self._listeners:
            await client.subscribe(subject, cb=_adapted(handler))
        await client.flush()
        self._client = client
        _log.info("connected to %s", self._server)
        for greet in self._greeters:
            greet()

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained < COMPLAIN_EVERY:
            return
        self._complained = now
        found = str(self._last_error or error) or type(error).__name__
        if "Authorization" in found or "authorization" in found:
            cure = "check that the credentials file is the one for this server; trying on"
        elif "certificate" in found:
            cure = "check that the certificate authority is this server's, and the address one of its names; trying on"
        else:
            cure = "check --server and that this host may reach it; trying on"
        _log.error("expected a NATS server at %s, found: %s; %s", self._server, found, cure)

    async def publish(self, subject: str, data: bytes) -> None:
        """See `broker.Broker`."""
        client = self._client
        if client is None:
            return
        try:
            await client.publish(subject, data)
        except (nats.errors.Error, OSError) as error:
            _log.debug("publish failed: %s", error)

    async def flush(self) -> None:
        """Wait until what was published has left, where there is a connection."""
        client = self._client
        if client is None:
            return
        try:
            await client.flush(timeout=2)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            _log.debug("flush failed: %s", error)

    async def store(self, subject: str, data: bytes, *, message_id: str = "", first: bool = False) -> None:
        """See `broker.Broker`."""
        headers: dict[str, Any] = {}
        if first:
            headers["Nats-Expected-Last-Subject-Sequence"] = "0"
        if message_id:
            headers["Nats-Msg-Id"] = message_id
        answer = json.loads((await self._request(subject, data, headers or None)).data)
        error = answer.get("error")
        if error is None:
            return
        if error.get("err_code") == _WRONG_LAST_SEQUENCE:
            raise ConflictError(error.get("description", ""))
        raise UnansweredError(f"{subject}: {error.get('description', error)}")

    async def last(self, stream: str, subject: str) -> bytes | None:
        """See `broker.Broker`."""
        return await self._get(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str) -> bytes | None:
        """See `broker.Broker`."""
        return await self._get(stream, {"seq": 1, "next_by_subj": subject})

    async def _get(self, stream: str, query: dict[str, Any]) -> bytes | None:
        found = await self._request(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), None)
        status = _status(found)
        if status == "404":
            return None
        if status:
            raise UnansweredError(f"{stream}: {status} {(found.headers or {}).get('Description', '')}")
        return found.data

    async def _request(self, subject: str, data: bytes, headers: dict[str, Any] | None) -> Msg:
        client = self._client
        if client is None:
            raise UnansweredError("not connected")
        try:
            return await client.request(subject, data, timeout=REQUEST_TIMEOUT, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise UnansweredError(f"{subject}: nobody keeps it yet; is the operator up?") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise UnansweredError(f"{subject}: {error or 'no answer'}") from error

    async def pull(self, stream: str, consumer: str, deliver: Handler, *, batch: int, expires: float) -> Pulled:
        """See `broker.Broker`."""
        client = self._client
        if client is None:
            return Pulled.GONE
        ask: dict[str, Any] = {"batch": batch}
        ask |= {"expires": int(expires * 1e9)} if expires else {"no_wait": True}
        pull = self._pulls[consumer] = _Pull(deliver, batch)
        try:
            inbox = await self._inbox(client, consumer)
            await client.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", json.dumps(ask).encode(), reply=inbox
            )
            async with asyncio.timeout(expires + REQUEST_TIMEOUT):
                return await pull.ended
        except (nats.errors.Error, OSError, TimeoutError):
            return Pulled.GONE

    async def _inbox(self, client: nats.aio.client.Client, consumer: str) -> str:
        if consumer not in self._pull_inboxes:
            inbox = client.new_inbox()

            async def arrived(found: Msg) -> None:
                self._on_pull(consumer, found)

            await client.subscribe(inbox, cb=arrived)
            self._pull_inboxes[consumer] = inbox
        return self._pull_inboxes[consumer]

    def _on_pull(self, consumer: str, found: Msg) -> None:
        pull, status = self._pulls[consumer], _status(found)
        if not status:
            pull.missing -= 1
            pull.deliver(Message(found.subject, found.data, found.reply))  # a late one too: its ack clock runs
            if pull.missing == 0:
                pull.end(Pulled.ENDED)
        elif status in ("404", "408"):
            pull.end(Pulled.ENDED)
        elif status != "100":
            pull.end(Pulled.GONE)

    async def answer(self, message: Message, answer: Answer, *, delay: float = 0.0) -> None:
        """See `broker.Broker`."""
        verb = answer.value
        if delay:
            verb += b' {"delay": %d}' % int(delay * 1e9)
        await self.publish(message.reply, verb)


async def _until_lost(client: nats.aio.client.Client, lost: asyncio.Event) -> None:
    """Return once a connection is gone: nats-py calls nobody where one was reset that still had something to send."""
    while not client.is_closed and not lost.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY):
                await lost.wait()


def _adapted(handler: Handler) -> Callable[[Msg], Awaitable[None]]:
    async def call(found: Msg) -> None:
        handler(Message(found.subject, found.data, found.reply))

    return call


def _status(found: Msg) -> str:
    return (found.headers or {}).get("Status", "") if not found.data else ""


async def _close(client: nats.aio.client.Client) -> None:
    try:
        async with asyncio.timeout(2):
            await client.close()
    except (nats.errors.Error, OSError, TimeoutError) as error:
        _log.debug("close failed: %s", error)
