"""Three nats-servers that are one JetStream cluster: what one of them confirms, two have."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import APIError

from tests.ground.broker import Broker, Credentials
from tests.ground.waiting import eventually, free_port

T = TypeVar("T")
NAMES = ("n1", "n2", "n3")


class Cluster:
    """`Broker`'s address and credentials, for three servers."""

    def __init__(self, directory: Path) -> None:
        """Lay them out below a directory."""
        token = secrets.token_hex(16)
        ports = {name: free_port() for name in NAMES}
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports.values())
        self.servers = {
            name: Broker(
                directory / name,
                token=token,
                extra=f"server_name: {name}\n"
                f"cluster {{ name: merlin, listen: 127.0.0.1:{ports[name]}, routes: [{routes}] }}\n",
            )
            for name in NAMES
        }

    @property
    def url(self) -> str:
        """The addresses of all, with commas between them."""
        return ",".join(server.url for server in self.servers.values())

    @property
    def credentials(self) -> Credentials:
        """What `nats.connect` takes beside it."""
        return self.servers["n1"].credentials

    def info(self, stream: str) -> StreamInfo | None:
        """What the cluster says of a stream; None where it does not answer at the moment."""
        return self._ask(lambda js: js.stream_info(stream))

    def leader(self, stream: str) -> Broker:
        """The server that leads a stream; AssertionError where nobody does for long."""
        return self.servers[
            eventually(lambda: self._leader(stream), timeout=240, interval=0.2, message=f"{stream} is led")
        ]

    def until_whole(self, stream: str) -> None:
        """Wait until all servers keep a stream and are up to date with it: from then on any one of them may die."""

        def whole() -> bool:
            found = self.info(stream)
            peers = found.cluster.replicas or () if found is not None and found.cluster is not None else ()
            return sum(bool(peer.current) for peer in peers) == len(NAMES) - 1

        eventually(whole, timeout=240, interval=0.2, message=f"{stream} is on all servers")

    def hand_over(self, stream: str, name: str) -> None:
        """Have a server lead a stream."""
        asked = json.dumps({"placement": {"preferred": name}}).encode()

        def leads() -> bool:
            if self._leader(stream) == name:
                return True
            self._ask(lambda js: js._nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", asked, timeout=5))
            return False

        eventually(leads, timeout=240, interval=0.5, message=f"{name} leads {stream}")

    def _leader(self, stream: str) -> str:
        found = self.info(stream)
        return found.cluster.leader or "" if found is not None and found.cluster is not None else ""

    def _ask(self, what: Callable[[JetStreamContext], Awaitable[T]]) -> T | None:
        """Ask whichever server answers, over a connection of one's own; None where none does."""
        up = [server.url for server in self.servers.values() if server.process.alive]

        async def run() -> T:
            client = Client()
            try:
                await client.connect(up, allow_reconnect=False, connect_timeout=10, error_cb=_quiet, **self.credentials)
                return await what(client.jetstream(timeout=10))
            finally:
                await client.close()

        try:
            return asyncio.run(run())
        except (NatsError, APIError, OSError, TimeoutError):
            return None

    def __enter__(self) -> Self:
        """Start all, and return when JetStream answers."""
        for server in self.servers.values():
            server.start()
        eventually(
            lambda: self._ask(lambda js: js.account_info()),
            timeout=240,
            interval=0.2,
            message="the cluster has a leader",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all."""
        for server in self.servers.values():
            server.kill()


async def _quiet(_: Exception) -> None:
    """Servers that are down are what these tests are about."""
