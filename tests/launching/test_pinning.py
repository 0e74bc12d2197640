"""How a launcher's processes get to the cores of their task: the script that Slurm runs beside each, and the variables that lead to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from merlin_agent import pinning
from merlin_agent.resources import Pool
from merlin_study.shape import Shape

HERE = {"PATH": os.environ["PATH"]}


@pytest.mark.parametrize(
    ("said", "moved"), [("n2={last}", True), ("@={last}", True), ("n1={last}", False), ("n2=*", False)]
)
def test_the_script_binds_the_process_on_its_host_and_never_fails(tmp_path: Path, said: str, *, moved: bool) -> None:
    """Slurm ends a step whose prolog fails, and takes what that prints for commands."""
    allowed = os.sched_getaffinity(0)
    last = max(allowed)
    given = pinning.variables((("", frozenset({last})),), environ=HERE, directory=str(tmp_path))
    assert given[b"MERLIN_STEP_PROCESSORS"] == f"@={last}".encode()
    process = subprocess.Popen(["sleep", "600"])
    try:
        ran = subprocess.run(
            [given[b"SLURM_TASK_PROLOG"]],
            env={
                **HERE,
                "SLURMD_NODENAME": "n2",
                "SLURM_TASK_PID": f"{process.pid}",
                "MERLIN_STEP_PROCESSORS": said.format(last=last),
            },
            capture_output=True,
            check=True,
        )
        assert ran.stdout + ran.stderr == b""
        assert os.sched_getaffinity(process.pid) == ({last} if moved else allowed)
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [Path(os.fsdecode(given[b"SLURM_TASK_PROLOG"])).name]


def test_who_has_a_prolog_of_their_own_keeps_it(tmp_path: Path) -> None:
    pins = (("n1", frozenset({0, 2})), ("n2", frozenset({1})))
    assert pinning.variables(pins, environ=HERE | {"SLURM_TASK_PROLOG": "/own"}, directory=str(tmp_path)) == {}
    assert pinning.variables(pins, environ={"PATH": "/nowhere"}, directory=str(tmp_path)) == {}, "no taskset"
    assert pinning.variables((), environ=HERE, directory=str(tmp_path)) == {}
    assert not list(tmp_path.iterdir())
    found = pinning.variables(pins, environ=HERE, directory=str(tmp_path))
    assert found[b"MERLIN_STEP_PROCESSORS"] == b"n1=0,2 n2=1"


@pytest.mark.parametrize(
    ("own", "asks", "expected"),
    [
        ({b"SLURM_EXACT": b"1", b"A": b"b"}, False, {b"A": b"b", b"SLURM_OVERLAP": b"1", b"P": b"1"}),
        ({b"SLURM_EXACT": b"1"}, True, {b"SLURM_EXACT": b"1", b"P": b"1"}),
        ({b"A": b"b"}, False, {b"A": b"b", b"P": b"1"}),
    ],
)
def test_slurm_keeps_steps_apart_only_where_we_do_not(
    own: dict[bytes, bytes], expected: dict[bytes, bytes], *, asks: bool
) -> None:
    assert pinning.shared(own, {b"P": b"1"}, asks=asks) == expected
    assert pinning.shared(own, {}, asks=asks) == own


def test_a_task_that_has_the_whole_host_is_pinned_to_nothing() -> None:
    pool = Pool(2, (), (frozenset({0}), frozenset({1, 3})))
    part = pool.take(Shape(cores=1))
    assert part is not None
    assert part.pins == (("", part.cpus),)
    pool.give(part)
    whole = pool.take(Shape(cores=2))
    assert whole is not None
    assert (whole.pins, whole.cpus) == ((), frozenset({0, 1, 3}))
    unbound = Pool(2).take(Shape(cores=1))
    assert unbound is not None
    assert unbound.pins == (), "nothing to pin to"
