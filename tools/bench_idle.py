"""An agent at rest: how long one task takes on it, and what it costs while nothing comes."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from tests.agent.standin import Standin, a_plan, a_step
from tests.ground import Broker, eventually

TURNS = 15
AT_REST = 20.0


def measure(directory: Path) -> tuple[list[float], float, float]:
    """Return seconds from a chunk of one task to its final report, the share of a core at rest, and MiB.

    The operator's side is a stand-in that reads the log every few milliseconds; agent, broker and task are real.
    """
    with Broker(directory / "nats") as broker, Standin(broker, directory) as operator:
        operator.up(a_plan(a_step("sim", ":")))
        agent = operator.agent(slots=2)
        operator.final(operator.issue(range(1)))
        times = []
        for _ in range(TURNS):
            chunk = operator.chunk(range(1), fresh=True)
            begin = time.perf_counter()
            operator.publish(chunk)
            eventually(lambda fence=chunk.fence: operator.reports(fence), interval=0.002)  # type: ignore[misc]
            times.append(time.perf_counter() - begin)
        before = _seconds(agent.pid)
        time.sleep(AT_REST)
        share = (_seconds(agent.pid) - before) / AT_REST
        return times, share, sum(_memory(pid) for pid in _family(agent.pid))


def _family(pid: int) -> list[int]:
    """The process and its children: the reaper, warm shells."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(word) for word in path.read_text().split()]
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = sorted({int(word) for thread in threads for word in (thread / "children").read_text().split()})
    return [pid, *children]


def _seconds(pid: int) -> float:
    total = 0
    for each in _family(pid):
        words = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(words[11]) + int(words[12])
    return total / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Proportional share in MiB: what several processes share counts once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        found, core, mebibytes = measure(Path(root))
        print(f"median {statistics.median(found) * 1e3:.1f} ms, {core:.2%} of a core, {mebibytes:.0f} MiB")
