"""A stand-in for the operator: makes streams and consumers, offers them, publishes sealed chunks, reads the log.

It decides nothing: a test says which chunk is issued when, and sees what the agent wrote.
"""

import asyncio
import json
import os
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from merlin_study import blob, nested, wire
from merlin_study.plan import INFO_STEP, Lane, Parameter, Plan, PlannedStep, SampleTable
from merlin_study.seal import Keyring, Signer
from merlin_study.subjects import ANY_SITE, ORDER, Route, Space
from merlin_study.taskset import TaskSet
from tests.ground import Broker, Process, eventually

T = TypeVar("T")
SHAPE = "n1-c1-g0-m0-w0"
QUEUE = "merlin"
STUDY = "3f0c8a52"
LogEntries = list[wire.Entry]


def a_step(name: str, cmd: str, **changes: Any) -> PlannedStep:
    """A step of null size, with what a test wants otherwise."""
    fields: dict[str, Any] = {
        "name": name,
        "cmd": cmd,
        "restart": "",
        "shell": "/bin/bash",
        "sampled": False,
        "parameters": (),
        "edges": (),
        "suffix": "",
    }
    lane = {"queue": QUEUE, "shape": SHAPE, "max_retries": 0, "retry_delay": 0.0}
    own = {key: changes.pop(key) for key in Lane.model_fields if key in changes}
    return PlannedStep(**({"lanes": (Lane.model_validate(lane | own),)} | fields | changes))


def a_plan(*steps: PlannedStep, **changes: Any) -> Plan:
    """A plan of these steps; with `samples` that are in a table it begins with the implicit step."""
    fields: dict[str, Any] = {
        "name": "study",
        "workspace": "study_20260101-000000",
        "output_path": "",
        "parameters": (),
        "samples": None,
        "provenance": {"study.orig.yaml": "description: {}\n"},
    } | changes
    table: SampleTable | None = fields["samples"]
    if table is not None and table.count is None:
        steps = (a_step(INFO_STEP, table.generate or "", shell="/bin/sh"), *steps)
    return Plan(steps=steps, **fields)


def a_parameter(key: str, *values: str) -> Parameter:
    """A parameter labelled ``KEY.value``."""
    return Parameter(key=key, values=values, labels=tuple(f"{key}.{value}" for value in values))


def a_sampled_plan(directory: Path, count: int, cmd: str, **changes: Any) -> Plan:
    """A plan whose step 1, ``sim``, runs ``cmd`` for so many samples (columns A and B) that a file in ``directory`` holds."""
    table = directory / "samples.csv"
    table.write_text("".join(f"{number},{number * number}\n" for number in range(count)))
    samples = SampleTable(generate=None, file=str(table), columns=("A", "B"), level_max_dirs=25)
    return a_plan(a_step("sim", cmd, sampled=True, **changes), samples=samples)


class Standin:
    """The operator's side of one namespace and one study."""

    def __init__(
        self,
        broker: Broker,
        directory: Path,
        *,
        study: str = STUDY,
        keys: Keyring | None = None,
        agent_keys: Keyring | None = None,
    ) -> None:
        """Keep what is needed; entering connects."""
        self.broker, self.directory, self.study = broker, directory, study
        self.space = Space("default")
        self.keys = keys or Keyring.generate()
        self.agent_keys = agent_keys or self.keys
        self.plan: Plan | None = None
        self.heartbeats: dict[str, list[wire.Heartbeat]] = {}
        self.fence = 0
        self.workspace = directory / "ws"
        self.workspace.mkdir(exist_ok=True)
        self.agents: list[Process] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="standin")
        self._client: Client | None = None
        self._consumers: list[wire.Consumer] = []

    # --- the thread that speaks NATS

    def __enter__(self) -> Self:
        """Connect and write the agent's keys and credentials."""
        self._thread.start()
        self.agent_keys.save(self.directory / "keys")
        credentials = self.directory / "credentials.json"
        credentials.write_text(json.dumps(self.broker.credentials))
        credentials.chmod(0o600)
        self.call(self._connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the agents, then the connection."""
        for agent in self.agents:
            agent.kill() if agent.alive else None
            if kind is not None:
                print(agent.describe())
        self.call(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 180) -> T:
        """Run a coroutine in the stand-in's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    @property
    def client(self) -> Client:
        """The connection."""
        assert self._client is not None
        return self._client

    async def _connect(self) -> None:
        async def quiet(error: Exception) -> None:
            del error

        self._client = await nats.connect(
            self.broker.url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=quiet,
            **self.broker.credentials,
        )
        await self._client.subscribe(self.space.all_heartbeats, cb=self._on_heartbeat)

    async def _on_heartbeat(self, message: Msg) -> None:
        data = self.keys.open(message.data, scope="agents", context=message.subject, signer=Signer.AGENT)
        beat = wire.Heartbeat.model_validate_json(data)
        self.heartbeats.setdefault(beat.agent, []).append(beat)

    # --- what the operator does

    def open_streams(self) -> None:
        """Make the three streams."""

        async def make() -> None:
            stream = self.client.jetstream(timeout=60)
            prefix = "merlin.v1.default"
            await stream.add_stream(
                StreamConfig(
                    name=self.space.task_stream,
                    subjects=[f"{prefix}.task.>", f"{prefix}.cursor.*"],
                    retention=RetentionPolicy.WORK_QUEUE,
                    allow_direct=True,
                )
            )
            await stream.add_stream(
                StreamConfig(name=self.space.report_stream, subjects=[f"{prefix}.report.>"], allow_direct=True)
            )
            await stream.add_stream(
                StreamConfig(
                    name=self.space.control_stream,
                    subjects=[f"{prefix}.control.>"],
                    max_msgs_per_subject=1,
                    allow_direct=True,
                )
            )

        self.call(make())

    def offer(self, site: str, *routes: Route, timing: wire.Timing | None = None, ack_wait: float = 30.0) -> wire.Offer:
        """Make the consumers of these routes and offer them to a site's agents."""
        for route in routes:
            config = ConsumerConfig(
                durable_name=route.consumer,
                filter_subject=self.space.chunks(route),
                ack_wait=ack_wait,
                max_ack_pending=1000,
            )
            self.call(self.client.jetstream(timeout=60).add_consumer(self.space.task_stream, config))
            self._consumers.append(
                wire.Consumer(
                    name=route.consumer,
                    queue=route.queue,
                    shape=route.shape,
                    band="urgent" if route.band == "urgent" else "bulk",
                )
            )
        made = wire.Offer(consumers=tuple(self._consumers), timing=timing or wire.Timing(heartbeat=0.5))
        self.put(self.space.offer(site), made.encode(), scope="agents")
        return made

    def up(self, plan: Plan, *, site: str = "here", timing: wire.Timing | None = None, ack_wait: float = 30.0) -> None:
        """Do all that comes before the first chunk."""
        self.open_streams()
        self.store_plan(plan)
        self.offer(site, a_route(), a_route(band="urgent"), timing=timing, ack_wait=ack_wait)

    def store_plan(self, plan: Plan) -> None:
        """Store the plan under its hash."""
        self.plan = plan
        head, _ = blob.split(zlib.compress(plan.to_json()))
        self.put(self.space.plan(self.study, plan.hash), head)

    def put(self, subject: str, payload: bytes, *, scope: str = "", context: str = "") -> None:
        """Seal and store a message."""
        sealed = self.keys.seal(payload, scope=scope or self.study, context=context or subject)
        self.call(self._store(subject, sealed))

    async def _store(self, subject: str, data: bytes) -> None:
        await self.client.jetstream(timeout=60).publish(subject, data)

    def put_raw(self, subject: str, data: bytes) -> None:
        """Store a message as it is."""
        self.call(self._store(subject, data))

    def chunk(self, tasks: TaskSet | Sequence[int] | range, **changes: Any) -> wire.Chunk:
        """The next chunk of the study, as yet unpublished."""
        assert self.plan is not None
        self.fence += 1
        fields: dict[str, Any] = {
            "study": self.study,
            "plan": self.plan.hash,
            "epoch": 1,
            "fence": self.fence,
            "step": 0,
            "tasks": tasks if isinstance(tasks, TaskSet) else TaskSet.of(tasks),
            "attempt": 1,
        }
        return wire.Chunk(**(fields | changes))

    def publish(self, chunk: wire.Chunk, route: Route | None = None) -> wire.Chunk:
        """Publish a chunk."""
        self.put(self.space.chunk(route or a_route(), self.study, chunk.fence), chunk.encode())
        return chunk

    def issue(self, tasks: TaskSet | Sequence[int] | range, route: Route | None = None, **changes: Any) -> wire.Chunk:
        """Make and publish the next chunk."""
        return self.publish(self.chunk(tasks, **changes), route)

    def cancel(self) -> None:
        """Say that the study is cancelled."""
        self.put(self.space.control(self.study), wire.Control(study=self.study, cancelled=True).encode())

    # --- what it sees

    def word(self, **says: Any) -> None:
        """Tell agents how the study stands."""
        word = wire.Control(study=self.study, **says)
        self.put(self.space.control(self.study), word.encode(), scope=self.study)

    def log(self, token: int | str) -> LogEntries:
        """Everything in the log under a fence, or under ``bound``."""
        subject = self.space.reports(self.study, 0)[:-1] + str(token)
        return [
            wire.decode_log(self.keys.open(data, scope=self.study, context=subject, signer=Signer.AGENT))
            for data in self.raw(token)
        ]

    def raw(self, token: int | str) -> list[bytes]:
        """The messages under one of the log's subjects, as they are stored."""
        subject = self.space.reports(self.study, 0)[:-1] + str(token)

        async def read() -> list[bytes]:
            found: list[bytes] = []
            sequence = 1
            while True:
                query = json.dumps({"seq": sequence, "next_by_subj": subject}).encode()
                answer = await self.client.request(f"$JS.API.DIRECT.GET.{self.space.report_stream}", query, timeout=60)
                headers = answer.headers or {}
                if headers.get("Status"):
                    return found
                found.append(answer.data)
                sequence = int(headers["Nats-Sequence"]) + 1

        return self.call(read())

    def order_after(self, known: Sequence[nested.Order]) -> nested.Order | None:
        """A step's order that is none of these; None where there is none yet."""

        async def read() -> list[tuple[str, bytes]]:
            stream, found = self.client.jetstream(timeout=60), []
            state = (await stream.stream_info(self.space.report_stream)).state
            for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
                message = await stream.get_msg(self.space.report_stream, sequence)
                found.append((message.subject or "", message.data or b""))
            return found

        words = {order.word for order in known}
        for subject, data in self.call(read()):
            key = subject.rpartition(".")[2]
            if key.startswith(ORDER) and key.removeprefix(ORDER) not in words:
                opened = self.keys.open(data, scope=self.study, context=subject, signer=Signer.AGENT)
                return nested.Order.model_validate_json(opened)
        return None

    def reports(self, fence: int) -> list[wire.Report]:
        """The reports of a fence."""
        return [entry for entry in self.log(fence) if isinstance(entry, wire.Report)]

    def starts(self, fence: int) -> list[wire.Start]:
        """The claims of a fence: never more than one."""
        return [entry for entry in self.log(fence) if isinstance(entry, wire.Start)]

    def final(self, chunk: wire.Chunk, timeout: float = 180) -> list[wire.Report]:
        """Wait for a chunk's last report, and return all of them."""

        def finished() -> list[wire.Report]:
            reports = self.reports(chunk.fence)
            return reports if reports and reports[-1].final else []

        return eventually(finished, timeout=timeout, message=f"chunk {chunk.fence} is over")

    def counts(self, reports: Sequence[wire.Report]) -> Counter[tuple[str, int]]:
        """How many tasks ended how; a task that is told twice is an error."""
        seen: set[int] = set()
        counter: Counter[tuple[str, int]] = Counter()
        for report in reports:
            for result in report.results:
                tasks = set(result.tasks.indices())
                assert not tasks & seen, f"told twice: {sorted(tasks & seen)[:5]}"
                seen |= tasks
                counter[result.outcome.value, result.code] += len(tasks)
        return counter

    def waiting(self) -> int:
        """How many messages the task stream still holds."""

        async def ask() -> int:
            return (await self.client.jetstream(timeout=60).stream_info(self.space.task_stream)).state.messages

        return self.call(ask())

    @property
    def root(self) -> Path:
        """The study's directory, where the agents' workspace is the usual one."""
        assert self.plan is not None
        return self.workspace / self.plan.workspace

    def beats(self) -> list[wire.Heartbeat]:
        """The last heartbeat of each agent."""
        return [beats[-1] for beats in self.heartbeats.values()]

    # --- the agents

    def agent(
        self,
        *flags: str,
        slots: int = 2,
        site: str = "here",
        workspace: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Process:
        """Start a `merlin-agent`."""
        argv = [
            sys.executable,
            "-m",
            "merlin_agent",
            *("--server", self.broker.url),
            *("--credentials", str(self.directory / "credentials.json")),
            *("--keys", str(self.directory / "keys")),
            *("--site", site, "--slots", str(slots)),
            *("--workspace", str(workspace or self.workspace)),
            *flags,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MERLIN_AGENT_")}
        number = len(self.agents)
        log = self.directory / f"agent-{number}.log"
        process = Process(argv, log=log, env=environment | {"HOME": str(self.directory)} | (env or {}))
        process.start()
        self.agents.append(process)
        return process

    def id_of(self, process: Process) -> str:
        """Wait until an agent was heard, and return its id."""

        def find() -> str:
            return next((b[0].agent for b in list(self.heartbeats.values()) if b[0].pid == process.pid), "")

        return eventually(find, message=f"agent {process.pid} is heard")


def a_route(*, site: str = ANY_SITE, queue: str = QUEUE, shape: str = SHAPE, band: str = "bulk") -> Route:
    """The usual route."""
    return Route(site, queue, shape, band)
