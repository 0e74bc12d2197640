"""An operator that runs in a thread of the test, with kopf and the API server real and the engine a recorder."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client

from merlin_operator import __main__, cluster, handlers, health, metrics
from merlin_operator.board import Submission
from merlin_operator.load import BrokerLoad, ConsumerLoad, StreamLoad
from merlin_operator.measures import ROUND_BUCKETS, Spread, Tally
from merlin_operator.view import StudyRef
from tests.ground import free_port


@dataclass(frozen=True)
class Counts:
    """What an engine counts."""

    issued_tasks: int = 0
    issued_chunks: int = 0
    reports: int = 0
    refused_signature: int = 0
    refused_schema: int = 0
    interrupted: int = 0
    broker_reconnects: int = 0
    broker_certificate_ends: float | None = 2e9
    broker_connected: bool = True


LOAD = BrokerLoad(
    stored=5000,
    store_limit=10_000,
    streams=(StreamLoad("tasks", 3, 2000, 8000), StreamLoad("reports", 9, 3000, None)),
    consumers=(
        ConsumerLoad("hpc", "merlin", pending=2, ack_pending=30, ack_limit=40, redelivered=1),
        ConsumerLoad("hpc", "merlin", pending=1, ack_pending=10, ack_limit=40, redelivered=0),
    ),
)


@dataclass
class RecordingEngine:
    """Does nothing and remembers what it was asked; `forgets` is its answer, None for one that never comes."""

    forgets: bool | None = True
    fails: int = 0
    deaf: bool = False
    dies: str = ""
    stubborn: int = 0
    quiet: float = 0.0
    observed: list[Submission] = field(default_factory=list)
    forgotten: list[StudyRef] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    load: BrokerLoad | None = LOAD
    directed: dict[str, dict[str, Any]] = field(default_factory=dict)
    met: bool = True
    rounds: Spread = field(default_factory=lambda: Spread(ROUND_BUCKETS))

    async def run(self) -> None:
        """Work for ever, or until the test says so."""
        while not self.dies:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                self.stubborn -= 1
                if self.stubborn < 0:
                    raise
        raise RuntimeError(self.dies)

    async def observe(self, submission: Submission) -> None:
        """Record."""
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the broker is away " * 100)
        if not self.deaf:
            self.observed.append(submission)

    def direct(self, allocation: str, spec: Mapping[str, Any]) -> None:
        """Record."""
        self.directed[allocation] = dict(spec)

    async def forget(self, ref: StudyRef, *, timeout: float, retain: bool) -> bool:  # noqa: ASYNC109 the interface
        """Record, and answer as told."""
        del retain
        self.forgotten.append(ref)
        if self.forgets is None:
            await asyncio.sleep(timeout * 1000)
        return bool(self.forgets)

    async def sweep(self, live: frozenset[str]) -> None:
        """Nothing is left behind."""

    def known(self) -> frozenset[tuple[str, int]]:
        """Return all that was observed."""
        return frozenset((each.ref.uid, each.generation) for each in self.observed)

    def quiet_seconds(self) -> float:
        """Return what the test says."""
        return self.quiet

    def met_broker(self) -> bool:
        """Return what the test says."""
        return self.met

    def counters(self) -> Counts:
        """Return zeros."""
        return Counts()

    def generations(self, name: str) -> list[int]:
        """Return which generations of a Study were observed, in order."""
        return [each.generation for each in self.observed if each.ref.name == name]


@dataclass
class Running:
    """A running operator."""

    operator: handlers.Operator
    engine: RecordingEngine
    url: str
    loop: asyncio.AbstractEventLoop

    @property
    def board(self) -> cluster.ClusterBoard:
        """What it shows."""
        return self.operator.board

    def show(self, *views: Any, agents: Any = ()) -> None:
        """Show views as an engine would."""
        asyncio.run_coroutine_threadsafe(self.board.show(views, agents), self.loop).result(240)


@contextlib.contextmanager
def running(
    configuration: client.Configuration,
    namespace: str,
    engine: RecordingEngine,
    *,
    forget_seconds: float = 1.0,
    interval: float = 60.0,
) -> Iterator[Running]:
    """Run an operator until the block ends, and require that it ends and without failures."""
    api = cluster.Api(configuration, namespace)
    board = cluster.ClusterBoard(api)
    judged = health.Health(engine, api, interval=interval)
    registry = metrics.registry_of(metrics.MerlinCollector(engine, board, namespace))
    port = free_port()
    operator = handlers.Operator(engine, board, judged, registry, "127.0.0.1", port, forget_seconds=forget_seconds)
    loops: list[asyncio.AbstractEventLoop] = []
    errors: list[BaseException] = []

    async def work() -> None:
        loops.append(asyncio.get_running_loop())
        await __main__.run(operator, namespace)

    def thread_main() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    thread = threading.Thread(target=thread_main, name="operator")
    thread.start()
    while not operator.sites and thread.is_alive():
        time.sleep(0.01)
    try:
        yield Running(operator, engine, f"http://127.0.0.1:{port}", loops[0])
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the operator has ended by itself
            loops[0].call_soon_threadsafe(operator.stop.set)
        thread.join(240)
        assert not thread.is_alive(), "the operator ends"
    assert not errors, errors
    assert not operator.failures, operator.failures
