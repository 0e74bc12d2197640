"""nats-server under the chart's own configuration, and connections of its users."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from merlin_operator import bootstrap
from merlin_study import sitefile, subjects, transport
from tests.chart.rendering import NAMESPACE, Helm, Manifest, named, pod_of
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
    keys, made = _drawn()
    port = free_port()
    with _server(named(helm.render(), "ConfigMap", "merlin-nats"), directory, made, {"4222": port}, {}):
        yield Site(directory, port, keys)


@dataclass
class Cluster:
    """Several servers as the chart configures them; ``routes`` are the ports at which they speak to each other."""

    sites: list[Site]
    routes: list[int]

    @property
    def server(self) -> str:
        return ",".join(site.server for site in self.sites)


@contextlib.contextmanager
def serve_several(helm: Helm, directory: Path) -> Iterator[Cluster]:
    """Three of them, each with the environment that its pod would have."""
    rendered = helm.render(case="three-servers-values.yaml")
    config, pod = named(rendered, "ConfigMap", "merlin-nats"), pod_of(named(rendered, "StatefulSet", "merlin-nats"))
    assert pod is not None
    keys, made = _drawn()
    given = {each["name"]: each.get("value", "") for each in pod["spec"]["containers"][0]["env"]}
    routes = {number: free_port() for number in range(sum(name.startswith("MERLIN_ROUTE_") for name in given))}
    env = {"MERLIN_ROUTES_PASSWORD": made["routes-password"].decode()}
    for number, port in routes.items():
        url = given[f"MERLIN_ROUTE_{number}"].replace("$(MERLIN_ROUTES_PASSWORD)", env["MERLIN_ROUTES_PASSWORD"])
        env[f"MERLIN_ROUTE_{number}"] = re.sub(r"@.*", f"@127.0.0.1:{port}", url)
    with contextlib.ExitStack() as stack:
        sites = []
        for number, port in routes.items():
            place, client_port = directory / f"merlin-nats-{number}", free_port()
            place.mkdir()
            own, ports = {**env, "MERLIN_SERVER_NAME": place.name}, {"4222": client_port, "6222": port}
            stack.enter_context(_server(config, place, made, ports, own))
            sites.append(Site(place, client_port, keys))
        yield Cluster(sites, list(routes.values()))


def _drawn() -> tuple[bootstrap.Data, bootstrap.Data]:
    """All keys, and what of them nats-server gets."""
    keys = bootstrap.draw(datetime.now(UTC))
    return keys, bootstrap.for_broker(keys, {}, hosts=["localhost", "127.0.0.1"], now=datetime.now(UTC))


@contextlib.contextmanager
def _server(
    config: Manifest, directory: Path, made: bootstrap.Data, ports: Mapping[str, int], extra: Mapping[str, str]
) -> Iterator[None]:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (directory / name).write_bytes(made[name])
    text = config["data"]["nats.conf"].replace("127.0.0.1:8222", f"127.0.0.1:{free_port()}")
    for usual, port in ports.items():
        text = text.replace(f"0.0.0.0:{usual}", f"127.0.0.1:{port}")
    text = text.replace("/etc/nats/tls", str(directory)).replace('"/data', f'"{directory / "data"}')
    (directory / "nats.conf").write_text(text)
    env = {**os.environ, **extra}
    for user in ("operator", "agents"):
        env[f"MERLIN_{user.upper()}_PASSWORD"] = made[f"{user}-password"].decode()
    process = Process(
        [program("nats-server"), "--config", directory / "nats.conf"], log=directory / "nats.log", env=env
    )
    process.start()
    try:
        eventually(lambda: "Server is ready" in (directory / "nats.log").read_text(), message="nats-server is ready")
        yield
    finally:
        process.stop()
