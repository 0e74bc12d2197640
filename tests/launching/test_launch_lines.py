"""Golden tables: what a step asks for, and the command line that stands in its script.

Rows without a mark are Merlin 1.13's own lines (option by option: upstream writes options behind the first two in the order of a
Python set). ``MENDED`` marks rows where upstream refuses, drops or breaks what the step asks for.
"""

import re
import shlex
import subprocess

import pytest

from merlin_study import launchers
from merlin_study.launchers import Kind, Launch, LaunchError

MENDED = "mended"


def step(kind: str, **keys: object) -> Launch:
    return Launch.model_validate({"type": kind, **keys})


def line(launch: Launch, kind: Kind, *, walltime: int | None = None, token: str = "$(LAUNCHER)") -> str:
    return launchers.expand(f"{token} ./app", launch, kind, walltime=walltime)


Row = tuple[dict[str, object], int | None, str, str]
WIDE: dict[str, object] = {"nodes": 2, "procs": 4}
FULL: dict[str, object] = {**WIDE, "cores": 3, "gpus": 2, "gpus_per_task": 1}

SLURM: list[Row] = [
    (WIDE, None, "srun -n 4 -N 2 ./app", ""),
    ({"procs": 4}, None, "srun -n 4 ./app", ""),
    ({"nodes": 2}, None, "srun -N 2 ./app", MENDED),
    (FULL, 1800, "srun -n 4 -N 2 -t 00:30:00 -c 3 --gpus-per-task=1 ./app", MENDED),
    ({**WIDE, "cores": 3}, 1800, "srun -n 4 -N 2 -t 00:30:00 -c 3 ./app", ""),
    ({**WIDE, "gpus": 2}, None, "srun -n 4 -N 2 --gpus=2 ./app", MENDED),
    ({"nodes": 1, "procs": 1}, 10, "srun -n 1 -N 1 -t 00:00:10 ./app", ""),
    ({"nodes": 1, "procs": 1}, 25 * 3600, "srun -n 1 -N 1 -t 25:00:00 ./app", ""),
    (
        {**WIDE, "arguments": {"slurm": "--overlap --mpibind=off"}},
        None,
        "srun -n 4 -N 2 --overlap --mpibind=off ./app",
        "",
    ),
    ({**WIDE, "arguments": {"flux": "-o nothing", "lsf": "--nothing"}}, None, "srun -n 4 -N 2 ./app", ""),
]
FLUX: list[Row] = [
    (WIDE, None, "flux run -n 4 -N 2 ./app", ""),
    ({"procs": 4}, None, "flux run -n 4 ./app", ""),
    ({**WIDE, "gpus": 4, "gpus_per_task": 1}, 1800, "flux run -n 4 -N 2 -t 1800.0s -g 1 ./app", ""),
    (FULL, 1800, "flux run -n 4 -N 2 -t 1800.0s -g 1 -c 3 ./app", ""),
    ({**WIDE, "gpus": 8}, None, "flux run -n 4 -N 2 -g 2 ./app", MENDED),
    ({"nodes": 2}, None, "flux run -n 2 -N 2 ./app", MENDED),
    (
        {**WIDE, "arguments": {"flux": "-o cpu-affinity=per-task"}},
        None,
        "flux run -n 4 -N 2 -o cpu-affinity=per-task ./app",
        "",
    ),
]
LSF: list[Row] = [
    (WIDE, None, "jsrun --np 4 --nrs 2 -b rs -d plane:2 -X 1 ./app", ""),
    ({"procs": 4}, None, "jsrun --np 4 --nrs 1 -b rs -d plane:4 -X 1 ./app", ""),
    (
        {**WIDE, "cores": 3, "gpus_per_task": 1},
        1800,
        "jsrun --np 4 --nrs 2 -b rs -d plane:2 -X 1 -c 3 -g 1 ./app",
        "",
    ),
    ({"nodes": 2}, None, "jsrun --np 2 --nrs 2 -b rs -d plane:1 -X 1 ./app", MENDED),
    (
        {
            **WIDE,
            "arguments": {
                "bind": "packed:2",
                "num resource set": "4",
                "launch_distribution": "cyclic",
                "exit_on_error": "0",
                "lsf": "--smpiargs=off",
            },
        },
        None,
        "jsrun --np 4 --nrs 4 -b packed:2 -d cyclic -X 0 --smpiargs=off ./app",
        "",
    ),
]
PBS: list[tuple[dict[str, object], Kind, str]] = [
    (WIDE, Kind.PALS, "mpiexec -n 4 --ppn 2 ./app"),
    ({**WIDE, "cores": 3}, Kind.PALS, "mpiexec -n 4 --ppn 2 --depth=3 --cpu-bind=depth ./app"),
    ({"procs": 4}, Kind.PALS, "mpiexec -n 4 ./app"),
    (WIDE, Kind.HYDRA, "mpiexec -n 4 -ppn 2 ./app"),
    ({"nodes": 3}, Kind.HYDRA, "mpiexec -n 3 -ppn 1 ./app"),
    (WIDE, Kind.OPENMPI, "mpiexec -n 4 --map-by ppr:2:node ./app"),
    ({**WIDE, "cores": 3}, Kind.OPENMPI, "mpiexec -n 4 --map-by ppr:2:node:PE=3 ./app"),
    ({"procs": 4, "cores": 2}, Kind.OPENMPI, "mpiexec -n 4 --map-by slot:PE=2 ./app"),
    (WIDE, Kind.APRUN, "aprun -n 4 -N 2 ./app"),
    ({**WIDE, "cores": 3}, Kind.APRUN, "aprun -n 4 -N 2 -d 3 ./app"),
    ({"nodes": 2, "procs": 5}, Kind.APRUN, "aprun -n 5 -N 3 ./app"),
]


@pytest.mark.parametrize(("keys", "walltime", "expected", "mark"), SLURM)
def test_slurm(keys: dict[str, object], walltime: int | None, expected: str, mark: str) -> None:
    assert line(step("slurm", **keys), Kind.SRUN, walltime=walltime) == expected, mark


@pytest.mark.parametrize(("keys", "walltime", "expected", "mark"), FLUX)
def test_flux(keys: dict[str, object], walltime: int | None, expected: str, mark: str) -> None:
    assert line(step("flux", **keys), Kind.FLUX_RUN, walltime=walltime) == expected, mark


@pytest.mark.parametrize(("keys", "walltime", "expected", "mark"), LSF)
def test_lsf(keys: dict[str, object], walltime: int | None, expected: str, mark: str) -> None:
    assert line(step("lsf", **keys), Kind.JSRUN, walltime=walltime) == expected, mark


@pytest.mark.parametrize(("keys", "kind", "expected"), PBS)
def test_pbs_without_flux(keys: dict[str, object], kind: Kind, expected: str) -> None:
    assert line(step("pbs", **keys), kind) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.12.0", "flux wreckrun -n 4 -N 2 -T 1800.0s ./app"),
        ("0.13.0", "flux mini run -n 4 -N 2 -t 1800.0s ./app"),
        ("0.47.1", "flux mini run -n 4 -N 2 -t 1800.0s ./app"),
        ("0.48.0", "flux run -n 4 -N 2 -t 1800.0s ./app"),
        ("0.100.0-17-gabc", "flux run -n 4 -N 2 -t 1800.0s ./app"),
        ("1.0.0", "flux run -n 4 -N 2 -t 1800.0s ./app"),
        ("", "flux run -n 4 -N 2 -t 1800.0s ./app"),
    ],
)
def test_the_spelling_follows_the_version_of_flux(version: str, expected: str) -> None:
    assert line(step("flux", **WIDE), launchers.flux_kind(version), walltime=1800) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ("[1n, 2p]", "srun -n 2 -N 1 ./app"),
        ("[1n,2p]", "srun -n 2 -N 1 ./app"),
        ("[2p]", "srun -n 2 ./app"),
        ("[1, 2]", "srun -n 2 -N 1 ./app"),
    ],
)
def test_a_launch_may_take_a_share_of_the_step(share: str, expected: str) -> None:
    assert line(step("slurm", **WIDE), Kind.SRUN, token=f"$(LAUNCHER){share}") == expected


def test_two_launches_may_stand_in_one_line() -> None:
    """Upstream's pattern is greedy, and fails."""
    text = "$(LAUNCHER)[1n, 2p] ./a & $(LAUNCHER)[1n, 2p] ./b; wait"
    assert launchers.expand(text, step("slurm", **WIDE), Kind.SRUN) == "srun -n 2 -N 1 ./a & srun -n 2 -N 1 ./b; wait"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$(LAUNCHER)[3n, 2p] x", "takes 3 nodes in all, and the step has 2"),
        ("$(LAUNCHER)[2p] x\n$(LAUNCHER)[3p] x", "takes 5 procs in all, and the step has 4"),
        ("$(LAUNCHER)[two] x", r"expected \[2p\], \[1n, 2p\]"),
        ("$(LAUNCHER)[] x", "expected"),
    ],
)
def test_a_share_that_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launchers.expand(text, step("slurm", **WIDE), Kind.SRUN)


def test_gpus_that_do_not_divide_among_the_processes_are_refused_where_the_launcher_counts_them_so() -> None:
    with pytest.raises(LaunchError, match="multiple of procs, found 3 for 4"):
        line(step("flux", **WIDE, gpus=3), Kind.FLUX_RUN)


@pytest.mark.parametrize("kind", Kind)
def test_a_step_without_nodes_and_processes_keeps_its_tokens(kind: Kind) -> None:
    assert line(step("slurm", cores=3), kind) == "$(LAUNCHER) ./app"


VARIABLE = [
    (Kind.SRUN, "srun -n ${MERLIN_PROCS} -N ${MERLIN_NODES} -c ${MERLIN_CORES} ./app"),
    (Kind.FLUX_RUN, "flux run -n ${MERLIN_PROCS} -N ${MERLIN_NODES} -c ${MERLIN_CORES} ./app"),
]


@pytest.mark.parametrize(("kind", "expected"), VARIABLE)
def test_vlauncher_reads_shell_variables_and_sets_those_that_are_missing(kind: Kind, expected: str) -> None:
    found = line(step("slurm", **WIDE, cores=3), kind, token="$(VLAUNCHER)")
    settings = "MERLIN_NODES=2\nMERLIN_PROCS=4\nMERLIN_CORES=3\nMERLIN_GPUS=0\n"
    assert found == settings + expected


def test_vlauncher_leaves_what_the_script_sets() -> None:
    text = "MERLIN_PROCS=1\nMERLIN_NODES=1\n$(VLAUNCHER) ./app"
    found = launchers.expand(text, step("slurm", **WIDE), Kind.SRUN)
    assert found.startswith("MERLIN_CORES=1\nMERLIN_GPUS=0\nMERLIN_PROCS=1\n")


def test_vlauncher_sets_variables_in_the_words_of_csh() -> None:
    found = launchers.expand("$(VLAUNCHER) ./app", step("slurm", **WIDE), Kind.SRUN, shell="/bin/tcsh")
    assert found.startswith("set MERLIN_NODES=2\n")


@pytest.mark.parametrize("kind", Kind)
def test_vlauncher_s_line_means_what_launcher_s_does(kind: Kind) -> None:
    """For bash the two spell the same command; upstream has none for jsrun, and never asks for GPUs."""
    launch = step("slurm", **WIDE, cores=3, gpus=8)
    text = launchers.expand("printf '%s ' $(VLAUNCHER) x", launch, kind)
    shown = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    direct = launchers.expand("$(LAUNCHER) x", launch, kind)
    assert shlex.split(shown) == shlex.split(direct)


@pytest.mark.parametrize("kind", Kind)
def test_nothing_of_a_token_is_left(kind: Kind) -> None:
    for token in ("$(LAUNCHER)", "$(LAUNCHER)[2p]", "$(VLAUNCHER)"):
        assert not re.search(r"LAUNCHER", line(step("slurm", **WIDE), kind, token=token))


HOSTS = ("n3", "n4")


@pytest.mark.parametrize(
    ("kind", "family", "expected"),
    [
        (Kind.SRUN, "slurm", "srun -n 4 -N 2 -w n3,n4 ./app"),
        (Kind.FLUX_RUN, "flux", "flux run -n 4 -N 2 --requires=hosts:n3,n4 ./app"),
        (Kind.PALS, "pbs", "mpiexec -n 4 --ppn 2 --hosts n3,n4 ./app"),
        (Kind.HYDRA, "pbs", "mpiexec -n 4 -ppn 2 -hosts n3,n4 ./app"),
        (Kind.OPENMPI, "pbs", "mpiexec -n 4 --host n3:2,n4:2 --map-by ppr:2:node ./app"),
        (Kind.APRUN, "pbs", "aprun -n 4 -N 2 -L n3,n4 ./app"),
    ],
)
def test_a_launch_stays_on_the_hosts_that_its_task_was_given(kind: Kind, family: str, expected: str) -> None:
    assert launchers.expand("$(LAUNCHER) ./app", step(family, **WIDE), kind, hosts=HOSTS) == expected


def test_launches_in_a_line_share_the_hosts_in_their_order() -> None:
    text = "$(LAUNCHER)[1n, 1p] ./a & $(LAUNCHER)[1n, 2p] ./b"
    expected = "srun -n 1 -N 1 -w n3 ./a & srun -n 2 -N 1 -w n4 ./b"
    assert launchers.expand(text, step("slurm", **WIDE), Kind.SRUN, hosts=HOSTS) == expected


def test_a_launch_that_names_no_nodes_has_as_many_as_it_was_given() -> None:
    """In a job of several, srun would take all of them."""
    assert (
        launchers.expand("$(LAUNCHER) a", step("slurm", procs=2), Kind.SRUN, hosts=("n2",)) == "srun -n 2 -N 1 -w n2 a"
    )
