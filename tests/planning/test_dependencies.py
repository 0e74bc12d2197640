"""``env.dependencies``: paths that have to exist and repositories that are cloned, before anything else runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from merlin_study import dependencies
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.plan import DEPENDENCIES_STEP, EdgeKind, Plan
from merlin_study.workspace import Layout, TaskTokens
from tests.folding.studies import plan_of

STUDY = """
description: {{name: n, description: d}}
env:
  dependencies: {needs}
study:
- {{name: a, description: d, run: {{cmd: "ls $(DATA) $(LIB) $(S)"}}}}
- {{name: b, description: d, run: {{cmd: "true", depends: [a]}}}}
- {{name: c, description: d, run: {{cmd: "true"}}}}
merlin: {{samples: {{file: s.csv, column_labels: [S]}}}}
"""


def _plan(needs: str) -> Plan:
    return plan_of(STUDY.format(needs=needs))


def _run(plan: Plan, root: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the implicit step as an agent does, in bash."""

    def complete(text: str) -> str:
        for name, value in environ.items():
            text = text.replace(f"${name}", value)
        return text

    tokens = TaskTokens(Layout(str(root), Geometry(plan, 0)), 0, complete)
    text = tokens.render(tokens.cmd, combination=0, sample=0, values=())
    return subprocess.run(["/bin/bash", "-c", text], cwd=root, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three commits: one with a tag, one on a branch, and the last of the default branch."""
    home = tmp_path_factory.mktemp("repository")
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    commands = [["init", "-q", "-b", "main"]]
    for name, after in (("one", ["tag", "v1"]), ("two", ["branch", "side"]), ("three", [])):
        commands += [["commit", "-q", "--allow-empty", "-m", name], *([after] if after else [])]
    for command in commands:
        subprocess.run(["git", *who, *command], cwd=home, check=True, capture_output=True, timeout=180)
    return home


def test_they_are_a_first_step_that_all_others_wait_for() -> None:
    """Samples may be made with what was cloned, so that step waits too; ``--local`` has seen to them before."""
    plan = _plan("{paths: [{name: DATA, path: /data}], git: [{name: LIB, path: /libs/, url: u}]}")
    waits = {step.name: [(plan.steps[edge.parent].name, edge.kind) for edge in step.edges] for step in plan.steps}
    assert waits == {
        DEPENDENCIES_STEP: [],
        "merlin_info": [(DEPENDENCIES_STEP, EdgeKind.ALL)],
        "a": [("merlin_info", EdgeKind.ALL)],
        "b": [("a", EdgeKind.PROJECT)],
        "c": [(DEPENDENCIES_STEP, EdgeKind.ALL)],
    }
    assert plan.steps[2].cmd == "ls /data /libs/LIB $(S)"
    layout = Layout("/w", Geometry(plan, 1))
    assert (layout.step_dir(0), layout.scripts(0, 0).cmd) == ("/w/merlin_info/dependencies", "dependencies.sh")
    assert dependencies.without_step(plan).steps == _plan("{}").steps[:1] + tuple(
        step.model_copy(update={"cmd": "ls /data /libs/LIB $(S)"}) if step.name == "a" else step
        for step in _plan("{}").steps[1:]
    )


def test_a_path_that_is_not_there_ends_the_study_with_its_name(tmp_path: Path) -> None:
    there = tmp_path / 'it\'s "$here"'
    plan = _plan('{paths: [{name: DATA, path: $HOLD/it\'s "$here"}, {name: LIB, path: /nowhere}]}')
    assert plan.variables["DATA"] == '$HOLD/it\'s "$here"'
    missing = _run(plan, tmp_path, HOLD=str(tmp_path))
    assert missing.returncode == 102
    assert missing.stderr.startswith(
        f"env.dependencies.paths[0].path: expected a path that exists, found none at {there}"
    )
    there.touch()
    assert "paths[1]" in _run(plan, tmp_path, HOLD=str(tmp_path)).stderr


@pytest.mark.parametrize(
    ("revision", "subject"), [("", "three"), ("tag: v1", "one"), ("branch: side", "two"), ("hash: v1~0", "one")]
)
def test_a_clone_is_made_whole_at_the_revision_that_is_named(
    repository: Path, tmp_path: Path, revision: str, subject: str
) -> None:
    plan = _plan(f"{{git: [{{name: LIB, path: {tmp_path}/deep/er, url: $WHERE, {revision}}}]}}")
    done = _run(plan, tmp_path, WHERE=str(repository))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["LIB"]
    log = ["git", "-C", str(tmp_path / "deep" / "er" / "LIB"), "log", "-1", "--format=%s"]
    assert subprocess.run(log, capture_output=True, text=True, check=True, timeout=180).stdout.strip() == subject


def test_a_clone_of_the_same_study_stands_and_one_of_another_is_not_touched(repository: Path, tmp_path: Path) -> None:
    """The step runs again where its agent was lost; upstream refuses a directory that is there, and so do we."""
    plan = _plan(f"{{git: [{{name: LIB, path: {tmp_path}/x, url: {repository}}}]}}")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert _run(plan, tmp_path / "one").returncode == 0
    assert _run(plan, tmp_path / "one").returncode == 0
    other = _run(plan, tmp_path / "two")
    assert other.returncode == 102
    assert f"expected room for a clone, found {tmp_path}/x/LIB there already" in other.stderr


def test_what_cannot_be_cloned_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    gone = _run(_plan(f"{{git: [{{name: LIB, path: {tmp_path}/x, url: {tmp_path}/none}}]}}"), tmp_path)
    assert gone.returncode == 102
    assert gone.stderr.endswith(f"env.dependencies.git[0].url: can't clone {tmp_path}/none\n")
    no_tag = _run(_plan(f"{{git: [{{name: LIB, path: {tmp_path}/x, url: {repository}, tag: v9}}]}}"), tmp_path)
    assert no_tag.stderr.endswith(f"env.dependencies.git[0].tag: the repository {repository} has no such tag\n")
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("{paths: [{name: DATA, path: here}]}", "paths[0].path: expected an absolute path, found 'here'; write it from the root"),
        ("{paths: [{name: DATA, path: /a/$(NO)}]}", "paths[0].path: '/a/$(NO)' holds a token that no variable defines"),
        ("{paths: [{name: a b, path: /a}]}", "paths[0].name: 'a b' cannot be referred to as $(NAME)"),
        ("{paths: [{name: DATA, path: /a}, {name: DATA, path: /b}]}", "paths[1].name: 'DATA' is defined by"),
        ("{git: [{name: LIB, path: /a, url: u, tag: t, branch: b}]}", "git[0]: expected one of tag, hash and branch, found tag and branch"),
        ("{git: [{name: LIB, path: /a, url: u, branch: -b}]}", "git[0].branch: git would read the leading '-'"),
        ("{git: [{name: ../x, path: /a, url: u}]}", "git[0].name: '../x' cannot be the name of a clone"),
        ("{spack: {name: s, type: t, package_name: p}}", "spack: neither Merlin nor Maestro does anything with it; remove it"),
    ],
)  # fmt: skip
def test_what_nobody_could_see_to_is_refused(needs: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _plan(needs)
    assert f"spec.env.dependencies.{message}" in str(caught.value)
