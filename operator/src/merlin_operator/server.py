"""``merlin server``'s own process: the engine with the studies of one user, and the few requests of the API that ``merlin`` makes.

The same command line, the same requests and the same objects as with a cluster, over TLS with a token. What is submitted lies on a
`shelf` in the server's directory; everything else that has to survive a restart lies in the broker's store and in the workspaces, as
ever. The store is on this host's disk; a copy of it is kept beside the shelf (`backup`), for the case that this host is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import itertools
import json
import logging
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from merlin_operator import allocations, assignments, conditions, config, expiry
from merlin_operator.backup import PLACE, Backup
from merlin_operator.board import AgentView
from merlin_operator.cluster import ALLOCATIONS, GROUP, VERSION, ApiError, submission_of
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.nursery import ClusterNursery
from merlin_operator.shelf import CONFIG_MAPS, INVALID, MISSING, STUDIES, Shelf
from merlin_operator.stream import Broker, Outage
from merlin_operator.view import StudyRef, StudyView
from merlin_study import transport
from merlin_study.seal import Keyring

log = logging.getLogger(__name__)

NAMESPACE: Final = "default"
MAX_BODY: Final = 8 << 20
FORGET_SECONDS: Final = 30.0
EXPIRY_INTERVAL: Final = 5.0
LAST_COPY_SECONDS: Final = 10.0
"""How long the end may wait for a last copy of the log."""
_OBJECTS: Final = f"/apis/{GROUP}/{VERSION}/namespaces/{NAMESPACE}"
_CORE: Final = f"/api/v1/namespaces/{NAMESPACE}"
_STEADY: Final = ("observedGeneration", "phase", "planHash")
"""What of a status is written down as soon as it changes; the rest is told anew by whoever reads the log."""


class Server:
    """A `board.Board`, and the studies as `nursery.ClusterNursery` makes and changes them."""

    def __init__(self, shelf: Shelf, settings: EngineConfig, backup: Backup) -> None:
        self.shelf, self.backup = shelf, backup
        self.engine = Engine(settings, self, ClusterNursery(self), reader=shelf)
        self._agents: Sequence[AgentView] = ()
        self._views: Sequence[StudyView] = ()
        self._there: set[str] = set()
        """Allocations that agents were heard of."""

    # What the engine calls

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Take note of the present state."""
        self._views, self._agents = views, agents
        there = {allocations.name_of(agent.heartbeat) for agent in agents}
        for name in (self._there - there) & self.shelf.wishes.keys():
            self.shelf.wish(name, {})
            self.engine.direct(name, {})
        self._there = there
        now = datetime.now(UTC)
        for view in views if news is None else news:
            study = self.shelf.studies.get(view.ref.name)
            if study is not None:
                before = study.get("status") or {}
                status = conditions.status_of(view, before, now)
                keep = any(before.get(key) != status.get(key) for key in _STEADY)
                self.shelf.tell(view.ref.name, view.ref.uid, status, keep=keep)

    async def create_study(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a Study; 409 where the name is taken."""
        made = self.shelf.create(STUDIES, body)
        await self.engine.observe(submission_of(made))
        return made

    async def patch_study(self, name: str, uid: str, changes: dict[str, Any]) -> None:
        """Change switches of a Study."""
        await self.engine.observe(submission_of(self.shelf.switch(name, changes, uid=uid)))

    async def study(self, name: str) -> dict[str, Any]:
        """Return a Study."""
        return self.shelf.get(STUDIES, name)

    async def allocation(self, name: str) -> dict[str, Any]:
        """Return an Allocation; 404 where no agent that is there belongs to it."""
        for each in self._allocations():
            if each["metadata"]["name"] == name:
                return each
        raise ApiError(MISSING, f'allocations "{name}" not found')

    async def patch_allocation(self, name: str, body: dict[str, Any]) -> None:
        """Take what is wished of an Allocation's agents."""
        await self.allocation(name)
        spec = body.get("spec", {})
        if fixed := sorted(spec.keys() - assignments.WISHES):
            raise ApiError(INVALID, f"spec.{fixed[0]}: expected one of {', '.join(sorted(assignments.WISHES))}")
        wished = {**self.shelf.wishes.get(name, {}), **spec}
        self.shelf.wish(name, {key: value for key, value in wished.items() if value is not None})
        self.engine.direct(name, self.shelf.wishes.get(name, {}))

    # The life of the process

    async def run(self) -> None:
        """Take up all studies that there are, and work until cancelled."""
        for study in list(self.shelf.studies.values()):
            await self.engine.observe(submission_of(study))
        for name, spec in self.shelf.wishes.items():
            self.engine.direct(name, spec)
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self.engine.run())
            parts.create_task(self._expire())
            parts.create_task(self.backup.keep(self.engine.broker))

    async def copy_once_more(self) -> None:
        """Copy what was written since the last copy, within a few seconds."""
        try:
            async with asyncio.timeout(LAST_COPY_SECONDS):
                await self.backup.take(self.engine.broker)
        except (TimeoutError, Outage, OSError) as error:
            log.warning("no last copy of the log error=%s", str(error) or type(error).__name__)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL)
            for ref in expiry.expired(self._views, time.time()):
                await self._forget(ref)

    async def _forget(self, ref: StudyRef) -> None:
        with contextlib.suppress(Outage):
            await self.engine.forget(ref, timeout=FORGET_SECONDS)
        with contextlib.suppress(ApiError):
            self.shelf.remove(STUDIES, ref.name)

    # The requests

    def application(self, token: str) -> web.Application:
        """Return what answers the command line."""

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                return _refusal(ApiError(401, "expected the token of this server's kubeconfig"))
            try:
                return await handler(request)
            except ApiError as error:
                return _refusal(error)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                return _refusal(ApiError(400, f"expected an object as JSON, found {type(error).__name__}: {error}"))

        application = web.Application(client_max_size=MAX_BODY, middlewares=[guarded])
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.post(f"{_OBJECTS}/{STUDIES}", self._create),
                web.get(f"{_OBJECTS}/{STUDIES}", self._list),
                web.get(f"{_OBJECTS}/{STUDIES}/{{name}}", self._get),
                web.patch(f"{_OBJECTS}/{STUDIES}/{{name}}", self._change),
                web.delete(f"{_OBJECTS}/{STUDIES}/{{name}}", self._delete),
                web.get(f"{_OBJECTS}/{ALLOCATIONS}", self._list_allocations),
                web.get(f"{_OBJECTS}/{ALLOCATIONS}/{{name}}", self._get_allocation),
                web.patch(f"{_OBJECTS}/{ALLOCATIONS}/{{name}}", self._change_allocation),
                web.post(f"{_CORE}/{CONFIG_MAPS}", self._create_part),
                web.patch(f"{_CORE}/{CONFIG_MAPS}/{{name}}", self._own_part),
                web.delete(f"{_CORE}/{CONFIG_MAPS}/{{name}}", self._drop_part),
                web.route("*", "/{path:.*}", self._unknown),
            ]
        )
        return application

    async def _healthz(self, _: web.Request) -> web.Response:
        broker = self.engine.counters().broker_connected
        return web.json_response(
            {
                "broker": broker,
                "agents": sum(not each.heartbeat.left for each in self._agents),
                "put_back": self.backup.put,
            },
            status=200 if broker else 503,
        )

    async def _create(self, request: web.Request) -> web.Response:
        return web.json_response(await self.create_study(await request.json()), status=201)

    async def _list(self, _: web.Request) -> web.Response:
        return _listed("Study", list(self.shelf.studies.values()))

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(await self.study(request.match_info["name"]))

    async def _change(self, request: web.Request) -> web.Response:
        body, name = await request.json(), request.match_info["name"]
        await self.patch_study(name, str(body.get("metadata", {}).get("uid", "")), body.get("spec", {}))
        return web.json_response(await self.study(name))

    async def _delete(self, request: web.Request) -> web.Response:
        await self._forget(submission_of(await self.study(request.match_info["name"])).ref)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _allocations(self) -> list[dict[str, Any]]:
        by_name = lambda agent: allocations.name_of(agent.heartbeat)  # noqa: E731 a key, twice
        now = datetime.now(UTC)
        found = []
        for name, agents in itertools.groupby(sorted(self._agents, key=by_name), by_name):
            group = list(agents)
            body = allocations.body_of(name, group)
            spec = {**body["spec"], **self.shelf.wishes.get(name, {})}
            found.append({**body, "spec": spec, "status": allocations.status_of(group, now)})
        return found

    async def _list_allocations(self, _: web.Request) -> web.Response:
        return _listed("Allocation", self._allocations())

    async def _get_allocation(self, request: web.Request) -> web.Response:
        return web.json_response(await self.allocation(request.match_info["name"]))

    async def _change_allocation(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self.patch_allocation(name, await request.json())
        return web.json_response(await self.allocation(name))

    async def _create_part(self, request: web.Request) -> web.Response:
        return web.json_response(self.shelf.create(CONFIG_MAPS, await request.json()), status=201)

    async def _own_part(self, request: web.Request) -> web.Response:
        owners = (await request.json())["metadata"]["ownerReferences"]
        return web.json_response(self.shelf.own(request.match_info["name"], owners))

    async def _drop_part(self, request: web.Request) -> web.Response:
        self.shelf.remove(CONFIG_MAPS, request.match_info["name"])
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _unknown(self, request: web.Request) -> web.Response:
        raise ApiError(MISSING, f"{request.path}: this server has studies, allocations and configmaps of one namespace")


def _listed(kind: str, items: Sequence[Mapping[str, Any]]) -> web.Response:
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": f"{kind}List", "metadata": {}, "items": list(items)}
    return web.json_response(body)


def _refusal(error: ApiError) -> web.Response:
    message = str(error).removeprefix(f"{error.status}: ")
    return web.json_response(
        {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": error.status},
        status=error.status or 500,
    )


async def serve(arguments: argparse.Namespace) -> None:
    """Run until told to end."""
    directory: Path = arguments.directory
    secrets: Path = directory / "operator"
    options = config.broker_options(secrets / "credentials.json")
    ca = (secrets / "ca.crt").read_text(encoding="ascii")
    settings = EngineConfig(
        namespace=NAMESPACE,
        server=arguments.broker,
        options={**options, **transport.options(arguments.broker, user=options["user"], ca=ca)},
        keyring=Keyring.load(secrets),
    )
    backup = Backup(directory / PLACE, arguments.generation, arguments.every)
    server = Server(Shelf(directory, NAMESPACE), settings, backup)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    token = json.loads((directory / "keys.json").read_bytes())["token"]
    runner = web.AppRunner(server.application(token), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, arguments.listen, arguments.port, ssl_context=context).start()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)  # the lifeline: it ends with whoever started us
    running, ended = asyncio.create_task(_run(server, settings)), asyncio.create_task(stop.wait())
    await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await server.copy_once_more()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await runner.cleanup()


async def _run(server: Server, settings: EngineConfig) -> None:
    """Work, once a broker that has no log was given the copy that there is."""
    broker, done = Broker(server.engine.space, server=settings.server, options=settings.options), asyncio.Event()

    async def connected() -> None:
        await server.backup.put_back(broker)
        done.set()

    connecting = asyncio.create_task(broker.run(connected))
    try:
        await done.wait()
    finally:
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connecting
    await server.run()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="merlin_operator.server", description=__doc__)
    parser.add_argument("--directory", required=True, type=Path, help="keys, certificates, studies, copies of the log")
    parser.add_argument("--generation", required=True, type=int, help="how often a server went on from a copy")
    parser.add_argument("--every", required=True, type=float, help="seconds between two copies of the log")
    parser.add_argument("--broker", required=True, help="the broker's address")
    parser.add_argument("--listen", required=True, help="the address to listen on")
    parser.add_argument("--port", required=True, type=int, help="the port")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
