"""``procs: $(P)``, ``task_queue: $(Q)``: each combination has its own route, launch line and limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from merlin_agent import launching
from merlin_agent.execute import StepWork
from merlin_study import launchers, needs
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.launchers import Kind
from merlin_study.plan import PlannedStep
from merlin_study.routes import MAX_LANES
from merlin_study.workspace import Layout
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


def test_each_combination_is_routed_and_launched_by_its_own_sizes() -> None:
    step = plan_of(SPEC).steps[0]
    assert [step.lanes[at].shape for at in step.lane_of] == ["n1-c4-g1-m0-w1", "n1-c4-g1-m0-w3", "n1-c2-g1-m0-w3"]
    assert [step.lanes[at].walltime for at in step.lane_of] == [60, 7200, 5400]
    assert step.parameters == ("C", "P", "W")
    assert "-n 4" in (line := _line(step, P="4", C="1", W="2:00:00"))
    assert ("-c 1" in line, "-t 02:00:00" in line) == (True, True)
    assert "-n 1" in (line := _line(step, P="1", C="4", W="60"))
    assert ("-c 4" in line, "-t 00:01:00" in line) == (True, True)


def test_maestro_reads_bare_walltimes_of_parameters_as_minutes() -> None:
    step = plan_of(SPEC + "dialect: Maestro\n").steps[0]
    assert needs.exact(step, {"procs": "1", "cores": "4", "walltime": "60"})[1] == 3600
    assert max(lane.walltime or 0 for lane in step.lanes) == 7200


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[1, 4, 2]", "[1, x, 2]", "spec.study[0].run.procs: expected a whole number from 1 to 1000000, found 'x' of $(P)"),
        ("[1, 4, 2]", "[1, 0, 2]", "spec.study[0].run.procs: expected a whole number from 1 to 1000000, found '0' of $(P)"),
        ("[1, 4, 2]", f"[1, '{'9' * 5000}', 2]", f"spec.study[0].run.procs: expected a whole number from 1 to 1000000, found '{'9' * 57}...' of $(P)"),
        ("90m", "soon", "spec.study[0].run.walltime: expected seconds, [d:]h:m:s or a number with s, m, h or d, found 'soon'"),
    ],
)  # fmt: skip
def test_each_combination_is_judged_before_any_runs(old: str, new: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(SPEC.replace(old, new))
    assert [str(fault) for fault in caught.value.faults] == [says]


TOKENS = """
description: {name: tokens, description: d}
batch: {type: slurm}
global.parameters:
  P: {values: [a, b, a], label: P.%%}
  N: {values: [1, 2, 1], label: N.%%}
merlin: {samples: {file: s.csv, column_labels: [X]}}
study:
- name: sim
  description: each key as a token
  run: {cmd: $(LAUNCHER) ./sim $(X) $(P) $(N), KEY}
"""


@pytest.mark.parametrize(
    ("key", "lanes"),
    [
        ("task_queue: $(P)", [("a", {}), ("b", {})]),
        ("task_queue: q_$(P.label)_$(N.name)", [("q_P.a_N", {}), ("q_P.b_N", {})]),
        ("nodes: $(N)", [("merlin", {"shape": "n1-c1-g0-m0-w0"}), ("merlin", {"shape": "n2-c1-g0-m0-w0"})]),
        ("procs: $(N)", [("merlin", {"shape": "n1-c1-g0-m0-w0"}), ("merlin", {"shape": "n1-c2-g0-m0-w0"})]),
        ("cores per task: $(N)", [("merlin", {"shape": "n1-c1-g0-m0-w0"}), ("merlin", {"shape": "n1-c2-g0-m0-w0"})]),
        ("gpus: $(N)", [("merlin", {"shape": "n1-c1-g1-m0-w0"}), ("merlin", {"shape": "n1-c1-g2-m0-w0"})]),
        ("gpus per task: $(N)", [("merlin", {"shape": "n1-c1-g1-m0-w0"}), ("merlin", {"shape": "n1-c1-g2-m0-w0"})]),
        ("walltime: '$(N):00:00'", [("merlin", {"walltime": 3600}), ("merlin", {"walltime": 7200})]),
        ("max_retries: $(N)", [("merlin", {"max_retries": 1}), ("merlin", {"max_retries": 2})]),
        ("retry_delay: $(N)", [("merlin", {"retry_delay": 1.0}), ("merlin", {"retry_delay": 2.0})]),
    ],
)  # fmt: skip
def test_parameters_stand_for_queue_sizes_and_retries(key: str, lanes: list[tuple[str, dict[str, object]]]) -> None:
    """Combinations that ask for the same share a lane: here the first and the third row are one combination."""
    plan = plan_of(TOKENS.replace("KEY", key))
    step = plan.steps[-1]
    assert [lane.queue for lane in step.lanes] == [queue for queue, _ in lanes]
    for lane, (_, wanted) in zip(step.lanes, lanes, strict=True):
        assert {name: getattr(lane, name) for name in wanted} == wanted
    assert step.lane_of == (0, 1)
    assert plan.wants == {("merlin" if key[0] != "t" else step.lanes[0].queue, "n1-c1-g0-m0-w0")} | {
        (lane.queue, lane.shape) for lane in step.lanes
    }


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("task_queue: $(X)", "a queue's name, found '$(X)'"),
        ("task_queue: q$(MERLIN_SAMPLE_ID)", "a queue's name, found 'q$(MERLIN_SAMPLE_ID)'"),
        ("nodes: $(X)", "a whole number from 1 to 1000000, found '$(X)'"),
        ("procs: $(X)", "a whole number from 1 to 1000000, found '$(X)'"),
        ("cores per task: $(X)", "a whole number from 1 to 1000000, found '$(X)'"),
        ("gpus: $(X)", "a whole number from 0 to 1000000, found '$(X)'"),
        ("walltime: $(X)", "seconds, [d:]h:m:s or a number with s, m, h or d, found '$(X)'"),
        ("max_retries: $(X)", "a whole number from 0 to 1000000, found '$(X)'"),
        ("retry_delay: $(X)", "a whole number from 0 to 31536000, found '$(X)'"),
    ],
)
def test_tokens_of_samples_are_refused_where_only_a_script_can_have_them(key: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(TOKENS.replace("KEY", key))
    why = "which differs between samples: their tokens are filled in in cmd and restart only; use a parameter here"
    path = f"spec.study[0].run.{key.partition(':')[0]}"
    assert [str(fault) for fault in caught.value.faults] == [f"{path}: expected {expected}, {why}"]


def _many(key: str) -> PlannedStep:
    """The step where every combination asks for something else."""
    sizes = str(list(range(1, MAX_LANES + 2)))
    return plan_of(TOKENS.replace("[1, 2, 1]", sizes).replace("[a, b, a]", sizes).replace("KEY", key)).steps[-1]


def test_a_step_of_more_sizes_than_lanes_is_routed_by_the_largest() -> None:
    step = _many("procs: $(N)")
    assert ([lane.shape for lane in step.lanes], step.lane_of) == ([f"n1-c{MAX_LANES + 1}-g0-m0-w0"], ())


def test_more_queues_than_lanes_are_refused() -> None:
    with pytest.raises(SpecError, match=r"run\.task_queue: expected at most 32 different combinations of queue"):
        _many("task_queue: $(P)")


def test_further_arguments_of_the_launcher_are_each_combinations_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment of an agent completes is filled in there, too, also in the middle of the text."""
    monkeypatch.setattr(launching, "kind", lambda _: Kind.SRUN)
    monkeypatch.setenv("SITE", "/opt/site")
    text = TOKENS.replace("KEY", "procs: 2, slurm: '--a=$(P) --b=$(V) $SITE'") + "env: {variables: {V: $SITE/lib}}\n"
    plan = plan_of(text)
    work = StepWork(Layout(str(tmp_path), Geometry(plan, 1)), 1, rows=None, restart=False)
    lines = [work.launched("$(LAUNCHER) x", task, ()) for task in range(2)]
    assert lines == [f"srun -n 2 --a={value} --b=/opt/site/lib /opt/site x" for value in "ab"]


def test_each_combination_is_routed_by_its_memory() -> None:
    """Declared for any launcher, or as what the step hands to Slurm anyway."""
    declared = SPEC.replace("gpus: 1", "gpus: 1, memory: $(P)GiB")
    step = plan_of(declared).steps[0]
    assert [step.lanes[at].shape.split("-")[3] for at in step.lane_of] == ["m4", "m16", "m8"]
    handed = SPEC.replace("gpus: 1", "gpus: 1, slurm: --mem-per-cpu=512M --exact")
    step = plan_of(handed).steps[0]
    assert [step.lanes[at].shape.split("-")[3] for at in step.lane_of] == ["m8", "m8", "m4"]
    with pytest.raises(
        SpecError, match=r"run\.memory: expected an amount of memory such as 4GiB or 512M, found 'much'"
    ):
        plan_of(SPEC.replace("gpus: 1", "memory: much"))


def test_walltimes_of_one_class_share_a_lane() -> None:
    """However many there are: agents tell classes apart, and each task keeps its own limit."""
    step = _many("walltime: $(N)")
    assert ([(lane.shape, lane.walltime) for lane in step.lanes], step.lane_of) == (
        [("n1-c1-g0-m0-w1", MAX_LANES + 1)],
        (),
    )
    assert step.varies == {"walltime": "$(N)"}
