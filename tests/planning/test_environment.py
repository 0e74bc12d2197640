"""``~`` and environment variables: replaced where somebody's environment is at hand, and nowhere else."""

from __future__ import annotations

import pytest

from merlin_study import environment, workspace
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.plan import Plan
from merlin_study.workspace import Layout, TaskTokens
from tests.folding.studies import plan_of

ENVIRON = {"DATA": "/data", "_": "/bin/env", "EMPTY": ""}


def _home(text: str) -> str:
    return "/home/me" + text[1:] if text == "~" or text.startswith("~/") else text


def _complete(text: str) -> str:
    return environment.expand(text, ENVIRON, _home)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("a~/x", "a~/x"),
        ("~nobody/x", "~nobody/x"),
        ("$DATA/${DATA}x$EMPTY", "/data//datax"),
        ("$UNSET ${UNSET}", "$UNSET ${UNSET}"),
        ("$(DATA) $(date) $1 $$ $? ${#A} ${A:-b}", "$(DATA) $(date) $1 $$ $? ${#A} ${A:-b}"),
        ("$_ ${_}", "$_ ${_}"),
        ("$DATABASE", "$DATABASE"),
    ],
)
def test_what_is_set_is_replaced_and_the_rest_stays(text: str, expanded: str) -> None:
    assert _complete(text) == expanded


def test_everything_but_scripts_is_expanded_as_upstream_does() -> None:
    raw = {
        "description": {"name": "$DATA"},
        "global.parameters": {"cmd": {"values": ["~/v", "$DATA", 1], "label": "cmd.%%"}},
        "env": {"variables": {"cmd": "$DATA", "P": "~/p", "N": 1}, "labels": {"restart": "$DATA"}},
        "study": [{"name": "a", "run": {"cmd": "$DATA", "restart": "~", "shell": "~/sh", "depends": ["$DATA"]}}],
        "merlin": {"samples": {"generate": {"cmd": "$DATA"}, "file": "$DATA/s.csv", "column_labels": ["$DATA"]}},
    }
    assert environment.expand_tree(raw, ENVIRON, _home) == {
        "description": {"name": "/data"},
        "global.parameters": {"cmd": {"values": ["/home/me/v", "/data", 1], "label": "cmd.%%"}},
        "env": {"variables": {"cmd": "/data", "P": "/home/me/p", "N": 1}, "labels": {"restart": "/data"}},
        "study": [{"name": "a", "run": {"cmd": "$DATA", "restart": "~", "shell": "/home/me/sh", "depends": ["/data"]}}],
        "merlin": {"samples": {"generate": {"cmd": "$DATA"}, "file": "/data/s.csv", "column_labels": ["/data"]}},
    }


STUDY = """
description: {name: n, description: d}
env: {variables: {OUTPUT_PATH: $DATA/out, WHERE: ~/in, BOTH: "$(WHERE)/$(X)", PLAIN: 1}}
global.parameters:
  X: {values: [1, 2], label: X.%%}
  Y: {values: [~/y, "$DATA/$(PLAIN)/$UNSET"], label: Y.%%}
study:
- {name: a, description: d, run: {cmd: "cat $(BOTH) $(PLAIN) $(where) $DATA", shell: "$DATA/sh"}}
- {name: b, description: d, run: {cmd: "cat $(Y) $(Y.label)"}}
"""


def _script(plan: Plan, root: str, step: int = 0) -> str:
    tokens = TaskTokens(Layout(root, Geometry(plan, 0)), step, _complete)
    return tokens.render(tokens.cmd, combination=1, sample=0, values=())


def test_what_kubectl_applied_is_completed_by_the_agent() -> None:
    """The operator's environment means nothing, so the plan holds the texts; a variable that uses another is seen through."""
    plan = plan_of(STUDY)
    assert plan.steps[0].cmd == "cat $(BOTH) 1 $(where) $DATA"
    assert plan.variables == {"BOTH": "~/in/$(X)"}
    assert plan.steps[0].parameters == ("X",)
    assert workspace.study_root(plan, "/root", _complete) == f"/data/out/{plan.workspace}"
    assert _script(plan, "/w") == "cat /home/me/in/2 1 $(where) $DATA"


def test_values_of_parameters_are_completed_and_labels_are_not() -> None:
    """Agents with other environments have to agree on directories, and labels name them."""
    plan = plan_of(STUDY)
    assert _script(plan, "/w", 1) == "cat /data/1/$UNSET Y.$DATA/1/$UNSET"
    layout = Layout("/w", Geometry(plan, 0))
    assert [layout.task_dir(1, task) for task in range(2)] == ["/w/b/Y.y", "/w/b/Y.DATA1UNSET"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "description: {name: $USER, description: d}\nstudy: [{name: a, description: d, run: {cmd: x}}]",
            "description.name",
        ),
        (
            "description: {name: n, description: d}\nstudy: [{name: ~me, description: d, run: {cmd: x}}]",
            "study[0].name",
        ),
        (
            "description: {name: n, description: d}\nstudy: [{name: a, description: d, run: {cmd: x, task_queue: $Q}}]",
            "study[0].run.task_queue",
        ),
        (
            (
                "description: {name: n, description: d}\nglobal.parameters: {Q: {values: [$Q], label: q}}\n"
                "study: [{name: a, description: d, run: {cmd: x, task_queue: $(Q)}}]"
            ),
            "study[0].run.task_queue",
        ),
    ],
)
def test_names_that_are_needed_before_an_agent_is_there_are_refused(text: str, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(text)
    assert [fault.path for fault in caught.value.faults] == [f"spec.{path}"]
    assert "only `merlin run` replaces" in str(caught.value)
