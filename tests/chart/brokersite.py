"""nats-server under the chart's own configuration, and connections of its users."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from merlin_operator import bootstrap
from merlin_study import sitefile, subjects, transport
from tests.chart.rendering import NAMESPACE, Helm, named
from tests.ground import Process, eventually, free_port
from tests.ground.needs import program

SPACE = subjects.Space(NAMESPACE)


@dataclass
class Site:
    """A server as the chart configures it, and the Secrets that the bootstrap Job makes for it."""

    directory: Path
    port: int
    keys: bootstrap.Data

    @property
    def server(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    @property
    def site_file(self) -> sitefile.SiteFile:
        data = bootstrap.for_agents(self.keys, namespace=NAMESPACE, server=self.server, site="here")
        return sitefile.parse(json.loads(data["site.yaml"]))

    def options(self, user: str) -> dict[str, Any]:
        password = self.keys[f"{user if user == 'agents' else 'operator'}-password"].decode()
        found = transport.options(self.server, user=user, ca=self.keys["ca.crt"].decode())
        return {**found, "user": user, "password": password}

    @contextlib.asynccontextmanager
    async def connected(self, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
        """A client of a user, and what the server refused it."""
        refused: list[str] = []

        async def failed(error: Exception) -> None:
            refused.append(str(error))

        client = Client()
        await client.connect(self.server, allow_reconnect=False, error_cb=failed, **self.options(user))
        try:
            yield client, refused
        finally:
            await client.close()


@contextlib.contextmanager
def serve(helm: Helm, directory: Path) -> Iterator[Site]:
    """nats-server under the chart's own configuration, with other paths and another port."""
    port = free_port()
    keys = bootstrap.draw(datetime.now(UTC))
    made = bootstrap.for_broker(keys, {}, hosts=["localhost", "127.0.0.1"], now=datetime.now(UTC))
    for name in ("tls.crt", "tls.key"):
        (directory / name).write_bytes(made[name])
    text = named(helm.render(), "ConfigMap", "merlin-nats")["data"]["nats.conf"]
    text = text.replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("127.0.0.1:8222", f"127.0.0.1:{free_port()}")
    text = text.replace("/etc/nats/tls", str(directory)).replace('"/data"', json.dumps(str(directory / "data")))
    (directory / "nats.conf").write_text(text)
    env = dict(os.environ)
    for user in ("operator", "agents"):
        env[f"MERLIN_{user.upper()}_PASSWORD"] = made[f"{user}-password"].decode()
    process = Process(
        [program("nats-server"), "--config", directory / "nats.conf"], log=directory / "nats.log", env=env
    )
    process.start()
    try:
        eventually(lambda: "Server is ready" in (directory / "nats.log").read_text(), message="nats-server is ready")
        yield Site(directory, port, keys)
    finally:
        process.stop()
