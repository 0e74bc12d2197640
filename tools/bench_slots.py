"""What a task costs in the agent's slots and their warm shells alone: no broker, no operator, no start of any of them.

Prints processor time for each task, of the agent's Python and of the shells with their children. On a busy machine only counts of instructions
can be compared; `perf` gives them, and the difference of two numbers of tasks leaves out what happens once:

    for n in 500 3000; do perf stat -e instructions:u,instructions:k,cycles,page-faults python tools/bench_slots.py full $n; done

    python tools/bench_slots.py {full,lean} TASKS [--slots 2] [--cmd ': # $(A)'] [--bound]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merlin_agent import warm
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.execute import ChunkWork, StepWork
from merlin_agent.launch import DirectLauncher, environment
from merlin_agent.lean import LeanWork
from merlin_agent.rows import open_rows
from merlin_agent.slots import Slots
from merlin_study.geometry import Geometry
from merlin_study.shape import Shape
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk
from merlin_study.workspace import Layout
from tests.agent.standin import a_sampled_plan


async def measure(root: Path, options: argparse.Namespace) -> str:
    """Run the tasks as one chunk; return what they cost."""
    plan = a_sampled_plan(root, options.tasks, options.cmd).model_copy(update={"outputs": options.outputs})
    layout = Layout(str(root / "study"), Geometry(plan, options.tasks))
    os.makedirs(layout.info)  # noqa: PTH103 - a text, as the agent has it
    step = StepWork(layout, 1, rows=open_rows(str(root / "samples.csv")), restart=False)
    tasks = TaskSet(first=0, width=options.tasks)
    chunk = Chunk(study="s", plan="p", epoch=1, fence=1, step=1, tasks=tasks, attempt=1, samples=options.tasks)
    run, over = ChunkRun(chunk), asyncio.Event()

    def deliver(batch: list[tuple[ChunkRun, Ended]]) -> None:
        for each, ended in batch:
            each.ended()
            if ended.code or ended.outcome is None:
                sys.exit(f"a task did not succeed: {ended}")
        if run.over:
            over.set()

    environ = environment(os.environb)
    slots = Slots(
        options.slots,
        launcher=DirectLauncher(environ),
        watch=lambda *_: None,
        deliver=deliver,
        grace=1.0,
        warm=warm.makers(environ, print),
        cpus=tuple(sorted(os.sched_getaffinity(0))) if options.bound else (),
    )
    lean = options.outputs == "lean"
    work = LeanWork(step, chunk, agent="bench", tells=lambda: True) if lean else ChunkWork(step, lambda: True)
    slots.start()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    slots.feed.add(run, work, Shape())
    await over.wait()
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    slots.close()  # and with them the shells, whose time is known only then
    shells = resource.getrusage(resource.RUSAGE_CHILDREN)
    agent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    each = 1e6 / options.tasks
    return (
        f"{options.outputs}: {options.tasks / took:,.0f} tasks/s; for each task {agent * each:.0f} µs of the agent, "
        f"{(shells.ru_utime + shells.ru_stime) * each:.0f} µs of its shells, {shells.ru_minflt / options.tasks:.0f} page faults"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", choices=("full", "lean"))
    parser.add_argument("tasks", type=int)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--cmd", default=": # $(A)", help="what a task runs")
    parser.add_argument("--bound", action="store_true", help="bind each slot to processors, as in an allocation")
    options = parser.parse_args()
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="merlin-bench-", dir=memory) as directory:
        print(asyncio.run(measure(Path(directory), options)))


if __name__ == "__main__":
    main()
