"""How Studies arrive: kopf's watch on one side, the engine on the other. Nothing is decided here.

Handlers are level-triggered: appeared, changed and resumed are one and the same call, which hands over the Study as it is
now. So is what an Allocation wishes of its agents. They return nothing (kopf would write it into the status), and are retried a few times only: what was still not
handed over then, `health` finds missing and hands over itself.

Deletion waits for the engine to clean what the study has in the broker, but not for ever: a namespace that does not go
away because a broker is down helps nobody. What is left there is found by its uid later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import kopf
import prometheus_client
from aiohttp import web

from merlin_operator import cluster, control, farewell, health, storages
from merlin_operator.view import StudyRef
from merlin_study import failpoints

logger = logging.getLogger(__name__)

FINALIZER: Final = "merlin.dev/cleanup"
FORGET_SECONDS: Final = 30.0
"""What cleaning may take before deletion goes on without it."""
FLUSH_SECONDS: Final = 2.0
RELEASE_SECONDS: Final = 15.0
"""What letting go of the Studies of a namespace that ends may take; a pod has 30 seconds to end."""
CANCELLATIONS: Final = 5
RETRIES: Final = 5
BACKOFF: Final = 3.0


class Engine(health.Watched, Protocol):
    """What is needed of `merlin_operator.engine.Engine` beside what health looks at."""

    async def run(self) -> None:
        """Work until cancelled."""

    def direct(self, allocation: str, spec: Mapping[str, Any]) -> None:
        """Take note of what is wished of an allocation's agents."""

    async def forget(self, ref: StudyRef, *, timeout: float, retain: bool) -> bool:  # noqa: ASYNC109 it knows what to skip
        """Cancel a study and clean what it has in the broker; False where that took too long."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The parts of one operator process; kopf hands it to every handler as ``memo``.

    `stop` is set where a part ended that never should: the process ends too, and whoever started it starts a new one.
    """

    engine: Engine
    board: cluster.ClusterBoard
    health: health.Health
    metrics: prometheus_client.CollectorRegistry
    host: str
    port: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[BaseException] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    sites: list[web.AppRunner] = field(default_factory=list)
    forget_seconds: float = FORGET_SECONDS

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a part that ends only with the operator."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception() or RuntimeError(f"{task.get_name()} ended by itself")
        logger.critical("a part of the operator failed: part=%s", task.get_name(), exc_info=error)
        self.failures.append(error)
        self.stop.set()


def registry() -> kopf.OperatorRegistry:
    """Return all handlers, in a registry of their own: importing this module registers nothing."""
    handlers = kopf.OperatorRegistry()
    studies: dict[str, Any] = {"registry": handlers, "retries": RETRIES, "backoff": BACKOFF}
    what = (cluster.GROUP, cluster.VERSION, cluster.STUDIES)
    kopf.on.startup(registry=handlers, errors=kopf.ErrorsMode.PERMANENT)(start)
    kopf.on.cleanup(registry=handlers)(stop)
    kopf.on.login(registry=handlers, retries=RETRIES, backoff=BACKOFF)(login)
    for when in (kopf.on.create, kopf.on.update, kopf.on.resume):
        when(*what, id="observe", **studies)(observe)
    kopf.on.delete(*what, id="forget", **studies)(forget)
    kopf.on.event(cluster.GROUP, cluster.VERSION, cluster.ALLOCATIONS, registry=handlers)(direct)
    return handlers


def settings() -> kopf.OperatorSettings:
    """Return how kopf behaves: annotations of a few bytes, no look at the cluster's other kinds, no peers, bounded waits."""
    chosen = kopf.OperatorSettings()
    chosen.persistence.finalizer = FINALIZER
    chosen.persistence.diffbase_storage = storages.SpecHashStorage()
    chosen.persistence.progress_storage = storages.SmallProgressStorage()
    chosen.posting.level, chosen.posting.reporting_component = logging.WARNING, "merlin-operator"
    chosen.scanning.disabled = chosen.peering.standalone = True
    chosen.process.ultimate_exiting_timeout = 30
    _bound(chosen)
    return chosen


def _bound(chosen: kopf.OperatorSettings) -> None:
    """Bound how long kopf waits for the API server and how much it does at once."""
    chosen.watching.server_timeout, chosen.watching.connect_timeout = 600, 10
    chosen.watching.chunk_size = cluster.PAGE
    chosen.networking.request_timeout, chosen.networking.error_backoffs = 60, [1, 2, 5, 10, 20, 40]
    chosen.queueing.worker_limit, chosen.execution.max_workers = 50, 20


async def start(memo: Operator, **_: object) -> None:
    """Start the engine, what shows its work, and what watches both; then kopf begins to deliver."""
    runner = web.AppRunner(health.application(memo.health, memo.metrics), access_log=None)
    memo.sites.append(runner)
    await runner.setup()
    await web.TCPSite(runner, memo.host, memo.port).start()
    memo.spawn("engine", memo.engine.run())
    memo.spawn("board", memo.board.run())
    memo.spawn("health", memo.health.run())


async def stop(memo: Operator, **_: object) -> None:
    """Stop all parts, and write what the studies last came to while the API server is quick about it.

    Where the namespace is being deleted, no later operator would take the finalizers off its Studies: they are let go.
    """
    memo.stop.set()  # kopf waits for it in a task of its own, and for that task when it ends
    await _end(memo.tasks)
    await _within(FLUSH_SECONDS, memo.board.flush())
    try:
        await _within(RELEASE_SECONDS, farewell.release(memo.board.api, FINALIZER))
    except cluster.ApiError as error:
        logger.warning("studies not let go: error=%s", error)
    for runner in memo.sites:
        await runner.cleanup()
    memo.board.api.close()


async def login(memo: Operator, **_: object) -> kopf.ConnectionInfo:
    """Give kopf the way into the cluster that our own client takes."""
    return await asyncio.to_thread(cluster.login, memo.board.api.configuration)


async def observe(memo: Operator, body: kopf.Body, **_: object) -> None:
    """Hand a Study to the engine as it is now: it appeared, changed, or was there when the operator started."""
    submission = cluster.submission_of(body)
    await memo.engine.observe(submission)
    memo.health.guard.delivered(submission.ref.uid, submission.generation)


async def direct(memo: Operator, event: kopf.RawEvent, **_: object) -> None:
    """Hand the engine what an Allocation wishes of its agents; it is told of each object anew whenever the watch begins."""
    raw = event["object"]
    spec = {} if event["type"] == "DELETED" else raw.get("spec") or {}
    memo.engine.direct(raw["metadata"]["name"], spec)


async def forget(memo: Operator, body: kopf.Body, **_: object) -> None:
    """Let the engine clean up; once this returns, kopf takes the finalizer off and the object is gone."""
    failpoints.reach("operator.finalizer")
    submission = cluster.submission_of(body)
    ref, retain = submission.ref, control.switches_of(submission.spec).retain
    work = memo.engine.forget(ref, timeout=memo.forget_seconds, retain=retain)
    cleaned = await _within(memo.forget_seconds + 5, work)
    if not cleaned:
        logger.warning("study deleted without cleaning the broker: study=%s uid=%s", ref.name, ref.uid)
        kopf.warn(body, reason="CleanupTimedOut", message="what the study has in the broker is left there")


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: before Python 3.12 `asyncio.wait_for`, in libraries too, may drop a cancellation."""
    pending = set(tasks)
    for _ in range(CANCELLATIONS):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=1.0)
    for task in pending:
        logger.error("a part of the operator does not end: part=%s", task.get_name())


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of some work, or None where it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return None
