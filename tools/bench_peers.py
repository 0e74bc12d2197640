"""The others in the benchmark: each runs the same scripts with the same files, and returns seconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

TEXT = "{wait} # $S\n"


PEERS: Final = Path(__file__).resolve().parents[1] / ".cache" / "peers"
"""Where ``tools/bench-peers`` puts what it fetches."""
_PROGRAMS: Final = PEERS / "usr" / "bin"
_PATIENCE: Final = 60.0
MERLIN: Final = PEERS / "merlin" / "bin" / "merlin"
if _PROGRAMS.is_dir():
    os.environ["PATH"] += f":{_PROGRAMS}"


def absent() -> list[str]:
    """Return the contenders that are not on this machine."""
    found = {
        "parallel": shutil.which("parallel"),
        "xargs -P": shutil.which("xargs"),
        "fork and wait": shutil.which("cc"),
    }
    found["merlin 1.13"] = (MERLIN.exists() and shutil.which("redis-server")) or None
    return [name for name, path in found.items() if not path]


def wait_text(root: Path, seconds: float) -> str:
    """Return a bash command that waits without starting a program."""
    if not seconds:
        return ":"
    fifo = root / "never"
    if not fifo.exists():
        os.mkfifo(fifo)
    return f"read -t {seconds} <> {fifo} || :"


def scripts(root: Path, tasks: int, seconds: float, before: str = "") -> list[Path]:
    """Make a directory and a script for each task."""
    made = []
    text = f"#!/bin/bash\n{before}\n{wait_text(root, seconds)} # $S\n"
    for number in range(tasks):
        directory = root / f"{number // 100:04d}" / f"{number % 100:02d}"
        directory.mkdir(parents=True)
        (directory / "task.sh").write_text(text, encoding="utf-8")
        made.append(directory / "task.sh")
    return made


_REDIRECT = "exec > ${0%.sh}.out 2> ${0%.sh}.err"


def xargs(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """``xargs -P``, a bash for each script."""
    return _lines(["xargs", "-P", str(slots), "-n", "1", "bash"], scripts(root, tasks, seconds, _REDIRECT))


def parallel(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """GNU parallel, a bash for each script."""
    return _lines(["parallel", "-j", str(slots), "bash"], scripts(root, tasks, seconds, _REDIRECT))


def _lines(command: list[str], made: list[Path]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, input="\n".join(map(str, made)), text=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


_FORKS = """\
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **given) {
    int tasks = atoi(given[1]), slots = atoi(given[2]);
    for (int slot = 0; slot < slots; slot++)
        if (!fork()) {
            for (int task = slot; task < tasks; task += slots) {
                if (!fork()) _exit(0);
                wait(NULL);
            }
            _exit(0);
        }
    while (wait(NULL) > 0);
    return count != 3;
}
"""


def forks(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """The kernel's limit: as many small processes as there are slots fork, and wait, and do nothing else."""
    del seconds
    (root / "forks.c").write_text(_FORKS, encoding="utf-8")
    subprocess.run(["cc", "-O2", "-o", root / "forks", root / "forks.c"], check=True)
    begin = time.perf_counter()
    subprocess.run([root / "forks", str(tasks), str(slots)], check=True)
    return time.perf_counter() - begin


def hyperqueue(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """HyperQueue with server and worker up before, from submission to the last task's end.

    Its client looks once a second whether a job is over; so the end is when the last task's output was opened, and what that waited.
    """
    from hyperqueue.cluster import LocalCluster, WorkerConfig
    from hyperqueue.job import Job

    made = scripts(root, tasks, seconds)
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=slots))
        client = cluster.client()
        job = Job()
        for script in made:
            job.program(
                ["bash", str(script)],
                cwd=str(script.parent),
                stdout=str(script.with_suffix(".out")),
                stderr=str(script.with_suffix(".err")),
            )
        begin = time.time()
        client.wait_for_jobs([client.submit(job)])
    return max(script.with_suffix(".out").stat().st_mtime for script in made) + seconds - begin


# It writes the specification anew, unquoted: a colon, `true` or a comment would not be what they were.
UPSTREAM = """\
description: {{name: bench, description: bash tasks that do nothing}}
study:
- name: task
  description: does nothing for a while
  run: {{cmd: "test $(S)"}}
merlin:
  resources:
    workers: {{w: {{args: "--concurrency {slots} --prefetch-multiplier 1 -O fair", steps: [all]}}}}
  samples:
    generate: {{cmd: "seq {tasks} > $(SPECROOT)/s.csv"}}
    file: $(SPECROOT)/s.csv
    column_labels: [S]
    level_max_dirs: 100
"""
_APP = """\
celery: {{}}
broker: {{name: redis, server: 127.0.0.1, port: {port}, db_num: 0}}
results_backend: {{name: redis, server: 127.0.0.1, port: {port}, db_num: 0, encryption_key: {root}/key}}
"""


def upstream(root: Path, *, tasks: int, slots: int, seconds: float) -> float:
    """Merlin 1.13 with Redis, tasks that do nothing, from the first task's script to the last one's marker."""
    del seconds
    port = 16379
    merlin = MERLIN
    (root / "app.yaml").write_text(_APP.format(port=port, root=root), encoding="utf-8")
    text = UPSTREAM.format(slots=slots, tasks=tasks)
    (root / "bench.yaml").write_text(text, encoding="utf-8")
    environ = os.environ | {"C_FORCE_ROOT": "1", "HOME": str(root), "PATH": f"{merlin.parent}:{os.environ['PATH']}"}
    quiet = subprocess.DEVNULL
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=root,
        env=environ | {"LD_LIBRARY_PATH": ":".join(map(str, (PEERS / "usr" / "lib").glob("*-linux-gnu")))},
        stdout=quiet,
    )
    workers = None
    try:
        time.sleep(1)
        workers = subprocess.Popen(
            [merlin, "run-workers", "bench.yaml"],
            cwd=root,
            env=environ,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
        time.sleep(10)
        subprocess.run([merlin, "run", "bench.yaml"], cwd=root, env=environ, check=True, stdout=quiet, stderr=quiet)
        give_up = time.monotonic() + _PATIENCE
        while len(marks := list(root.glob("bench_*/task/**/MERLIN_FINISHED"))) < tasks:
            if time.monotonic() > give_up:
                raise TimeoutError(f"merlin 1.13: {len(marks)} of {tasks} tasks after {_PATIENCE:g} s")
            time.sleep(0.5)
        first = min(path.stat().st_mtime_ns for path in root.glob("bench_*/task/**/task.sh"))
        return (max(path.stat().st_mtime_ns for path in marks) - first) / 1e9
    finally:
        if workers is not None:
            subprocess.run([merlin, "stop-workers"], cwd=root, env=environ, check=False, stdout=quiet, stderr=quiet)
            os.killpg(workers.pid, signal.SIGKILL)
        redis.terminate()
        redis.wait()
        sys.stdout.flush()
