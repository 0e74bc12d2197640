"""``procs: $(P)`` and ``walltime: $(W)``: one shape for the step, and for each combination its own launch line and limit."""

from __future__ import annotations

import pytest

from merlin_study import launchers, needs
from merlin_study.errors import SpecError
from merlin_study.launchers import Kind
from merlin_study.plan import PlannedStep
from tests.folding.studies import plan_of

SPEC = """
description: {name: sizes, description: d}
batch: {type: slurm}
global.parameters:
  P: {values: [1, 4, 2], label: P.%%}
  C: {values: [4, 1, 1], label: C.%%}
  W: {values: [60, "2:00:00", 90m], label: W.%%}
study:
- name: sim
  description: strong scaling
  run: {cmd: $(LAUNCHER) ./sim, procs: $(P), cores per task: $(C), gpus: 1, walltime: $(W)}
"""


def _line(step: PlannedStep, **texts: str) -> str:
    filled = {name: texts[text[2:-1]] for name, text in step.varies.items()}
    launch, walltime = needs.exact(step, filled)
    assert launch is not None
    return launchers.expand(step.cmd, launch, Kind.SRUN, walltime=walltime)


def test_a_step_is_routed_by_the_largest_of_each_and_launched_by_its_own() -> None:
    """The largest task has four cores, though the largest factors would make sixteen."""
    (step,) = plan_of(SPEC).steps
    assert (step.shape, step.walltime) == ("n1-c4-g1-m0-w3", 7200)
    assert step.parameters == ("C", "P", "W")
    assert "-n 4" in (line := _line(step, P="4", C="1", W="2:00:00"))
    assert ("-c 1" in line, "-t 02:00:00" in line) == (True, True)
    assert "-n 1" in (line := _line(step, P="1", C="4", W="60"))
    assert ("-c 4" in line, "-t 00:01:00" in line) == (True, True)


def test_maestro_reads_bare_walltimes_of_parameters_as_minutes() -> None:
    step = plan_of(SPEC + "dialect: Maestro\n").steps[0]
    assert needs.exact(step, {"procs": "1", "cores": "4", "walltime": "60"})[1] == 3600
    assert step.walltime == 7200


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1, 4, 2]", "[1, x, 2]", "spec.study[0].run.procs: expected a whole number from 1 to 1000000, found 'x' of $(P)"),
        ("[1, 4, 2]", "[1, 0, 2]", "spec.study[0].run.procs: expected a whole number from 1 to 1000000, found '0' of $(P)"),
        ("90m", "soon", "spec.study[0].run.walltime: expected seconds, [d:]h:m:s or a number with s, m, h or d, found 'soon'"),
    ],
)  # fmt: skip
def test_each_combination_is_judged_before_any_runs(old: str, new: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(SPEC.replace(old, new))
    assert [str(fault) for fault in caught.value.faults] == [says]
