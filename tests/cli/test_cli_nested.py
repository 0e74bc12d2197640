"""A local run with studies that its steps start: one engine, one display, one end; and what one progress makes of them."""

import signal
from pathlib import Path

import pytest

from merlin_cli import family
from merlin_cli.progress import Progress, Ref, StepCount
from tests.cli import test_cli_local
from tests.cli.test_cli_local import Merlin
from tests.ground.waiting import eventually

ROUNDS = """\
description: {name: rounds, description: iterates by itself}
env: {variables: {ROUND: 1}}
study:
  - name: iterate
    description: starts the next round
    run:
      cmd: |
        cd "$(SPECROOT)"
        if [ $(ROUND) -lt LAST ]; then merlin run rounds.yaml --vars ROUND=$(( $(ROUND) + 1 )); else THEN; fi
"""


place = test_cli_local.place


@pytest.fixture
def rounds(place: Path) -> Path:
    return write(place, last=3, then="true")


def write(place: Path, *, last: int, then: str) -> Path:
    """A study that starts itself until the ``last`` round, and ends it with ``then``."""
    (place / "rounds.yaml").write_text(ROUNDS.replace("LAST", str(last)).replace("THEN", then))
    return place


def test_a_chain_of_studies_ends_as_one(rounds: Path) -> None:
    """The command ends with the last round and shows a row for each; each has a directory of its own beside the first."""
    code, out, err = Merlin(rounds, "run", "rounds.yaml", "--local", "--slots", "1").ended()
    assert code == 0, err
    studies = sorted(path.name for path in rounds.glob("rounds_*"))
    assert len(studies) == 3
    assert all((rounds / name / "merlin_info" / "plan.json").exists() for name in studies)
    assert any("all 3 tasks succeeded" in line for line in out)
    rows = [line.split() for line in out if line.startswith("rounds_")]
    assert sorted(row[0] for row in rows) == studies[1:]


def test_what_goes_wrong_in_a_descendant_is_told_at_the_end(rounds: Path) -> None:
    """By the exit code, and by name."""
    write(rounds, last=2, then="exit 3")
    code, out, _ = Merlin(rounds, "run", "rounds.yaml", "--local").ended()
    assert code == 3
    last = max(path.name for path in rounds.glob("rounds_*"))
    assert any(line.startswith(f"{last}: iterate, task 0: soft-failed, exit code 3") for line in out), out


def test_ctrl_c_ends_all_of_them(rounds: Path) -> None:
    """Nothing goes on: neither the first study nor the one that it started."""
    write(rounds, last=2, then="echo $$ > ../pid; sleep 600")
    run = Merlin(rounds, "run", "rounds.yaml", "--local")
    pid = Path("/proc") / str(
        eventually(lambda: (rounds.parent / "pid").exists() and (rounds.parent / "pid").read_text().strip())
    )
    run.process.send_signal(signal.SIGINT)
    code, _, _ = run.ended()
    assert code == 130
    eventually(lambda: not pid.exists())


def test_a_hundred_studies_share_a_display() -> None:
    """What is over makes one row, what runs has its own; the whole waits for what was asked for and is not there yet."""
    root = Progress(ref=Ref(uid="r"), finished=True, succeeded=True, children=101, steps=(step("go", 1),))
    whole = family.Family("r")
    for number in range(100):
        done = number < 97
        whole.take(Progress(ref=Ref(uid=str(number)), workspace=f"/w/s{number}", finished=done, succeeded=done, steps=(step("x", 2 if done else 1),)))  # fmt: skip
    assert whole.progress() is None, "nothing is known of the root"
    whole.take(root)
    shown = whole.progress()
    assert shown is not None
    assert [(row.name, row.done, row.total) for row in shown.steps] == [
        ("go", 1, 2), ("97 studies that are over", 194, 194), ("s97", 1, 2), ("s98", 1, 2), ("s99", 1, 2),
    ]  # fmt: skip
    assert not shown.finished
    for uid in ("97", "98", "99"):
        whole.take(Progress(ref=Ref(uid=uid), finished=True, succeeded=True))
    assert not finished(whole), "one has not been made yet"
    whole.take(Progress(ref=Ref(uid="100"), finished=True, succeeded=False))
    assert finished(whole)
    assert not succeeded(whole)


def step(name: str, done: int) -> StepCount:
    return StepCount(name=name, total=2, succeeded=done)


def finished(whole: family.Family) -> bool:
    shown = whole.progress()
    return shown is not None and shown.finished


def succeeded(whole: family.Family) -> bool:
    shown = whole.progress()
    return shown is not None and shown.succeeded


def test_a_restart_goes_on_with_what_the_steps_had_started(rounds: Path) -> None:
    """From the workspaces alone: nothing is started a second time, and what succeeded does not run again."""
    write(rounds, last=2, then="echo run >> ../runs; [ -e ../go ] || sleep 600")
    run = Merlin(rounds, "run", "rounds.yaml", "--local")
    eventually((rounds.parent / "runs").exists, message="the second round runs")
    run.process.send_signal(signal.SIGINT)
    assert run.ended()[0] == 130
    first, second = sorted(rounds.glob("rounds_*"))
    (rounds.parent / "go").touch()
    code, out, err = Merlin(rounds, "restart", str(first), "--local").ended()
    assert code == 0, err
    assert sorted(rounds.glob("rounds_*")) == [first, second]
    assert (rounds.parent / "runs").read_text() == "run\nrun\n"
    assert any("all 2 tasks succeeded" in line for line in out), out
    assert len(list((second / "iterate").glob("MERLIN_FINISHED"))) == 1


def test_a_step_cancels_what_another_started(place: Path) -> None:
    """And with it what that one had started; the run ends, and its exit code says that not all succeeded."""
    (place / "deep.yaml").write_text(
        "description: {name: deep, description: starts itself once and waits}\n"
        "env: {variables: {DEPTH: 1}}\n"
        "study:\n- name: wait\n  description: d\n  run:\n    cmd: |\n"
        '      cd "$(SPECROOT)"; [ $(DEPTH) -eq 2 ] || merlin run deep.yaml --vars DEPTH=2; touch up-$(DEPTH); sleep 600\n'
    )
    (place / "boss.yaml").write_text(
        "description: {name: boss, description: starts and cancels}\n"
        "study:\n- name: boss\n  description: d\n  run:\n    cmd: |\n"
        '      cd "$(SPECROOT)"; merlin run deep.yaml\n'
        "      until [ -e up-2 ]; do sleep 0.1; done; merlin cancel $(ls -d deep_* | head -1)\n"
    )
    code, out, err = Merlin(place, "run", "boss.yaml", "--local", "--slots", "3").ended()
    assert code == 3, err
    rows = {line.split()[0]: line.split() for line in out if line.startswith(("boss ", "deep_")) and ":" not in line}
    assert len(rows) == 3
    assert rows["boss"][1:3] == ["1", "1"]
    assert "cancelled" in next(line for line in out if line.startswith("step "))


def test_an_optimiser_feeds_itself_from_its_own_provenance(place: Path) -> None:
    """As upstream's example does: each round runs the archived specification with samples of its own making."""
    (place / "start.csv").write_text("8\n")
    (place / "opt.yaml").write_text(
        "description: {name: opt, description: halves a number until it is small}\n"
        "env: {variables: {OUTPUT_PATH: rounds, FACTOR: 2}}\n"
        "study:\n"
        '- {name: halve, description: d, run: {cmd: "echo $(( $(X) / $(FACTOR) )) > half"}}\n'
        "- name: iterate\n  description: d\n  run:\n    depends: [halve_*]\n    cmd: |\n"
        '      x=$(cat "$(halve.workspace)"/$(MERLIN_GLOB_PATH)half); echo $x > next.csv; [ $x -gt 1 ] || exit 0\n'
        '      next=$PWD/next.csv; cd "$(MERLIN_WORKSPACE)/../.."\n'
        '      merlin run "$(MERLIN_SPEC_EXECUTED_RUN)" --samplesfile "$next" --vars FACTOR=2\n'
        "merlin: {samples: {file: start.csv, column_labels: [X]}}\n"
    )
    code, out, err = Merlin(place, "run", "opt.yaml", "--local").ended()
    errors = [path.read_text() for path in place.glob("rounds/*/iterate/*.err")]
    assert code == 0, (out, err, errors)
    halves = [path.read_text().strip() for path in sorted(place.glob("rounds/*/halve/half"))]
    assert halves == ["4", "2", "1"], (out, errors)


def test_a_step_that_stops_the_agents_ends_the_run_and_a_restart_goes_on(place: Path) -> None:
    """What runs ends, the step that asked included; nothing else starts."""
    (place / "stops.yaml").write_text(
        "description: {name: stops, description: ends its own run}\n"
        "study:\n"
        '- {name: first, description: d, run: {cmd: "merlin stop-workers --queues main; echo $? > code", task_queue: main}}\n'
        '- {name: second, description: d, run: {cmd: "true", depends: [first]}}\n'
    )
    code, out, err = Merlin(place, "run", "stops.yaml", "--local", "--slots", "1").ended()
    (study,) = place.glob("stops_*")
    assert (code, (study / "first" / "code").read_text()) == (3, "0\n"), (out, err)
    assert "Told 1 agents to leave" in (study / "first" / "first.out").read_text()
    assert not (study / "second").exists()
    code, out, err = Merlin(place, "restart", str(study), "--local").ended()
    assert code == 0, (out, err)
