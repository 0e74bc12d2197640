"""Measure bash tasks a second, end to end through the broker, beside HyperQueue and ``xargs -P`` in the same run.

The task is an empty bash script. Each contender runs it as often, with as many slots, with every file on the same file
system (memory, where there is ``/dev/shm``): script, ``.out`` and ``.err`` a task, ours with directory and marker file as
well. HyperQueue and xargs get directories and scripts made before the clock starts; ours makes its own while it runs.
Repetitions are interleaved, so that a busy moment hits all alike; ratios of the medians come first.

    python tools/bench.py [--tasks 2000] [--slots 2] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SPEC = """\
description: {{name: bench, description: empty bash tasks}}
study:
- name: task
  description: does nothing
  run: {{cmd: ": $(S)"}}
merlin:
  samples:
    generate: {{cmd: "seq {tasks} > $(MERLIN_INFO)/s.csv"}}
    file: $(MERLIN_INFO)/s.csv
    column_labels: [S]
    level_max_dirs: 100
"""


def ours(root: Path, *, tasks: int, slots: int) -> float:
    """Return seconds from the first task's script to the last one's marker, in a whole ``merlin run --local``."""
    (root / "bench.yaml").write_text(SPEC.format(tasks=tasks), encoding="utf-8")
    merlin = Path(sys.executable).with_name("merlin")
    subprocess.run(
        [merlin, "run", "bench.yaml", "--local", "--slots", str(slots)], cwd=root, check=True, stdout=subprocess.DEVNULL
    )
    study = next(root.glob("bench_*"))
    first = min(path.stat().st_mtime_ns for path in study.glob("task/**/task.sh"))
    marks = [path.stat().st_mtime_ns for path in study.glob("task/**/MERLIN_FINISHED")]
    if len(marks) != tasks:
        sys.exit(f"bench: {len(marks)} of {tasks} tasks finished")
    return (max(marks) - first) / 1e9


def _scripts(root: Path, tasks: int, text: str) -> list[Path]:
    """Make a directory and a script for each task, as the other contenders need them."""
    scripts = []
    for number in range(tasks):
        directory = root / f"{number // 100:04d}" / f"{number % 100:02d}"
        directory.mkdir(parents=True)
        (directory / "task.sh").write_text(text, encoding="utf-8")
        scripts.append(directory / "task.sh")
    return scripts


def xargs(root: Path, *, tasks: int, slots: int) -> float:
    """Return seconds that ``xargs -P`` takes to run each script in a bash of its own."""
    scripts = _scripts(root, tasks, "exec > ${0%.sh}.out 2> ${0%.sh}.err\n: $S\n")
    begin = time.perf_counter()
    subprocess.run(
        ["xargs", "-P", str(slots), "-n", "1", "bash"], input="\n".join(map(str, scripts)), text=True, check=True
    )
    return time.perf_counter() - begin


def hyperqueue(root: Path, *, tasks: int, slots: int) -> float:
    """Return seconds from submission to the last task's end, with HyperQueue's server and worker up before."""
    from hyperqueue.cluster import LocalCluster, WorkerConfig
    from hyperqueue.job import Job

    scripts = _scripts(root, tasks, ": $S\n")
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=slots))
        client = cluster.client()
        job = Job()
        for script in scripts:
            job.program(
                ["bash", str(script)],
                cwd=str(script.parent),
                stdout=str(script.with_suffix(".out")),
                stderr=str(script.with_suffix(".err")),
            )
        begin = time.perf_counter()
        client.wait_for_jobs([client.submit(job)])
        return time.perf_counter() - begin


CONTENDERS: dict[str, Callable[..., float]] = {"merlin": ours, "hyperqueue": hyperqueue, "xargs": xargs}


def measure(name: str, memory: Path | None, *, tasks: int, slots: int) -> float:
    """Return a contender's tasks a second, in a process and a directory of its own."""
    root = Path(tempfile.mkdtemp(prefix=f"merlin-bench-{name}-", dir=memory))
    command = [sys.executable, __file__, "--one", name, "--in", str(root), "--tasks", str(tasks), "--slots", str(slots)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench: {name} failed:\n{done.stderr}")
        return tasks / float(done.stdout.split()[-1])
    finally:
        shutil.rmtree(root)


def main() -> None:
    """Run all contenders in turn and print ratios, then rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(CONTENDERS[arguments.one](arguments.root, tasks=arguments.tasks, slots=arguments.slots))
        return
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(arguments.repeat):
        for name in CONTENDERS:
            rate = measure(name, memory, tasks=arguments.tasks, slots=arguments.slots)
            rates[name].append(rate)
            print(f"  turn {turn + 1} of {arguments.repeat}: {name:10s} {rate:8.0f} tasks/s", flush=True)
    middle = {name: statistics.median(each) for name, each in rates.items()}
    print(
        f"\n{arguments.tasks} empty bash tasks, {arguments.slots} slots, {os.cpu_count()} cores, {platform.platform()}"
    )
    print(f"files in {'memory' if memory else 'the temporary directory'}; ratios of medians:")
    for name in ("hyperqueue", "xargs"):
        print(f"  merlin / {name:10s} {middle['merlin'] / middle[name]:6.2f}")
    for name, each in rates.items():
        print(f"  {name:10s} least {min(each):8.0f}  median {middle[name]:8.0f}  most {max(each):8.0f} tasks/s")


if __name__ == "__main__":
    main()
