"""Measure how well a mixed study fills an allocation of two hosts on a real Slurm: serial tasks beside steps that run over both hosts.

The whole loop runs on this machine: API server, broker, operator, and one `merlin-agent` that starts the other. What is measured is
sampled from the kernel ten times a second (`tests.cluster.mixed`): which cores of the virtual nodes have a process of a task, from the first
task to the last. Launchers that start, shells and files count as idle.

    python tools/bench_slurm.py [--serial 10000] [--nap 0.4] [--wide 8] [--wide-seconds 5] [--write docs/benchmarks]

Needs root, for a network namespace and Slurm's daemons.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cluster.funnel import condition, workspace_of
from tests.cluster.mixed import CORES, NODES, Occupancy, manifest, spans
from tests.cluster.site import running_site
from tests.ground import NetworkNamespace, Slurm
from tools.bench_report import machine, publish

PAGE = """\
# How full an allocation is

`make bench-slurm` writes this page. {serial:,} serial tasks of {least:g} to {most:g} s beside {wide} steps of {wide_seconds:g} s that run a
process on each core of both hosts, in one allocation of {nodes} virtual nodes with {cores} cores each on a real Slurm; sampled from `/proc` ten
times a second, {samples:,} samples. A launcher that starts, a task's shell and its files count as idle there. Tasks also note when they began and
ended themselves; that counts the time of their own shells, too.

{machine}. Load of the machine (`uptime`, 1 and 15 minutes): {before} before, {after} at the end; niceness {nice}.

| | found | goal |
|---|---|---|
| busy share of all cores while there was work for all (until the last task began) | {steady:.1%} | > 95 % |
| the same, from the first task to the end of the last one | {mean:.1%} | |
| the same, as the tasks noted it | {noted:.1%} | |
| the same, of the allocation's whole time | {whole:.1%} | |
| most tasks on a core in any sample | {peak} | 1 |
| from the first task to the last | {seconds:.0f} s | |
| the least that it could take | {ideal:.0f} s | |
| calls of `srun` | {calls} | 1 for the agents, 1 for each wide step |

## Where the rest goes

- **In a task's own shell**: what the sampled share lacks of the noted one, about {own:.0f} ms a task. A task counts as busy while its `sleep` is there;
  its shell looks up first which processor it may use, forks, starts `sleep`, and writes down when it ended. A warm interpreter has to do that, too: with
  scripts that [can be kept warm](../agent.md#warm-interpreters) a study of 1,000 such tasks took as long.
- **Between two tasks of a slot, and around a step over several hosts**: what the noted share lacks of the whole, about {between:.0f} ms a serial task. Directory, script, the start of
  the shell, the mark; and where a step over several hosts waits for the last of its cores, since tasks that all take about as long leave no hole that
  another one fits into, and until `srun` has started. The broker, the operator and the API server run on the same two processors.
- **At the end**: fewer tasks than cores. It belongs to the study, not to the packing, and is left out of the first line.
"""
COUNTED = '#!/bin/bash\necho "$*" >> {log}\nexec {srun} "$@"\n'


def measure(given: argparse.Namespace) -> str:
    """Run the study; return the page."""
    NetworkNamespace.require()
    Slurm.require()
    with (
        tempfile.TemporaryDirectory(prefix="merlin-bench-slurm-") as made,
        NetworkNamespace() as network,
        Slurm(network) as slurm,
        running_site(slurm) as site,
    ):
        folder, before = Path(made), os.getloadavg()
        srun, calls = folder / "srun", folder / "calls"
        srun.write_text(COUNTED.format(log=calls, srun=shutil.which("srun")))
        srun.chmod(0o755)
        environ = {"PATH": f"{folder}:{os.environ['PATH']}"}
        with Occupancy(str(site.root)) as seen:
            job = site.allocate(
                "--idle-exit", "4", slots=None, nodes=NODES, exclusive=True, time="2:00:00", env=environ
            )
            site.apply(
                manifest(
                    "bench", serial=given.serial, nap=given.nap, wide=given.wide,
                    wide_seconds=given.wide_seconds, note=site.root / "note",
                )
            )  # fmt: skip
            site.wait_finished("bench", seconds=7000)
            slurm.wait(job, timeout=120)
        study = site.study("bench")
        assert condition(study, "Succeeded")["status"] == "True", study["status"]
        busy = sum(count for _, count in seen.samples)
        found = [span for path in workspace_of(study, site.root / "work").glob("spans-*") for span in spans(path)]
        noted = sum(span.ended - span.began for span in found)
        lasted = max(span.ended for span in found) - min(span.began for span in found)
        work = given.serial * given.nap + given.wide * given.wide_seconds * NODES * CORES
        steady, cores = seen.mean_until(max(span.began for span in found)), NODES * CORES
        shared = noted / lasted / cores
        return PAGE.format(
            serial=given.serial, least=given.nap / 2, most=given.nap * 1.5, wide=given.wide,
            wide_seconds=given.wide_seconds, nodes=NODES, cores=CORES, samples=len(seen.samples), machine=machine(),
            mean=seen.mean, whole=busy / len(seen.samples) / (NODES * CORES), peak=seen.peak, seconds=seen.seconds,
            steady=steady, noted=shared, own=1000 * (shared - seen.mean) * lasted * cores / given.serial,
            between=1000 * (1 - shared) * lasted * cores / given.serial,
            before=_load(before), after=_load(os.getloadavg()), nice=os.nice(0),
            ideal=work / (NODES * CORES), calls=len(calls.read_text().splitlines()),
        )  # fmt: skip


def _load(averages: tuple[float, float, float]) -> str:
    return f"{averages[0]:.1f} and {averages[2]:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write where asked to."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("--serial", type=int, default=10_000, help="serial tasks (10000)")
    made.add_argument("--nap", type=float, default=0.4, help="seconds that they take in the mean (0.4)")
    made.add_argument("--wide", type=int, default=8, help="steps over both hosts (8)")
    made.add_argument("--wide-seconds", type=float, default=5.0, help="seconds that each of them takes (5)")
    made.add_argument("--write", type=Path, help="a directory for slurm.md")
    given = made.parse_args(arguments)
    publish(measure(given), given.write, "slurm.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
