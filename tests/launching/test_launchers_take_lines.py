"""Each golden line is run by a launcher that knows its own options and no others; and what the doctor says on such machines."""

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from merlin_agent import doctor, schedulers, spreading
from merlin_agent.doctor import State
from merlin_study import launchers
from merlin_study.launchers import Kind, Launch
from tests.launching.fakes import Fakes
from tests.launching.test_launch_lines import FLUX, HOSTS, LSF, PBS, SLURM, step

MPI = {Kind.PALS: "PALS", Kind.OPENMPI: "Open MPI"}


def rows() -> Iterator[tuple[Kind, Launch, int | None]]:
    """Each row of the golden tables with its launcher."""
    for keys, walltime, *_ in SLURM:
        yield Kind.SRUN, step("slurm", **keys), walltime
    yield Kind.SRUN, step("lsf-srun", nodes=2, procs=4), 1800
    for kind in (Kind.FLUX_RUN, Kind.FLUX_MINI, Kind.FLUX_WRECK):
        for keys, walltime, *_ in FLUX:
            yield kind, step("flux", **keys), walltime
    for keys, walltime, *_ in LSF:
        yield Kind.JSRUN, step("lsf", **keys), walltime
    for keys, kind, _ in PBS:
        yield kind, step("pbs", **keys), None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Fakes:
    return Fakes(
        tmp_path_factory.mktemp("machine") / "bin",
        "srun",
        "flux",
        "jsrun",
        "blaunch",
        "mpiexec",
        "aprun",
        "bjobs",
        "qstat",
    )


def run(machine: Fakes, kind: Kind, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**machine.environment, "FAKE_MPI": MPI.get(kind, "")}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", Kind)
def test_a_launcher_takes_every_line_that_is_written_for_it_and_starts_as_many_processes(
    machine: Fakes, kind: Kind
) -> None:
    tried = 0
    for each, launch, walltime in rows():
        if each is not kind:
            continue
        for hosts in ((), HOSTS[: launch.nodes or 1]):
            line = launchers.expand("$(LAUNCHER) echo ran", launch, kind, walltime=walltime, hosts=hosts)
            done = run(machine, kind, line)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            procs = launch.procs or launch.nodes if kind is not Kind.SRUN else launch.procs or 1
            assert done.stdout.split() == ["ran"] * (procs or 1), line
            tried += 1
    assert tried >= 4
    bad = launchers.expand("$(LAUNCHER) --no-such-option echo ran", step("slurm", nodes=2, procs=4), kind)
    assert run(machine, kind, bad).returncode == 64, "a launcher that takes anything would show nothing"


@pytest.mark.parametrize(
    "kind", [Kind.SRUN, Kind.FLUX_RUN, Kind.JSRUN, Kind.PALS, Kind.HYDRA, Kind.OPENMPI, Kind.APRUN]
)
def test_a_launcher_takes_the_line_that_spreads_the_agents_over_a_job_s_other_hosts(machine: Fakes, kind: Kind) -> None:
    line = spreading.command(kind, ("n2", "n3"), ("echo", "ran"))
    assert line is not None
    done = run(machine, kind, shlex.join(line))
    assert (done.stdout.split(), done.stderr) == (["ran"] * 2, "")
    assert run(machine, kind, shlex.join([line[0], *line[1:-2], "--no-such-option", "echo"])).returncode == 64


@pytest.mark.parametrize(
    ("environ", "tools", "allocation", "launcher", "version"),
    [
        (
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_END_TIME": "1600"},
            {}, "slurm 7, 2 hosts, 10 min left", "srun at", "22.05.8",
        ),
        ({"FLUX_URI": "local:///x", "FLUX_JOB_ID": "f1"}, {}, "flux f1, 2 hosts, 10 min left", "flux run at", "0.60.0"),
        (
            {"FLUX_URI": "local:///x", "FLUX_JOB_ID": "f1"},
            {"FAKE_FLUX": "0.47.0"}, "flux f1, 2 hosts, 10 min left", "flux mini run at", "0.47.0",
        ),
        (
            {"FLUX_URI": "local:///x", "FLUX_JOB_ID": "f1"},
            {"FAKE_FLUX": "0.12.0"}, "flux f1, 2 hosts, 10 min left", "flux wreckrun at", "0.12.0",
        ),
        ({"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "n1 4 n2 4"}, {}, "lsf 9, 2 hosts, 10 min left", "jsrun at", "10.03.0.1"),
        ({"PBS_JOBID": "3.s"}, {}, "pbs 3.s, 2 hosts, ", "mpiexec (hydra) at", "4.0.2"),
        ({"PBS_JOBID": "3.s"}, {"FAKE_MPI": "PALS"}, "pbs 3.s, 2 hosts, ", "mpiexec (PALS) at", "1.2.12"),
        ({"PBS_JOBID": "3.s"}, {"FAKE_MPI": "Open MPI"}, "pbs 3.s, 2 hosts, ", "mpiexec (Open MPI) at", "4.1.5"),
    ],
    ids=["slurm", "flux", "flux 0.47", "flux 0.12", "lsf", "pbs", "pbs, PALS", "pbs, Open MPI"],
)  # fmt: skip
def test_the_doctor_names_the_job_and_the_launcher_s_own_spelling(
    machine: Fakes,
    tmp_path: Path,
    environ: dict[str, str],
    tools: dict[str, str],
    allocation: str,
    launcher: str,
    version: str,
) -> None:
    if "PBS_JOBID" in environ:
        (tmp_path / "nodes").write_text("n1\nn2\n")
        environ = {**environ, "PBS_NODEFILE": str(tmp_path / "nodes"), "NCPUS": "4"}
    environment = {**machine.environment, **environ, **tools}

    def ask(command: Sequence[str]) -> str | None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    found = schedulers.found(environment, ask, host="n1", now=1000.0)
    told = {each.name: each for each in doctor.allocation_findings(found, usable=4, environ=environment, ask=ask)}
    assert told["allocation"].found.startswith(allocation)
    assert told["launcher"].found.startswith(launcher)
    assert told["launcher"].found.endswith(f", version {version}")
    assert told["launcher"].state is State.GOOD
