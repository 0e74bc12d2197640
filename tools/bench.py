"""Measure what a task costs, beside HyperQueue, ``xargs -P``, GNU parallel and the kernel's own limit, in the same run.

The task is a bash script that does nothing, or waits inside bash (``read -t``) so that no other program is started. Each contender runs it
as often, with as many slots, with every file on the same file system (memory, where there is ``/dev/shm``): script,
``.out`` and ``.err`` a task, ours with directory and marker file as well, or with one log or archive a chunk (``outputs: lean``, ``packed``). Peers get
directories and scripts made before the clock starts; ours makes its own while it runs. Repetitions are interleaved, so that a busy
moment hits all alike; ratios come first, each the median of the ratios of one turn.

    python tools/bench.py [--tasks 2000] [--slots 2] [--repeat 2] [--seconds 0 0.01 0.1 1] [--write docs/benchmarks]

Contenders that are not on this machine are left out and named; ``tools/bench-peers`` fetches GNU parallel, Redis and upstream's
Merlin into ``.cache/peers``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from merlin_study import archive, tasklog
from tools import bench_peers, bench_report
from tools.bench_report import Cell, Resting

SPEC = """\
outputs: {outputs}
description: {{name: bench, description: bash tasks that do nothing}}
study:
- name: task
  description: does nothing for a while
  run: {{cmd: "{cmd}", warm: {warm}}}
merlin:
  samples:
    generate: {{cmd: "seq {tasks} > $(MERLIN_INFO)/s.csv"}}
    file: $(MERLIN_INFO)/s.csv
    column_labels: [S]
    level_max_dirs: 100
"""
LEAST: Final = 3
"""Tasks of a cell and slot at least, and what a cell of long tasks lasts for at most, in seconds."""
LONGEST: Final = 8.0
SLOW: Final = {"merlin 1.13": 300, "parallel": 300}
"""How many tasks that do nothing the slow ones run: their rate does not depend on it."""
NULL_ONLY: Final = frozenset({"fork and wait", "merlin, run.warm: false", "merlin 1.13"})
"""Contenders that run only tasks that do nothing."""
NOT_PEERS: Final = frozenset({"merlin", "merlin, outputs: lean", "merlin, outputs: packed", "merlin, run.warm: false"})
BY_SLOTS: Final = ("merlin", "merlin, outputs: lean", "merlin, outputs: packed", "xargs -P")
LOGS: Final = "merlin_info/tasks"
TOLD: Final = "## Where the time of a task goes"
"""The page from here on is written by hand, and stays."""


def ours(root: Path, *, tasks: int, slots: int, seconds: float, warm: bool = True, outputs: str = "full") -> float:
    """Return seconds from the first task's script to the last one's marker, in a whole ``merlin run --local``.

    Under ``outputs: lean`` and ``packed``: from the claim of the first chunk to the last record of a log, or the last archive.
    """
    cmd = bench_peers.wait_text(root, seconds) + " # $(S)"
    text = SPEC.format(tasks=tasks, cmd=cmd, warm=str(warm).lower(), outputs=outputs)
    (root / "bench.yaml").write_text(text, encoding="utf-8")
    merlin = Path(sys.executable).with_name("merlin")
    environ = dict(os.environ)
    if outputs == "packed":  # the host's own disk is that of all contenders
        environ["TMPDIR"] = str(root / "scratch")
        (root / "scratch").mkdir()
    command = [str(merlin), "run", "bench.yaml", "--local", "--slots", str(slots)]
    subprocess.run(command, cwd=root, env=environ, check=True, stdout=subprocess.DEVNULL)
    study = next(root.glob("bench_*"))
    if outputs != "full":
        return _logged(study, tasks)
    first = min(path.stat().st_mtime_ns for path in study.glob("task/**/task.sh"))
    marks = [path.stat().st_mtime_ns for path in study.glob("task/**/MERLIN_FINISHED")]
    if len(marks) != tasks:
        sys.exit(f"bench: {len(marks)} of {tasks} tasks finished")
    return (max(marks) - first) / 1e9


def _logged(study: Path, tasks: int) -> float:
    began, ended, count = float("inf"), 0.0, 0
    for path in (each for each in study.glob(f"{LOGS}/*/*/*") if tasklog.covers(each.name)):
        with archive.open_log(str(path)) as file:
            found = tasklog.read(file)
            if found is not None:
                began = min(began, found[0].began)
                count += sum(1 for _ in found[1])
        ended = max(ended, path.stat().st_mtime)
    if count != tasks:
        sys.exit(f"bench: {count} of {tasks} tasks are in the logs")
    return ended - began


def lean(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """Return ours, with one log a chunk."""
    return ours(root, tasks=tasks, slots=slots, seconds=seconds, outputs="lean")


def packed(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """Return ours, on the host's own disk and with one archive a chunk."""
    return ours(root, tasks=tasks, slots=slots, seconds=seconds, outputs="packed")


def started(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """Return ours, with a new interpreter for each task."""
    return ours(root, tasks=tasks, slots=slots, seconds=seconds, warm=False)


CONTENDERS: Final[Mapping[str, Callable[..., float]]] = {
    "merlin": ours,
    "merlin, outputs: lean": lean,
    "merlin, outputs: packed": packed,
    "merlin, run.warm: false": started,
    "hyperqueue": bench_peers.hyperqueue,
    "xargs -P": bench_peers.xargs,
    "parallel": bench_peers.parallel,
    "merlin 1.13": bench_peers.upstream,
    "fork and wait": bench_peers.forks,
}


class FailedError(Exception):
    """A contender did not do what it was asked to."""


@dataclass(slots=True)
class Files:
    """What a contender leaves on disk, for each task."""

    count: float = 0.0
    size: float = 0.0


@dataclass(slots=True)
class Run:
    """All that a run of the benchmark found."""

    cells: dict[tuple[str, float], Cell] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


def measure(name: str, memory: Path | None, *, tasks: int, slots: int, seconds: float) -> tuple[float, Files]:
    """Return how long a contender took, and what it left, in a process and a directory of its own."""
    root = Path(tempfile.mkdtemp(prefix="merlin-bench-", dir=memory))
    command = [sys.executable, __file__, "--one", name, "--in", str(root), "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            [*command, "--tasks", str(tasks), "--slots", str(slots)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FailedError(f"{name} failed:\n{done.stderr}")
        kept = [f"bench_*/{part}/**/*" for part in ("task", LOGS)] if name.startswith("merlin") else ["**/*"]
        found = [path for pattern in kept for path in root.glob(pattern) if path.is_file()]
        size = sum(path.stat().st_size for path in found)
        return float(done.stdout.split()[-1]), Files(len(found) / tasks, size / tasks)
    finally:
        shutil.rmtree(root)


def amount(tasks: int, slots: int, seconds: float) -> int:
    """Return how many tasks of a length make a cell."""
    return tasks if not seconds else max(LEAST * slots, min(tasks, int(LONGEST * slots / seconds)) // slots * slots)


def compare(names: list[str], memory: Path | None, options: argparse.Namespace) -> Run:
    """Run every contender with every length of task, in turn."""
    run = Run()
    for turn in range(options.repeat):
        for seconds in options.seconds:
            tasks = amount(options.tasks, options.slots, seconds)
            for name in names:
                if name in run.failed or (seconds and name in NULL_ONLY):
                    continue
                count = min(tasks, SLOW.get(name, tasks)) if not seconds else tasks
                try:
                    took, left = measure(name, memory, tasks=count, slots=options.slots, seconds=seconds)
                except FailedError as error:
                    if name in NOT_PEERS:
                        raise
                    print(f"  left out: {error}", flush=True)
                    run.failed.add(name)
                    continue
                cell = run.cells.setdefault((name, seconds), Cell(name, seconds, count, options.slots))
                cell.took.append(took)
                run.files.setdefault(name, left)
                rate = f"{count / took:8.0f} tasks/s" if not seconds else f"overhead {cell.overhead:7.2%}"
                print(f"  turn {turn + 1} of {options.repeat}: {name:24s} {seconds:5g} s {rate}", flush=True)
    return run


def by_slots(names: list[str], memory: Path | None, options: argparse.Namespace) -> list[Cell]:
    """Run tasks that do nothing with other numbers of slots."""
    cells = []
    for slots in options.other_slots:
        for name in names:
            cell = Cell(name, 0.0, options.tasks, slots)
            cell.took.append(measure(name, memory, tasks=options.tasks, slots=slots, seconds=0.0)[0])
            cells.append(cell)
            print(f"  {slots} slots: {name:24s} {cell.rate:8.0f} tasks/s", flush=True)
    return cells


def main() -> None:
    """Run all contenders in turn; print ratios, then rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks that do nothing; longer ones run fewer times")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument(
        "--other-slots", type=int, nargs="*", default=[1, 4, 8], help="for tasks that do nothing, once each"
    )
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 0.01, 0.1, 1.0])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--write", type=Path, help="a directory for the table and the picture")
    parser.add_argument("--disk", type=Path, help="where the files go instead of memory")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        took = CONTENDERS[options.one](
            options.root, tasks=options.tasks, slots=options.slots, seconds=options.seconds[0]
        )
        print(took)
        return
    memory = options.disk or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    names = [name for name in options.only if name not in bench_peers.absent()]
    print(f"load before: {os.getloadavg()[0]:.2f}; not here: {', '.join(bench_peers.absent()) or 'nothing'}")
    begun, load = time.time(), os.getloadavg()[0]
    run = compare(names, memory, options)
    resting = rest()
    scaling = by_slots([name for name in BY_SLOTS if name in names], memory, options)
    report = bench_report.Report(
        cells=list(run.cells.values()),
        files={name: (left.count, left.size) for name, left in run.files.items()},
        resting=resting,
        scaling=scaling,
        absent=[*bench_peers.absent(), *sorted(run.failed)],
        where="a directory on disk" if options.disk else "memory" if memory else "the temporary directory",
        begun=begun,
        load=load,
    )
    print()
    bench_report.publish(bench_report.table(report), options.write, "tasks.md", told=TOLD)
    if options.write:
        (options.write / "tasks.svg").write_text(bench_report.picture(report), encoding="utf-8")


def rest() -> Resting:
    """Measure an agent that has nothing to do, and how long a single task takes on it."""
    from tools import bench_idle

    with tempfile.TemporaryDirectory() as directory:
        times, share, memory = bench_idle.measure(Path(directory))
    return Resting(statistics.median(times), max(times), share, memory)


if __name__ == "__main__":
    main()
