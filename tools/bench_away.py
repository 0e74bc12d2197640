"""Measure what agents do while the operator is away, for each window of work that may wait in the broker.

For each window: a broker, an engine and an agent of their own work for a while; then the engine is killed, stays away, and is
started again. What is measured, from the history that every process leaves:

- what waited in the broker when the engine was killed, and how many bytes that took there;
- for how long the agent still had work, and how many tasks ended meanwhile;
- how long after the engine's start its status was right, and when the next new task began.

    python tools/bench_away.py [--away 600] [--windows 60 600] [--slots 8] [--write docs/benchmarks]

The windows are measured side by side: tasks sleep, so they take nothing from each other.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.admin import SPACE, act
from tests.faults.checker import check, read
from tests.faults.rig import Rig, a_rig
from tests.ground import Broker, eventually
from tools.bench_report import machine, publish


@dataclass(frozen=True)
class Figures:
    """One window; times in seconds."""

    window: float
    waiting: int
    size: int
    carried: int
    lasted: float
    right: float
    resumed: float | None
    """None: the agent had never run out of work."""
    doubled: int


def measure(window: float, wish: argparse.Namespace, broker: Broker, directory: Path) -> Figures:
    """Measure one window.

    Raises:
        AssertionError: the engine did not come back, or the promise was broken.
    """
    tasks = int(wish.slots / wish.nap * (wish.warm + window + wish.away) * 1.5)
    with (
        broker,
        a_rig(broker, directory, tasks=tasks, cmd=f"sleep {wish.nap:g}", window=window, log_stands=True) as rig,
    ):
        rig.operator()
        rig.agent(slots=wish.slots)
        rig.until_done(1, seconds=240)
        time.sleep(wish.warm)
        waiting = sum(step["queued"] for step in rig.view()["steps"])
        size = act(broker, lambda js: js.stream_info(SPACE.task_stream)).state.bytes
        rig.operators[-1].kill()
        gone = time.monotonic_ns()
        time.sleep(wish.away)
        back = time.monotonic_ns()
        ended = _ended(rig, 0, back)
        rig.operator()
        eventually(lambda: rig.done() >= ended, timeout=240, interval=0.02, message="its status is right")
        right = (time.monotonic_ns() - back) / 1e9
        time.sleep(min(30.0, wish.away / 10))
        events = read(rig.history)
        during = [event["at"] for event in events if event["event"] == "ended" and gone < event["at"] < back]
        begun = [event["at"] for event in events if event["event"] == "began" and event["at"] > back]
        lasted = (max(during, default=gone) - gone) / 1e9
        ran_dry = lasted < wish.away - 5 * wish.nap
        finding = check(events, {}, log_stands=True)
        assert finding.faults == [], finding.faults[:5]
        resumed = (min(begun) - back) / 1e9 if ran_dry and begun else None
        return Figures(window, waiting, size, len(during), lasted, right, resumed, finding.repeated)


def _ended(rig: Rig, after: int, before: int) -> int:
    """How many executions ended between two moments of the monotonic clock."""
    return sum(event["event"] == "ended" and after < event["at"] < before for event in read(rig.history))


def report(wish: argparse.Namespace, figures: Sequence[Figures]) -> str:
    """Return the figures as a page."""
    heads = "".join(f" {each.window:g} s |" for each in figures)
    rows = {
        "tasks that waited in the broker when the operator was killed": [f"{each.waiting:,}" for each in figures],
        "bytes of the task stream then": [f"{each.size:,}" for each in figures],
        "seconds for which agents had work": [f"{each.lasted:.0f}" for each in figures],
        "tasks that ended while it was away": [f"{each.carried:,}" for each in figures],
        "of what the slots could have done": [
            f"{each.carried * wish.nap / wish.slots / wish.away:.0%}" for each in figures
        ],
        "seconds from its start until its status was right": [f"{each.right:.1f}" for each in figures],
        "seconds from its start until idle agents worked again": [
            "never idle" if each.resumed is None else f"{each.resumed:.1f}" for each in figures
        ],
        "tasks run twice": [f"{each.doubled}" for each in figures],
    }
    table = "\n".join(f"| {what} | {' | '.join(values)} |" for what, values in rows.items())
    return f"""# The operator away

`python tools/bench_away.py`; {machine()}. The operator is killed and stays away for {wish.away:g} s; an agent with {wish.slots} slots
works on tasks of {wish.nap:g} s. The window (`--window-seconds`, in the chart `operator.windowSeconds`) is how many seconds of measured work
may wait in the broker: what agents live on while nobody publishes more.

| window |{heads}
|---|{"---|" * len(figures)}
{table}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Measure what agents do while the operator is away.")
    parser.add_argument("--away", type=float, default=600.0, help="seconds for which it is away")
    parser.add_argument("--windows", type=float, nargs="+", default=[60.0, 600.0], help="seconds of work that may wait")
    parser.add_argument("--warm", type=float, default=90.0, help="seconds of work before it is killed")
    parser.add_argument("--slots", type=int, default=8, help="slots of the agent")
    parser.add_argument("--nap", type=float, default=1.0, help="seconds of each task")
    parser.add_argument("--write", type=Path, help="directory for the page of figures")
    wish = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="merlin-away-") as made,
        ThreadPoolExecutor(max_workers=len(wish.windows)) as pool,
    ):
        runs = []
        for window in wish.windows:
            directory = Path(made) / f"{window:g}"
            runs.append(pool.submit(measure, window, wish, Broker(directory / "broker"), directory))
        page = report(wish, [run.result() for run in runs])
    publish(page, wish.write, "away.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
