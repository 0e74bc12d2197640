"""What a scheduler's variables and commands say, as tables; the commands' answers are those of their manuals."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from merlin_agent import hostlist, schedulers
from merlin_agent.schedulers import Found
from merlin_study.launchers import Kind

NOW = 1_000_000.0


def asking(answers: Mapping[str, str]) -> schedulers.Ask:
    """Answer commands by their first words; an unknown one is not there."""

    def ask(command: Sequence[str]) -> str | None:
        line = " ".join(command)
        return next((answer for words, answer in answers.items() if line.startswith(words)), None)

    return ask


def found(environ: Mapping[str, str], answers: Mapping[str, str] | None = None) -> Found:
    return replace(schedulers.found(environ, asking(answers or {}), host="n1", now=NOW), host="")


def test_outside_of_any_job_nothing_is_found_and_nothing_is_wrong() -> None:
    assert found({"PATH": "/bin"}) == Found()


SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-3],m07", "SLURM_CPUS_ON_NODE": "4"}


@pytest.mark.parametrize(
    ("more", "answer", "seconds"),
    [
        ({"SLURM_JOB_END_TIME": "1000600"}, None, 600),
        ({"SLURM_JOB_END_TIME": "999999"}, None, 0),
        ({}, "1-02:03:04\n", 93784),
        ({}, "59:30\n", 3570),
        ({}, "UNLIMITED\n", None),
    ],
)
def test_a_slurm_job(more: dict[str, str], answer: str | None, seconds: float | None) -> None:
    answers = {} if answer is None else {"squeue -h -j 17 -o %L": answer}
    expected = Found("slurm", "17", ("n1", "n2", "n3", "m07"), 4, 0, (), seconds)
    assert found({**SLURM, **more}, answers) == expected


def test_slurm_s_memory_is_per_node_or_per_core() -> None:
    end = {"SLURM_JOB_END_TIME": "1000600"}
    assert found({**SLURM, **end, "SLURM_MEM_PER_NODE": "2048"}).memory == 2 << 30
    assert found({**SLURM, **end, "SLURM_MEM_PER_CPU": "1024"}).memory == 4 << 30


def test_a_slurm_job_that_does_not_say_when_it_ends_is_a_problem_that_is_told() -> None:
    (problem,) = found(SLURM).problems
    assert "expected the time left, found ''" in problem


FLUX = {"FLUX_URI": "local:///run/flux/local", "FLUX_JOB_ID": "ƒ3Hu8"}
RESOURCES = {"flux resource list": "4|64|8|n[1-4]\n"}


def test_a_flux_instance() -> None:
    answers = {**RESOURCES, "flux job timeleft": "1799\n"}
    assert found(FLUX, answers) == Found("flux", "ƒ3Hu8", ("n1", "n2", "n3", "n4"), 16, 0, ("0", "1"), 1799.0)


def test_a_flux_instance_inside_of_a_slurm_job_ends_with_the_job() -> None:
    environ = {**SLURM, "SLURM_JOB_END_TIME": "1000600", "FLUX_URI": "local:///x"}
    inner = found(environ, {**RESOURCES, "flux job timeleft": "86400\n"})
    assert (inner.scheduler, inner.job_id, inner.seconds_left, inner.cores) == ("flux", "17", 600.0, 16)


def test_a_flux_that_does_not_answer_is_a_problem_that_is_told() -> None:
    assert "is FLUX_URI right?" in found(FLUX).problems[0]


def test_an_lsf_job_without_its_launch_host() -> None:
    environ = {"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "batch2 1 n1 42 n2 42"}
    answers = {"bjobs -noheader -o time_left 9": "1:30 L\n"}
    assert found(environ, answers) == Found("lsf", "9", ("n1", "n2"), 42, 0, (), 5400.0)


def test_elements_of_an_lsf_array_are_jobs_of_their_own() -> None:
    environ = {"LSB_JOBID": "9", "LSB_JOBINDEX": "3", "LSB_MCPU_HOSTS": "n1 4"}
    element = found(environ, {"bjobs -noheader -o time_left 9[3]": "0:10 L"})
    assert (element.job_id, element.seconds_left) == ("9[3]", 600.0)
    assert found({**environ, "LSB_JOBINDEX": "0"}).job_id == "9"


@pytest.mark.parametrize(
    ("environ", "answers", "says"),
    [
        ({"LSB_JOBID": "9"}, {}, "bjobs -o time_left 9: expected the time left, found ''"),
        ({"LSB_JOBID": "9"}, {"bjobs": "-\n"}, ""),
        ({"PBS_JOBID": "5", "PBS_NODEFILE": "/dev/null"}, {}, "qstat -f 5: expected the time left, found ''"),
        ({"PBS_JOBID": "5", "PBS_NODEFILE": "/dev/null"}, {"qstat": "Job Id: 5\n"}, "found 'no walltime'"),
        (FLUX, RESOURCES, "flux job timeleft: expected the time left, found ''"),
        (FLUX, {**RESOURCES, "flux job timeleft": "infinity\n"}, ""),
    ],
)
def test_a_job_whose_end_is_not_known_is_a_problem_unless_it_has_none(
    environ: dict[str, str], answers: dict[str, str], says: str
) -> None:
    job = found(environ, answers)
    assert job.seconds_left is None
    assert (says in job.problems[0]) if says else not job.problems


def test_a_pbs_job_s_end_counts_from_its_start_for_what_it_used_is_told_late(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("n1\n")
    times = {"stime": time.ctime(NOW - 900), "resources_used": {"walltime": "00:10:00"}}
    job = {"Jobs": {"5": {"Resource_List": {"walltime": "01:00:00"}, **times}}}
    environ = {"PBS_JOBID": "5", "PBS_NODEFILE": str(tmp_path / "nodes")}
    assert found(environ, {"qstat -f -F json": json.dumps(job)}).seconds_left == 2700.0


def test_an_lsf_job_of_single_cores_keeps_its_first_host() -> None:
    assert found({"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "n1 1 n2 1"}).hosts == ("n1", "n2")


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [
        (
            {
                "qstat -f -F json": '{"Jobs": {"5.pbs": {"Resource_List": {"walltime": "01:00:00"}, "resources_used": '
                '{"walltime": "00:10:00"}}}}'
            },
            3000.0,
        ),
        ({"qstat -f -F json": '{"Jobs": {"5.pbs": {"Resource_List": {"walltime": "01:00:00"}}}}'}, 3600.0),
        ({"qstat -f 5": "Job Id: 5.pbs\n    Walltime.Remaining = 123\n"}, 123.0),
        ({}, None),
    ],
)
def test_a_pbs_job(tmp_path: Path, answers: dict[str, str], seconds: float | None) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("n1.site\nn1.site\nn2.site\nn2.site\n")
    environ = {"PBS_JOBID": "5.pbs", "PBS_NODEFILE": str(nodes), "NCPUS": "32"}
    expected = Found("pbs", "5.pbs", ("n1.site", "n2.site"), 32, 0, (), seconds)
    assert replace(found(environ, answers), problems=()) == expected


def test_torque_counts_cores_by_lines(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("n1\n" * 8 + "n2\n" * 8)
    assert found({"PBS_JOBID": "5", "PBS_NODEFILE": str(nodes), "PBS_NUM_PPN": "8"}).cores == 8


@pytest.mark.parametrize(
    "name", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"]
)
def test_gpus_are_those_that_the_job_may_see(name: str) -> None:
    assert found({name: "2,3"}).gpus == ("2", "3")
    assert found({name: "NoDevFiles"}).gpus == ()


@pytest.mark.parametrize(
    ("kind", "environ", "answers", "expected"),
    [
        ("local", {}, {}, None),
        ("slurm", {}, {}, Kind.SRUN),
        ("lsf-srun", {}, {}, Kind.SRUN),
        ("lsf", {}, {}, Kind.JSRUN),
        ("flux", {}, {"flux version": "commands:    \t\t0.45.0\nlibflux-core:\t0.45.0\n"}, Kind.FLUX_MINI),
        ("flux", {}, {"flux version": "flux-core: 0.12.0\n"}, Kind.FLUX_WRECK),
        ("flux", {}, {}, Kind.FLUX_RUN),
        ("pbs", {"FLUX_URI": "local:///x"}, {"flux version": "commands: 0.60.0\n"}, Kind.FLUX_RUN),
        ("pbs", {}, {"mpiexec --version": "mpiexec version 1.2.12 (PALS)"}, Kind.PALS),
        ("pbs", {}, {"mpiexec --version": "mpiexec (OpenRTE) 4.1.4"}, Kind.OPENMPI),
        ("pbs", {}, {"mpiexec --version": "HYDRA build details:"}, Kind.HYDRA),
        ("pbs", {}, {"aprun -V": "aprun 6.3"}, Kind.APRUN),
    ],
)
def test_the_launcher_is_that_of_the_machine(
    kind: str, environ: dict[str, str], answers: dict[str, str], expected: Kind | None
) -> None:
    assert schedulers.launcher(kind, environ, asking(answers)) == expected


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n[1-3,07],m5", ("n1", "n2", "n3", "n07", "m5")),
        ("n[098-101]", ("n098", "n099", "n100", "n101")),
        ("r[1-2]c[1-2]", ("r1c1", "r1c2", "r2c1", "r2c2")),
        ("n1,n1", ("n1",)),
    ],
)
def test_host_lists_are_spelled_out(text: str, hosts: tuple[str, ...]) -> None:
    assert hostlist.expand(text) == hosts


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[a-b]", "n[[1]]", "n[1-999999999]"])
def test_what_is_no_host_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        hostlist.expand(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-00:00:00", 86400), ("01:02:03", 3723), ("02:03", 123), ("45", 45), ("", None), ("INVALID", None)],
)
def test_times_as_schedulers_write_them(text: str, seconds: float | None) -> None:
    assert schedulers.clock(text) == seconds


@pytest.mark.parametrize(
    ("more", "host", "name", "leads", "together"),
    [
        ({}, "n1.example.org", "n1", True, False),
        ({"SLURMD_NODENAME": "n2"}, "n1", "n2", False, False),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "n1", "n1", True, True),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, "n1", "n1", True, False),
        ({}, "login", "", False, False),
    ],
)
def test_which_host_we_are_and_whether_others_were_started_with_us(
    more: dict[str, str],
    host: str,
    name: str,
    leads: bool,  # noqa: FBT001 - a column of the table
    together: bool,  # noqa: FBT001 - a column of the table
) -> None:
    environ = {**SLURM, "SLURM_JOB_END_TIME": "1000600", **more}
    job = schedulers.found(environ, asking({}), host=host, now=NOW)
    assert (job.host, job.leads, job.together) == (name, leads, together)
