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
        eventually(lambda: (rounds.parent / "pid").exists() and (rounds.parent / "pid").read_text().strip(), timeout=60)
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
