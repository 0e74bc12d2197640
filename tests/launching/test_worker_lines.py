"""Golden tables: what a worker block says, the machine, and the line that starts its agents; and that the lines are taken.

Rows without a mark are Merlin 1.13's own lines, with the agent's command (``C``) in the place of Celery's. ``MENDED`` marks rows where
upstream refuses, or where its agents would keep their tasks from the allocation.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merlin_study import workerlines
from merlin_study.launchers import Kind
from merlin_study.spec import Batch
from merlin_study.workerlines import Machine
from merlin_study.workers import Worker
from tests.ground import eventually
from tests.ground.keys import a_site_file
from tests.launching.fakes import Fakes

MENDED = "mended"
OVER = "--overlap --cpu-bind=none"
SLURM5, FLUX4, LSF, PBS3 = Machine("slurm", 5), Machine("flux", 4), Machine("lsf", 1), Machine("pbs", 3)
ASKED = {"bank": "baasic", "queue": "pbatch", "walltime": "10:00:00"}
FLUXED = {"bank": "testbank", "queue": "pdebug", "walltime": 36000, "nodes": 2}

ROWS = [
    *[({"type": "local"}, None, machine, "C --this-node", MENDED) for machine in (SLURM5, FLUX4, LSF, PBS3)],
    *[
        ({"type": kind}, None, machine, "C", "")
        for kind in ("lsf", "lsf-srun")
        for machine in (SLURM5, FLUX4, LSF, PBS3)
    ],
    ({"type": "slurm"}, None, SLURM5, f"srun -N 5 -n 5 {OVER} C --this-node", MENDED),
    (
        {"type": "slurm"},
        None,
        dataclasses.replace(SLURM5, allocated=False, nodes=1),
        "srun -N 1 -n 1 C --this-node",
        "",
    ),
    (
        {"type": "slurm", **ASKED, "nodes": 3},
        None,
        SLURM5,
        f"srun -N 3 -n 3 -A baasic -p pbatch -t 10:00:00 {OVER} C --this-node",
        MENDED,
    ),
    ({"type": "slurm", "nodes": 3}, 2, SLURM5, f"srun -N 2 -n 2 {OVER} C --this-node", MENDED),
    ({"type": "slurm", "nodes": "all"}, None, SLURM5, f"srun -N 5 -n 5 {OVER} C --this-node", MENDED),
    ({"type": "slurm"}, "all", SLURM5, f"srun -N 5 -n 5 {OVER} C --this-node", MENDED),
    ({"type": "slurm"}, None, FLUX4, "flux alloc -o pty -N 4 --exclusive --job-name=merlin C", ""),
    (
        {"type": "slurm"},
        None,
        dataclasses.replace(FLUX4, flux=Kind.FLUX_MINI),
        "flux mini alloc -o pty -N 4 --exclusive --job-name=merlin C",
        "",
    ),
    (
        {
            "type": "flux",
            **FLUXED,
            "launch_pre": "export A=1;",
            "launch_args": "--mpibind=off",
            "flux_exec": 'flux exec -r "0-1"',
        },
        None,
        FLUX4,
        (
            "export A=1; flux alloc -o pty -N 2 --exclusive --job-name=merlin --setattr=system.bank=testbank "
            '--setattr=system.queue=pdebug -t 36000.0s --mpibind=off flux exec -r "0-1" `which bash` -c '
            "'C --this-node'"
        ),
        "",
    ),
    (
        {"type": "flux"},
        None,
        LSF,
        "jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n 1 flux start flux exec `which bash` -c 'C --this-node'",
        "",
    ),
    (
        {"type": "flux", "flux_start_opts": "-o -S=1", "flux_exec_workers": False},
        None,
        LSF,
        "jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n 1 flux start -o -S=1 C",
        "",
    ),
    (
        {"type": "flux", "bank": "b", "queue": "q", "walltime": "10:00:00"},
        None,
        PBS3,
        "qsub -l nodes=3 -A b -q q -l walltime=10:00:00 -- flux start flux exec `which bash` -c 'C --this-node'",
        "",
    ),
    (
        {"type": "flux", "flux_path": "/opt/flux/bin/", "shell": "/usr/bin/env bash -l"},
        None,
        Machine("slurm", 2),
        f"srun -N 2 -n 2 {OVER} /opt/flux/bin/flux start flux exec `which env` -c 'C --this-node'",
        MENDED,
    ),
    ({"type": "pbs"}, None, PBS3, "mpiexec -n 3 -ppn 1 C --this-node", MENDED),
    (
        {
            "type": "slurm",
            "launch_pre": "module load x;",
            "launch_args": "--mpibind=off",
            "worker_launch": "srun -N2 --foo",
        },
        None,
        SLURM5,
        "module load x; srun -N2 --foo --mpibind=off C",
        "",
    ),
    ({"type": "slurm"}, None, Machine(), "C", MENDED),
]


def worker(batch: dict[str, Any], nodes: int | str | None = None, **changes: Any) -> Worker:
    fields: dict[str, Any] = {
        "name": "w",
        "steps": ("a",),
        "queues": ("q1", "q2"),
        "slots": None,
        "nodes": nodes,
        "machines": (),
        "batch": Batch(**batch),
        "overlap": False,
        **changes,
    }
    return Worker(**fields)


@pytest.mark.parametrize(("batch", "nodes", "machine", "expected", "mark"), ROWS)
def test_the_line_of_a_worker_block(
    batch: dict[str, Any], nodes: int | str | None, machine: Machine, expected: str, mark: str
) -> None:
    assert mark in ("", MENDED)
    assert workerlines.launch_line(worker(batch, nodes), "C", machine) == expected


def test_an_agent_serves_its_block_s_queues_with_its_slots_and_leaves_with_its_study() -> None:
    command = workerlines.agent_command(worker({}, slots=3), study="my study", more=("--idle-exit", "9"))
    assert command == "merlin-agent --idle-exit 9 --name w --queues q1,q2 --study-name 'my study' --slots 3"
    assert "--slots" not in workerlines.agent_command(worker({}), study="s")


@pytest.mark.parametrize("machine", [SLURM5, FLUX4, LSF, PBS3])
@pytest.mark.parametrize("kind", ["local", "slurm", "flux", "pbs"])
def test_no_agent_that_a_launcher_starts_on_each_host_starts_others(kind: str, machine: Machine) -> None:
    """Nor one that is meant for this host alone; one that is given a whole Flux instance does."""
    line = workerlines.launch_line(worker({"type": kind}, 1), "C", machine)
    is_alone = machine.scheduler == "flux" and kind in ("slurm", "pbs")
    assert ("C --this-node" in line) is not is_alone


def test_what_flux_s_shell_runs_is_quoted_once_more() -> None:
    command = workerlines.agent_command(worker({}), study="my study")
    line = workerlines.launch_line(worker({"type": "flux"}), command, FLUX4)
    assert line.endswith("""-c 'merlin-agent --name w --queues q1,q2 --study-name '"'"'my study'"'"' --this-node'""")


def test_a_walltime_and_a_number_of_nodes_that_are_none_are_told_with_their_keys() -> None:
    with pytest.raises(ValueError, match=r"batch\.walltime: expected seconds"):
        workerlines.launch_line(worker({"type": "slurm", "walltime": "soon"}), "C", SLURM5)
    with pytest.raises(ValueError, match=r"batch\.nodes: expected a whole number or 'all', found '\$\(N\)'"):
        workerlines.launch_line(worker({"type": "slurm", "nodes": "$(N)"}), "C", SLURM5)


SPEC = """\
description: {{name: tiny, description: d}}
batch: {batch}
env: {{variables: {{SIZE: 2}}}}
study:
- {{name: a, description: d, run: {{cmd: x, task_queue: qa}}}}
- {{name: b, description: d, run: {{cmd: x, task_queue: qb}}}}
merlin:
  resources:
    workers:
      first: {{args: -c $(SIZE), steps: [a]}}
      second: {{steps: [b]}}
      other: {{steps: [all], machines: [no-such-host]}}
"""
ALLOCATIONS = {
    "flux": ({"FLUX_URI": "local:///x"}, ("flux",), "{type: flux, bank: b, queue: q, walltime: 600}", 2),
    "flux, exec of two": ({"FLUX_URI": "local:///x"}, ("flux",), "{type: flux, nodes: 2, flux_exec: 'flux exec -r 0-1'}", 2),
    "slurm's type in flux": ({"FLUX_URI": "local:///x"}, ("flux",), "{type: slurm}", 1),
    "lsf": ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "n1 2 n2 2"}, ("jsrun", "bjobs", "flux"), "{type: flux, nodes: 1}", 2),
    "lsf, plain": ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "n1 2 n2 2"}, ("jsrun", "bjobs"), "{type: lsf}", 1),
    "pbs with flux": ({"PBS_JOBID": "1"}, ("qsub", "qstat", "mpiexec", "flux"), "{type: flux, bank: b, queue: q, walltime: 1h}", 2),
    "pbs": ({"PBS_JOBID": "1"}, ("qsub", "qstat", "mpiexec"), "{type: pbs, nodes: 2}", 2),
}  # fmt: skip


def merlin(*arguments: str, environ: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("merlin")), *arguments]
    return subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False, timeout=180)


@pytest.mark.parametrize("machine", ALLOCATIONS)
def test_the_scheduler_takes_the_lines_and_as_many_agents_start_as_it_has_places(machine: str, tmp_path: Path) -> None:
    """Real agents; nobody is at the broker's address, so they leave because nothing came."""
    variables, commands, batch, places = ALLOCATIONS[machine]
    fakes = Fakes(tmp_path / "bin", *commands)
    (tmp_path / "spec.yaml").write_text(SPEC.format(batch=batch))
    site = a_site_file(tmp_path / "site.yaml")
    environ = {**fakes.environment, **variables, "MERLIN_AGENT_CREDENTIALS": str(site)}
    done = merlin(
        *("run-workers", "spec.yaml", "--steps", "a", "--wait", "--agent-args=--idle-exit 0.1"),
        environ=environ,
        directory=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("serves site testsite with 2 slots") == places


def test_what_runs_is_what_echo_prints_and_a_scheduler_that_refuses_it_is_told(tmp_path: Path) -> None:
    fakes = Fakes(tmp_path / "bin", "flux")
    (tmp_path / "spec.yaml").write_text(SPEC.format(batch="{type: flux, launch_args: --mpibind=off}"))
    environ = {**fakes.environment, "FLUX_URI": "local:///x"}
    echoed = merlin("run-workers", "spec.yaml", "--echo", "--vars", "SIZE=7", environ=environ, directory=tmp_path)
    assert (echoed.returncode, echoed.stdout.count("\n")) == (0, 2)
    first = echoed.stdout.splitlines()[0]
    assert "--queues qa --study-name tiny --slots 7" in first
    assert not fakes.calls("flux exec")
    refused = merlin("run-workers", "spec.yaml", "--wait", "--vars", "SIZE=7", environ=environ, directory=tmp_path)
    assert refused.returncode == 4
    assert "unknown option --mpibind=off" in refused.stderr
    assert f"ended with 64: {first}" in refused.stderr


@pytest.mark.parametrize(("flags", "warned"), [((), True), (("--worker-args=-c 1",), False), (("--steps", "b"), False)])
def test_blocks_that_may_take_all_cores_of_one_host_each_are_told(
    tmp_path: Path, flags: tuple[str, ...], *, warned: bool
) -> None:
    fakes = Fakes(tmp_path / "bin", "jsrun", "bjobs")
    (tmp_path / "spec.yaml").write_text(SPEC.format(batch="{type: lsf}"))
    environ = {**fakes.environment, "LSB_JOBID": "1", "LSB_MCPU_HOSTS": "n1 2 n2 2"}
    told = merlin("run-workers", "spec.yaml", "--echo", *flags, environ=environ, directory=tmp_path)
    assert told.returncode == 0, told.stderr
    assert ("merlin.resources.workers: second: no number of slots" in told.stderr) is warned


def test_without_wait_the_agents_stay_behind_the_command(tmp_path: Path) -> None:
    """As upstream: the batch script goes on, and its end is theirs."""
    (tmp_path / "spec.yaml").write_text(SPEC.format(batch="{type: slurm, worker_launch: 'echo $$ > pid; exec'}"))
    environ = {**Fakes(tmp_path / "bin").environment, "MERLIN_AGENT_CREDENTIALS": str(a_site_file(tmp_path / "s.yaml"))}
    with (tmp_path / "said").open("w") as said:
        command = [str(Path(sys.executable).with_name("merlin")), "run-workers", "spec.yaml", "--steps", "b"]
        subprocess.run(command, env=environ, cwd=tmp_path, stdout=said, stderr=said, check=True, timeout=180)
    eventually(lambda: "serves site testsite" in (tmp_path / "said").read_text(), message="the agent works")
    os.kill(int((tmp_path / "pid").read_text()), 15)
    eventually(lambda: "draining" in (tmp_path / "said").read_text(), message="the agent leaves")


def test_a_host_that_no_block_is_meant_for_and_a_misspelt_step_are_told(tmp_path: Path) -> None:
    text = SPEC.format(batch="{type: local}").replace("no-such-host", "x")
    (tmp_path / "spec.yaml").write_text(
        text.replace("steps: [a]", "steps: [a], machines: [x9]").replace("[b]}", "[b], machines: [x9]}")
    )
    environ = Fakes(tmp_path / "bin").environment
    nowhere = merlin("run-workers", "spec.yaml", "--echo", environ=environ, directory=tmp_path)
    assert nowhere.returncode == 4
    assert "no worker block is meant for host" in nowhere.stderr
    misspelt = merlin("run-workers", "spec.yaml", "--steps", "aa", environ=environ, directory=tmp_path)
    assert (misspelt.returncode, "--steps aa: no step is called so" in misspelt.stderr) == (2, True)
