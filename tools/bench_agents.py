"""A thousand agents on one nats-server and one operator: what keeping them costs, and what it costs while they work.

The agents live in one process: each has a connection of its own, its intake, claims, reports and heartbeats, all of the agent's own
code; only their tasks are rehearsed (a slot's thread sleeps). Broker and operator are real processes; nats-server syncs every write.

    python tools/bench_agents.py [--agents 1000] [--seconds 5] [--write docs/benchmarks]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merlin_agent import rehearsal
from merlin_agent.beat import Beat
from merlin_agent.binding import Place
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.config import load_credentials
from merlin_agent.demand import Host, Load, Means
from merlin_agent.ground import LEEWAY
from merlin_agent.intake import Intake, Offered, Reach, Taste
from merlin_agent.launch import DirectLauncher
from merlin_agent.life import Lives
from merlin_agent.link import Link
from merlin_agent.post import Post
from merlin_agent.presence import Presence
from merlin_agent.record import Recorder
from merlin_agent.slots import Slots
from merlin_agent.studies import Studies
from merlin_study import wire
from merlin_study.plan import SampleTable
from merlin_study.seal import Keyring
from merlin_study.subjects import Space
from tests.agent.standin import a_plan, a_step
from tests.ground import Broker
from tools.bench_report import machine, publish
from tools.bench_site import peak_mib, processor_seconds

SITE: Final = "bench"
STUDY: Final = "5f0c8a52-0000-4000-8000-000000000000"
STEADY: Final = 20.0
MEASURED: Final = 3
"""Tasks of each agent after which chunks are of the size that the tasks' times ask for."""
PATIENCE: Final = 180.0


class Simulated:
    """An agent of one slot, without processes: what the broker and the operator see of one."""

    def __init__(self, number: int, root: Path, server: str, keys: Keyring) -> None:
        self.id = f"bench-{number}-{os.getpid()}-{number:06x}"
        self.done = 0
        self.claimed_at = 0.0
        self._means = Means()
        credentials = load_credentials(root / "credentials.json")
        self.link = Link(server=server, credentials=credentials, name=self.id)
        post = Post(self.link, keys, Space("local"))
        self.slots = Slots(1, launcher=DirectLauncher({}), watch=lambda *_: None, deliver=self._on_ended, grace=1.0)
        self._recorder = Recorder(lambda _: None)
        studies = Studies(post, Place(SITE, self.id), str(root / "work"), lambda _: None, lambda _: None)
        self.problems: list[str] = []
        self.lives = Lives(
            self.id,
            post=post,
            studies=studies,
            slots=self.slots,
            recorder=self._recorder,
            presence=Presence(self.id, lambda _: None),
            timing=lambda: self.intake.offer.timing,
            complain=self.problems.append,
            host=Host(1, 0),
        )
        self._beat = Beat(post, self._describe, lambda: self.intake.offer.timing.heartbeat)
        self.intake = Intake(
            post,
            Taste(SITE, (), "", Host(1, 0), "bench"),
            load=self._load,
            reach=Reach(hosts=lambda: 1, has_room=lambda: False),
            seconds_left=lambda: float("inf"),
            accept=self._accept,
            refuse=self.problems.append,
            offered=Offered(retimed=self._beat.soon, quarantined=lambda: None, recalled=lambda _: None),
        )
        self.lives.serve(self.intake, lambda *_: None)
        self.link.listen(post.space.rollcall, lambda _: self._beat.soon())
        self.link.on_connect(self._beat.soon)

    def _accept(self, held: Any) -> None:
        self.claimed_at = self.claimed_at or time.monotonic()
        self.lives.accept(held)

    def _load(self) -> Load:
        ready = self.slots.feed.ready + self.lives.entering
        return Load(slots=1, busy=self.slots.busy, ready=ready, mean=self._means.longest(self.lives.steps))

    def _on_ended(self, batch: list[tuple[ChunkRun, Ended]]) -> None:
        for run, ended in batch:
            run.ended()
            life = self.lives.by_run.get(run)
            if life is not None:
                life.pending.add(ended)
                life.settle()
            self.done += ended.outcome is not None
            self._means.add(run.step, ended.seconds, 1)
        self.intake.wake()

    def _describe(self) -> wire.Heartbeat:
        return wire.Heartbeat(
            agent=self.id,
            site=SITE,
            host="bench",
            pid=os.getpid(),
            version="0",
            slots=1,
            busy=self.slots.busy,
            queues=(),
            holds=self.lives.holds(),
            done=self.done,
        )

    def start(self) -> None:
        """Connect and take chunks."""
        self.slots.start()
        self._running = [asyncio.create_task(part) for part in (self.link.run(), self._beat.run(), self.intake.run())]


@dataclass(frozen=True)
class Figures:
    """Seconds, shares of a core, MiB."""

    agents: int
    seconds: float
    connected: float
    all_claimed: float
    settled: float
    load: float
    rate: float
    shares: dict[str, float]
    memory: dict[str, float]
    lost: int


class Views:
    """What the operator shows of the study."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.last: dict[str, Any] = {}
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last = json.loads(line)


async def simulate(root: Path, broker: Broker, options: argparse.Namespace) -> Figures:
    """Have the agents run one study."""
    keys = Keyring.generate()
    keys.save(root / "keys")
    credentials = root / "credentials.json"
    credentials.touch(0o600)
    credentials.write_text(json.dumps(dict(broker.credentials)))
    (root / "work").mkdir()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(128))  # each agent has a few of its own
    table = SampleTable(generate=None, file="", columns=(), level_max_dirs=100, count=options.tasks)
    plan = a_plan(a_step("sim", "true", sampled=True), samples=table)
    (root / "plan.json").write_bytes(plan.to_json())
    timing = wire.Timing()
    arguments = ["--server", broker.url, "--credentials", str(credentials), "--keys", str(root / "keys")]
    arguments += ["--plan", str(root / "plan.json"), "--study", STUDY, "--name", plan.workspace]
    arguments += ["--rehearse", str(options.seconds), "--timing", timing.model_dump_json(), "--window", "60"]
    # What comes from a broker that is new to the operator, agents look up in all outcome logs: no steady state.
    first = _operator(arguments)
    told = Views(first)
    while not told.last:  # noqa: ASYNC110 - what is watched is another process's word
        await asyncio.sleep(0.1)
    first.kill()
    first.wait()
    since = time.monotonic()
    agents, connected = await _connected(root, broker, keys, options.agents)
    await asyncio.sleep(max(0.0, since + LEEWAY + 1 - time.monotonic()))
    operator = _operator(arguments)
    try:
        views, begun = Views(operator), time.monotonic()
        parts = {"operator": operator.pid, "nats-server": broker.process.pid, "all agents": os.getpid()}
        while not all(agent.claimed_at for agent in agents) and time.monotonic() < begun + PATIENCE:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        all_claimed = max(agent.claimed_at for agent in agents) - begun
        idle = sum(not agent.claimed_at for agent in agents)
        print(f"  all but {idle} had a chunk after {all_claimed:.1f} s", flush=True)
        settled = await _settled(agents, begun)
        print(f"  all had done {MEASURED} tasks after {settled:.1f} s", flush=True)
        load = os.getloadavg()[0]
        before, done = {name: processor_seconds(pid) for name, pid in parts.items()}, _done(agents)
        at = time.monotonic()
        await asyncio.sleep(STEADY)
        passed = time.monotonic() - at
        steps = views.last.get("steps", [{}])
        return Figures(
            options.agents - idle,
            options.seconds,
            connected,
            all_claimed,
            settled,
            load,
            (_done(agents) - done) / passed,
            {name: (processor_seconds(pid) - before[name]) / passed for name, pid in parts.items()},
            {name: peak_mib(pid) for name, pid in parts.items()},
            sum(step.get("lost", 0) for step in steps) + views.last.get("doubled", 0),
        )
    finally:
        operator.terminate()
        operator.wait()


def _operator(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "merlin_operator.local", *arguments], stdout=subprocess.PIPE, text=True
    )


async def _connected(root: Path, broker: Broker, keys: Keyring, count: int) -> tuple[list[Simulated], float]:
    """Start so many agents; return them, and how long it took until all were connected."""
    agents: list[Simulated] = []
    began = time.monotonic()
    threading.stack_size(256 * 1024)
    for number in range(count):
        agents.append(Simulated(number, root, broker.url, keys))
        agents[-1].start()
        if number % 50 == 49:
            while not all(agent.link.connected for agent in agents):  # noqa: ASYNC110 - what is watched are others' states
                await asyncio.sleep(0.05)
    took = time.monotonic() - began
    print(f"  {count:,} agents connected after {took:.1f} s", flush=True)
    return agents, took


async def _settled(agents: list[Simulated], begun: float) -> float:
    """Wait until every agent has done a few tasks: a step's first ones travel one by one, until it is known how long they take."""
    while time.monotonic() < begun + PATIENCE:
        if all(agent.done >= MEASURED for agent in agents):
            break
        await asyncio.sleep(0.2)
    return time.monotonic() - begun


def _done(agents: list[Simulated]) -> int:
    return sum(agent.done for agent in agents)


def page(found: Figures, load: float) -> str:
    """Return the page of figures in Markdown."""
    rows = [
        ("agents, each with a connection", f"{found.agents:,}"),
        ("all connected after", f"{found.connected:.1f} s"),
        ("every agent has its first chunk, after the study's begin", f"{found.all_claimed:.1f} s"),
        (f"every agent has done {MEASURED} tasks, after the study's begin", f"{found.settled:.1f} s"),
        (f"tasks of {found.seconds:g} s that end in a second from then on", f"{found.rate:,.0f}"),
        ("of that, if no agent ever waited", f"{found.agents / found.seconds:,.0f}"),
        ("tasks lost or run twice", str(found.lost)),
        *((f"{name}: share of a core while they work", f"{share:.0%}") for name, share in found.shares.items()),
        *((f"{name}: peak memory", f"{memory:.0f} MiB") for name, memory in found.memory.items()),
    ]
    return "\n".join(
        [
            "# What a thousand agents cost",
            "",
            (
                "`make bench-agents` writes this page. One operator, one nats-server that syncs every write, and agents that pull, claim, "
                "report and send a heartbeat every 10 s, with the agent's own code in one process beside them; their tasks only pass time. "
                "A step's first tasks travel one by one, and no agent asks for more than it can run until it is known how long they take; "
                "so the rate is taken after that. Tasks that began together end together: then a thousand reports, claims and fetches come at once, and "
                "the one process that plays all agents takes some 7 ms of its core for each. That is what bounds the rate here, not server or operator."
            ),
            "",
            f"{datetime.now(UTC).date()}, {machine()}. Load of the machine before: {load:.1f}; while they worked: {found.load:.1f}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
        ]
    )


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of the study, which is left before its end")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--write", type=Path, metavar="DIR", help="write agents.md there")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rehearsal.LOOK = options.seconds  # a thousand threads that look five times a second are no agents' load
    memory = (
        Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    )  # a thousand agents are a thousand hosts' disks
    with tempfile.TemporaryDirectory(prefix="merlin-bench-", dir=memory) as name, Broker() as broker:
        root = Path(name)
        # Not asyncio.run: it would wait for the end of a thousand agents, whose connections swallow a cancellation now and then.
        found = asyncio.new_event_loop().run_until_complete(simulate(root, broker, options))
    publish(page(found, load), options.write, "agents.md")
    os._exit(0)  # a thousand threads wait for tasks that won't come


if __name__ == "__main__":
    main()
