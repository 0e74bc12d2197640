"""``merlin restart DIR --local --scan``: the marks in the workspace overrule what was recorded, with everything real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli_local import Merlin, outputs, place, spec

__all__ = ["place"]

TEXT = """\
description: {{name: scan, description: a step of samples and one that depends on it}}
outputs: {layout}
study:
  - name: sim
    description: notes each run
    run: {{cmd: 'echo $(N) >> "$(MERLIN_WORKSPACE)/runs"'}}
  - name: gather
    description: depends on all of them
    run: {{depends: [sim_*], cmd: 'echo gather >> "$(MERLIN_WORKSPACE)/runs"'}}
merlin:
  samples:
    generate: {{cmd: 'seq 1 12 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""


def ran(directory: Path) -> list[str]:
    """What ran since the last look, in alphabetical order."""
    lines = sorted((directory / "runs").read_text().split())
    (directory / "runs").write_text("")
    return lines


def restarted(place: Path, directory: Path, *options: str) -> list[str]:
    code, lines, err = Merlin(place, "restart", str(directory), "--local", *options).ended()
    assert code == 0, (lines, err)
    return ran(directory)


def test_a_task_whose_mark_was_deleted_runs_again_and_what_depends_on_it_if_asked(place: Path) -> None:
    code, lines, _ = Merlin(place, "run", spec(place, TEXT.format(layout="full")), "--local").ended()
    directory = outputs(lines)
    assert code == 0
    assert len(ran(directory)) == 13
    marks = sorted((directory / "sim").rglob("MERLIN_FINISHED"))
    marks[2].unlink()
    assert restarted(place, directory) == [], "what was recorded counts"
    assert restarted(place, directory, "--scan") == ["3"]
    assert marks[2].exists()
    assert restarted(place, directory, "--scan") == []
    marks[4].unlink()
    assert restarted(place, directory, "--scan", "--dependants") == ["5", "gather"]


def test_under_lean_a_deleted_log_is_a_deleted_mark(place: Path) -> None:
    code, lines, _ = Merlin(place, "run", spec(place, TEXT.format(layout="lean")), "--local").ended()
    directory = outputs(lines)
    assert code == 0
    assert len(ran(directory)) == 13
    for log in (directory / "merlin_info" / "tasks" / "gather").rglob("*"):
        if log.is_file():
            log.unlink()
    assert restarted(place, directory, "--scan") == ["gather"]


@pytest.mark.parametrize("option", [("--steps", "sim"), ("--tasks", "1")])
def test_which_tasks_is_a_question_for_a_cluster(place: Path, option: tuple[str, str]) -> None:
    code, _, err = Merlin(place, "restart", str(place), "--local", "--scan", *option).ended()
    assert code == 2, err
