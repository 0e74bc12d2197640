"""From specification to plan: what the four introductory examples of upstream and their like become."""

from __future__ import annotations

from typing import Any

import pytest

from merlin_study import samples
from merlin_study.compiler import fail_fast
from merlin_study.dag import Dag
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.plan import EdgeKind, Plan
from merlin_study.spec import StudySpec
from merlin_study.workspace import Layout, TaskTokens
from tests.folding.studies import STAMP, plan_of

CHAIN = """
description: {name: a study, description: d}
env: {variables: {N: 3, GREETING: "n is $(N)", OUTPUT_PATH: ./out}}
global.parameters:
  X: {values: [1, 2, 1], label: X.%%}
  Y: {values: [a b, c, a b], label: Y.%%}
study:
- {name: first, description: d, run: {cmd: "echo $(GREETING) $(X) $(X.label) $(date) $(S)"}}
- {name: second, description: d, run: {cmd: "ls $(first.workspace) $(MERLIN_SAMPLE_PATH) $(s)", depends: [first]}}
- {name: third, description: d, run: {cmd: "cat $(WORKSPACE) $(Y)", depends: [second]}}
- {name: last, description: d, run: {cmd: "ls $(second.workspace)", depends: [second_*, third_*]}}
merlin: {samples: {file: $(MERLIN_INFO)/s.csv, column_labels: [S], level_max_dirs: 5}}
"""


HELLO = {
    "description": {"name": "a", "description": "d"},
    "study": [{"name": "s", "description": "d", "run": {"cmd": "true"}}],
}


def _script(plan: Plan, name: str, task: int, *, n: int, values: tuple[str, ...]) -> str:
    geometry = Geometry(plan, samples=n)
    step = next(at for at, each in enumerate(plan.steps) if each.name == name)
    tokens = TaskTokens(Layout("/w", geometry), step)
    combination, sample = geometry.split(step, task)
    return tokens.render(tokens.cmd, combination=combination, sample=sample, values=values)


def test_a_plan_is_the_same_whoever_makes_it() -> None:
    """Compilation has no clock and no chance in it, so a signer can make the plan too."""
    assert plan_of(CHAIN).hash == plan_of(CHAIN).hash
    assert Plan.from_json(plan_of(CHAIN).to_json()) == plan_of(CHAIN)


def test_parameters_are_zipped_collapse_and_are_inherited() -> None:
    """X has two distinct values in three rows; what depends on a step has at least its parameters; a funnel inherits none."""
    plan = plan_of(CHAIN)
    assert {step.name: step.parameters for step in plan.steps} == {
        "merlin_info": (),
        "first": ("X",),
        "second": ("X",),
        "third": ("X", "Y"),
        "last": (),
    }
    geometry = Geometry(plan, samples=7)
    assert [geometry.total(at) for at in range(5)] == [1, 14, 14, 2, 1]


def test_edges_are_per_task_where_both_sides_have_the_same_tasks() -> None:
    plan = plan_of(CHAIN)
    kinds = {step.name: [(plan.steps[edge.parent].name, edge.kind) for edge in step.edges] for step in plan.steps}
    assert kinds == {
        "merlin_info": [],
        "first": [("merlin_info", EdgeKind.ALL)],
        "second": [("first", EdgeKind.TASK)],
        "third": [("second", EdgeKind.PROJECT)],
        "last": [("second", EdgeKind.ALL), ("third", EdgeKind.ALL)],
    }


def test_scripts_are_filled_literally_and_the_shell_keeps_its_own() -> None:
    """Variables, parameters, labels and samples are replaced once and as they are; ``$(date)`` is the shell's."""
    plan = plan_of(CHAIN)
    nasty = r"C:\new $(X) a\1b '; rm"
    assert _script(plan, "first", 8, n=7, values=(nasty,)) == f"echo n is 3 2 X.2 $(date) {nasty}"
    assert _script(plan, "second", 8, n=7, values=("v",)) == "ls /w/first/X.2 0/1 v"
    assert _script(plan, "third", 0, n=7, values=()) == "cat /w/third/X.1.Y.a_b a b"
    assert _script(plan, "last", 0, n=7, values=()) == "ls /w/second"


@pytest.mark.parametrize(
    ("added", "fails_fast"),
    [
        ({}, False),
        ({"failurePolicy": "FailFast"}, True),
        ({"dialect": "Maestro"}, True),
        ({"dialect": "Maestro", "failurePolicy": "ContinueOnSoftFail"}, False),
    ],
)
def test_the_dialect_decides_what_a_failure_means_unless_the_author_does(
    added: dict[str, Any], *, fails_fast: bool
) -> None:
    """Maestro fails what depends on a failed step; ``failurePolicy`` says otherwise in either dialect."""
    spec = StudySpec.model_validate({**HELLO, **added})
    assert fail_fast(spec) is fails_fast


def test_the_workspace_is_named_after_study_and_stamp() -> None:
    plan = plan_of(CHAIN)
    assert plan.workspace == f"a_study_{STAMP}"
    assert plan.output_path == "./out"


def test_directories_and_files_lie_where_merlin_puts_them() -> None:
    plan = plan_of(CHAIN)
    layout = Layout("/w", Geometry(plan, samples=7))
    assert layout.task_dir(1, 0) == "/w/first/X.1/0/0"
    assert layout.task_dir(1, 13) == "/w/first/X.2/1/1"
    assert layout.task_dir(3, 1) == "/w/third/X.2.Y.c"
    assert layout.task_dir(4, 0) == "/w/last"
    assert layout.scripts(1, 1).cmd == "first_X.2.sh"
    assert layout.scripts(0, 0).outputs("cmd.sh") == ("cmd.out", "cmd.err")


@pytest.mark.parametrize(
    ("count", "level", "first", "last"),
    [
        (1, 25, "", ""),
        (3, 25, "00", "02"),
        (25, 25, "00", "24"),
        (26, 25, "00/00", "01/00"),
        (625, 25, "00/00", "24/24"),
        (626, 25, "00/00/00", "01/00/00"),
        (101, 100, "000/000", "001/000"),
        (10, 9, "0/0", "1/0"),
        (10, 3, "0/0/0", "1/0/0"),
    ],
)
def test_the_hierarchy_of_samples_is_upstream_s(count: int, level: int, first: str, last: str) -> None:
    assert samples.path(0, count, level) == first
    assert samples.path(count - 1, count, level) == last
    assert samples.glob(count, level) == "*/" * (first.count("/") + 1 if first else 0)


def test_task_indices_go_both_ways_at_a_hundred_million() -> None:
    geometry = Geometry(plan_of(CHAIN), samples=10**8)
    assert geometry.total(1) == 2 * 10**8
    for task in (0, 1, 10**8 - 1, 10**8, 2 * 10**8 - 1):
        combination, sample = geometry.split(1, task)
        assert combination * 10**8 + sample == task


STEP = "study: [{name: a, description: d, run: {cmd: %s}}]"
HEAD = "description: {name: n, description: d}\n"


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        (STEP % '"$(MERLIN_WORKSPCE)"', "UndefinedToken", "MERLIN_WORKSPACE"),
        ("env: {variables: {N_SAMPLES: 1}}\n" + STEP % '"echo $(N_SAMPLE)"', "UndefinedToken", "did you mean"),
        (STEP % '"ls $(b.workspace)"', "UndefinedToken", "b.workspace"),
        (STEP % '"ls $(MERLIN_PATHS_ALL)"', "UndefinedToken", "without merlin.samples"),
        ("env: {variables: {A: $(B), B: $(A)}}\n" + STEP % "echo", "InvalidSpec", "uses itself"),
        (STEP % "echo" + "\nmerlin: {samples: {file: a.txt}}", "InvalidSpec", ".csv"),
        (STEP % "echo" + "\nmerlin: {samples: {file: a.csv, level_max_dirs: 1}}", "InvalidSpec", "level_max_dirs"),
        ("study: [{name: a, description: d, run: {cmd: x, walltime: soon}}]", "InvalidSpec", "walltime"),
        (STEP % '"ls $(MERLIN_GLOB_PATH)"', "UndefinedToken", "without merlin.samples"),
        (
            "global.parameters: {P: {values: [a b, a_b], label: P.%%}}\n" + STEP % '"echo $(P)"',
            "InvalidSpec",
            "share the directory",
        ),
    ],
)
def test_what_can_t_run_is_refused_with_place_and_cure(text: str, reason: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(HEAD + text)
    assert reason in {fault.reason for fault in caught.value.faults}
    assert words in str(caught.value)
    assert all(fault.path.startswith("spec.") for fault in caught.value.faults)


def test_what_is_the_shell_s_is_left_alone() -> None:
    text = STEP % '"echo $(hostname) $(basename $PWD) $((1+2)) `date` $HOME ${X}"'
    assert plan_of(HEAD + text).steps[0].cmd == "echo $(hostname) $(basename $PWD) $((1+2)) `date` $HOME ${X}"


def test_counted_samples_are_known_before_anything_runs() -> None:
    """No step measures them; only where a script reads the list of their directories something has to write that."""
    text = "description: {name: n, description: d}\nstudy: [{name: a, description: d, run: {cmd: 'CMD'}}]\nmerlin: {samples: {count: 7}}"
    plain = plan_of(text.replace("CMD", "echo $(MERLIN_SAMPLE_ID) $(MERLIN_GLOB_PATH)"))
    assert [(step.name, step.sampled, step.edges) for step in plain.steps] == [("a", True, ())]
    assert Dag(plain).steps[0].available == 7
    lists = plan_of(text.replace("CMD", "echo $(MERLIN_SAMPLE_ID) $(MERLIN_PATHS_ALL)"))
    assert [step.name for step in lists.steps] == ["merlin_info", "a"]
    assert [edge.kind for edge in lists.steps[1].edges] == ["all"]
