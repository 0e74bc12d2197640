"""Batch scripts that the agent prints are taken by their schedulers, and an agent works on each node."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from merlin_agent import batchscript
from merlin_agent.batchscript import Wish
from tests.ground import Slurm, eventually
from tests.ground.keys import a_site_file
from tests.launching.fakes import Fakes

AGENT = str(Path(sys.executable).with_name("merlin-agent"))
WISH = Wish(nodes=2, walltime=5400, agent=("merlin-agent", "--idle-exit", "60"), bank="b", queue="q", cores=4)


def printed(*arguments: str, agent: tuple[str, ...] = ()) -> str:
    command = [AGENT, "script", *arguments, "--", *agent]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


GOLDEN = {
    "slurm": """\
#!/bin/bash
#SBATCH --job-name=merlin
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --time=01:30:00
#SBATCH --account=b
#SBATCH --partition=q
#SBATCH --signal=B:USR1@90
#SBATCH --output=merlin-%j.out

# The agents are the first step, 0. They drain; steps of running tasks are left alone.
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
srun --overlap --cpu-bind=none -N 2 -n 2 merlin-agent --idle-exit 60 &
while kill -0 $! 2>/dev/null; do wait $!; done  # a wait ends when the signal comes, and the agents do not
""",
    "flux": """\
#!/bin/bash
#flux: --job-name=merlin
#flux: -N 2
#flux: --exclusive
#flux: -t 5400s
#flux: -B b
#flux: -q q
#flux: --output=merlin-{{id}}.out

exec flux exec merlin-agent --idle-exit 60 --this-node
""",
    "lsf": """\
#!/bin/bash
#BSUB -J merlin
#BSUB -nnodes 2
#BSUB -W 1:30
#BSUB -G b
#BSUB -q q
#BSUB -o merlin-%J.out

exec jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n 2 merlin-agent --idle-exit 60
""",
    "pbs": """\
#!/bin/bash
#PBS -N merlin
#PBS -l select=2:ncpus=4
#PBS -l place=scatter:excl
#PBS -l walltime=01:30:00
#PBS -A b
#PBS -q q
#PBS -j oe

cd "$PBS_O_WORKDIR"
exec mpiexec -n 2 -ppn 1 merlin-agent --idle-exit 60
""",
}


@pytest.mark.parametrize("scheduler", GOLDEN)
def test_the_script_of_a_scheduler(scheduler: str) -> None:
    assert batchscript.SCHEDULERS[scheduler](WISH) == GOLDEN[scheduler]


@pytest.mark.parametrize(
    ("scheduler", "directive", "without"),
    [
        ("slurm", "#SBATCH --gpus-per-node=4\n", ""),
        ("flux", "#flux: -n 2 -g 4\n", ""),
        ("lsf", "", ""),
        ("pbs", ":ngpus=4\n", "\n"),
    ],
)
def test_gpus_are_asked_for_on_each_host(scheduler: str, directive: str, without: str) -> None:
    """Not of LSF, which gives whole hosts."""
    text = batchscript.SCHEDULERS[scheduler](dataclasses.replace(WISH, gpus=4))
    assert directive in text
    assert text.replace(directive, without, 1) == GOLDEN[scheduler]


@pytest.mark.parametrize(
    ("scheduler", "commands", "submit"),
    [
        ("flux", ("flux",), ["flux", "batch", "script.sh"]),
        ("lsf", ("bsub", "jsrun", "bjobs"), ["bsub"]),
        ("pbs", ("qsub", "qstat", "mpiexec"), ["qsub"]),
    ],
)
def test_the_scheduler_takes_the_script_and_an_agent_starts_on_each_node(
    scheduler: str, commands: tuple[str, ...], submit: list[str], tmp_path: Path
) -> None:
    fakes = Fakes(tmp_path / "bin", *commands)
    site = a_site_file(tmp_path / "site.yaml")
    text = printed(
        *(
            "--scheduler",
            scheduler,
            "--nodes",
            "2",
            "--walltime",
            "90",
            "--bank",
            "b",
            "--queue",
            "q",
            "--cores",
            "4",
            "--gpus",
            "1",
        ),
        agent=("--credentials", str(site), "--idle-exit", "0.1"),
    )
    (tmp_path / "script.sh").write_text(text)
    environ = {**fakes.environment, "PBS_O_WORKDIR": str(tmp_path)}
    with (tmp_path / "script.sh").open() as script:
        done = subprocess.run(
            submit, stdin=script, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("serves site testsite") == 2


def test_a_scheduler_that_does_not_know_a_directive_would_refuse_the_script(tmp_path: Path) -> None:
    """What the test above is worth."""
    fakes = Fakes(tmp_path / "bin", "qsub", "mpiexec")
    text = batchscript.pbs(WISH).replace("-j oe", "-nodes 2")
    done = subprocess.run(
        ["qsub"], input=text, env=fakes.environment, capture_output=True, text=True, check=False, timeout=180
    )
    assert (done.returncode, done.stderr) == (64, "qsub: unknown option -nodes\n")


@pytest.mark.slurm
def test_sbatch_takes_the_script_and_its_early_signal_drains_the_agents(slurm: Slurm, tmp_path: Path) -> None:
    site = a_site_file(tmp_path / "site.yaml")
    output = tmp_path / "said"
    text = printed(
        *("--scheduler", "slurm", "--nodes", "2", "--walltime", "10", "--name", "mine", "--queue", "batch"),
        agent=("--credentials", str(site)),
    )
    job = slurm.sbatch(text, nodes=2, output=str(output))
    eventually(lambda: output.exists() and output.read_text().count("serves site testsite") == 2)
    assert "JobName=mine" in slurm.show(job)
    slurm.signal_batch(job, "USR1")
    assert slurm.wait(job) == "COMPLETED", output.read_text()
    # One that was warned takes its ally along, which need not have heard the signal by then.
    assert output.read_text().count("draining") >= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scheduler", "pbs"), "--cores: expected the cores of a host"),
        (("--scheduler", "slurm", "--bank", "a b"), "expected one word, found 'a b'"),
        (("--scheduler", "slurm", "--walltime", "soon"), "expected seconds, [d:]h:m:s"),
        (("--scheduler", "slurm", "--", "--sloths=2"), "unrecognized arguments: --sloths=2"),
    ],
)
def test_what_would_make_no_script_is_told(
    arguments: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run([AGENT, "script", *arguments], check=False, timeout=180)
    assert done.returncode == 2
    assert said in capfd.readouterr().err


def test_modules_are_loaded_by_a_login_shell_and_a_short_job_gets_no_early_signal() -> None:
    text = batchscript.slurm(Wish(nodes=1, walltime=60, agent=("merlin-agent",), modules=("gcc/13", "python")))
    assert text.startswith("#!/bin/bash -l\n")
    assert "\nmodule load gcc/13 python\nexec srun " in text
    assert "signal" not in text
