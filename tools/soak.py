"""Kill a random process each second while a study of real bash tasks runs, and prove from the histories that nothing was lost or doubled.

The processes are agents, the engine and nats-server; what was killed is started again at once. When the time is up the study is left
alone until it ends. Then the history of every process is checked: each task has an outcome that stands, no success was issued
again, nothing ran twice without a verdict of loss, and every overlap is counted.

    python tools/soak.py [--seconds 600] [--tasks 100000] [--seed N] [--write docs/benchmarks]

The seed decides who is killed when; it is printed, and the same one asks for the same again. Exit code 1 where the promise was broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.checker import Finding
from tests.faults.rig import Rig, a_rig
from tests.ground import Broker, eventually
from tools.bench_report import machine, publish

TELL_EVERY = 10.0
AGENT, OPERATOR, BROKER = "agent", "operator", "nats-server"


@dataclass(frozen=True)
class Wish:
    """What is asked for: seconds of killing, one kill every so many, tasks and what each sleeps, agents and their slots."""

    seconds: float
    every: float
    tasks: int
    nap: float
    agents: int
    slots: int
    seed: int


@dataclass(frozen=True)
class Came:
    """What came of it; times in seconds."""

    kills: Counter[str]
    killing: float
    total: float
    succeeded: int
    exhausted: int
    redundant: int
    finding: Finding


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def soak(wish: Wish, directory: Path) -> Came:
    """Run it.

    Raises:
        AssertionError: the promise was broken; or the study did not end.
    """
    chance = random.Random(wish.seed)
    kills: Counter[str] = Counter()
    # Once the killing is over, there is nothing to wait for.
    cmd = f"[ -e {directory / 'hurry'} ] || sleep {wish.nap:g}" if wish.nap else ":"
    with (
        Broker(directory / "broker") as broker,
        a_rig(broker, directory, tasks=wish.tasks, cmd=cmd, log_stands=True) as rig,
    ):
        began = time.monotonic()
        engine = rig.operator()
        agents = [rig.agent(slots=wish.slots) for _ in range(wish.agents)]
        rig.until_done(1, seconds=240)
        first, told = time.monotonic(), 0.0
        while (now := time.monotonic() - first) < wish.seconds and not rig.view().get("finished"):
            if now - told >= TELL_EVERY:
                told = now
                say(_progress(now, rig, kills))
            victim = chance.choice([broker.process, engine, *agents])
            if victim is broker.process:
                kills[BROKER] += 1
                broker.kill()
                broker.restart()
            elif victim is engine:
                kills[OPERATOR] += 1
                victim.kill()
                engine = rig.operator()
            else:
                kills[AGENT] += 1
                victim.kill()
                agents[agents.index(victim)] = rig.agent(slots=wish.slots)
            time.sleep(max(0.0, first + now + wish.every - time.monotonic()))
        killing = time.monotonic() - first
        rig.hurry.touch()
        say(f"{killing:.0f} s: the killing is over after {kills.total()}; the study is left alone")
        _until_finished(rig, kills, first)
        finding = rig.finish(seconds=600)
        total = time.monotonic() - began
        view = rig.view()
        succeeded = sum(step["succeeded"] for step in view["steps"] if step["name"] == "sim")
        return Came(kills, killing, total, succeeded, view["exhausted"], view["redundant"], finding)


def _until_finished(rig: Rig, kills: Counter[str], first: float) -> None:
    told = time.monotonic()

    def over() -> bool:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            say(_progress(told - first, rig, kills))
        return bool(rig.view().get("finished"))

    eventually(over, timeout=3600, interval=0.5, message="the study ends")


def _progress(now: float, rig: Rig, kills: Counter[str]) -> str:
    told = ", ".join(f"{count} × {kind}" for kind, count in sorted(kills.items())) or "nothing"
    ended = sum(path.read_bytes().count(b'"event": "ended"') for path in rig.history.glob("*.jsonl"))
    return f"{now:.0f} s: {ended} executions of {rig.tasks} tasks have ended; killed: {told}"


def report(wish: Wish, came: Came) -> str:
    """Return the figures as a page."""
    finding = came.finding
    rows = [
        ("tasks, each a bash script", f"{wish.tasks:,}"),
        ("agents × slots", f"{wish.agents} × {wish.slots}"),
        ("seconds of killing, one kill each", f"{came.killing:.0f}, {wish.every:g}"),
        *((f"kills of {kind}", f"{count:,}") for kind, count in sorted(came.kills.items())),
        ("seconds until the study had ended", f"{came.total:.0f}"),
        ("tasks without an outcome", "0"),
        ("tasks doubled", "0"),
        ("successes accepted twice", "0"),
        ("tasks that succeeded", f"{came.succeeded:,}"),
        ("tasks failed because eight agents in turn died with them", f"{came.exhausted:,}"),
        ("verdicts of loss", f"{finding.losses:,}"),
        ("executions", f"{finding.executions:,}"),
        ("executions beyond a task's first, each after a loss", f"{finding.repeated:,}"),
        ("of these, overlaps: begun while the lost one might still run", f"{finding.overlaps:,}"),
        ("late results that were counted and not applied", f"{came.redundant:,}"),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""# A process killed each second

`make soak`, seed {wish.seed}; {machine()}. A random process (an agent, the engine, nats-server) is killed with SIGKILL and started
again; [what dies](../faults.md) says what happens then. The three zeros are proven from the histories of all processes:
a run that breaks one ends with exit code 1 and says which task.

| what | figure |
|---|---|
{table}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Kill a random process each second; check that nothing was lost.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to kill")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one kill to the next")
    parser.add_argument("--tasks", type=int, default=100_000, help="how many tasks the study has")
    parser.add_argument("--nap", type=float, default=0.02, help="seconds that each task sleeps while the killing lasts")
    parser.add_argument("--agents", type=int, default=3, help="how many agents work")
    parser.add_argument("--slots", type=int, default=4, help="slots of each")
    parser.add_argument("--seed", type=int, default=None, help="who dies when (default: drawn, and printed)")
    parser.add_argument("--write", type=Path, help="directory for the page of figures")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().getrandbits(32) if given.seed is None else given.seed
    wish = Wish(given.seconds, given.every, given.tasks, given.nap, given.agents, given.slots, seed)
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="merlin-soak-") as made:
        try:
            came = soak(wish, Path(made))
        except AssertionError as error:
            say(f"seed {seed}: {error}")
            return 1
    publish(report(wish, came), given.write, "soak.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
