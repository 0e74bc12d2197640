"""``merlin run --rehearse``: the whole path, and no task is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MERLIN = str(Path(sys.executable).with_name("merlin"))
SPEC = """\
description: {name: rehearsed, description: a million tasks of two steps and a funnel}
study:
- {name: sim, description: d, run: {cmd: "touch $(MERLIN_WORKSPACE)/ran; echo $(MERLIN_SAMPLE_ID)"}}
- {name: look, description: d, run: {cmd: "touch $(MERLIN_WORKSPACE)/ran; echo $(MERLIN_SAMPLE_ID)", depends: [sim]}}
- {name: sum, description: d, run: {cmd: "touch $(MERLIN_WORKSPACE)/ran", depends: [look_*]}}
merlin: {samples: {count: COUNT}}
"""


def run(place: Path, count: int, *arguments: str) -> Path:
    (place / "spec.yaml").write_text(SPEC.replace("COUNT", str(count)))
    command = [MERLIN, "run", "spec.yaml", "--local", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"all {2 * count + 1:,} tasks succeeded", done.stdout), done.stdout
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("Outputs: "))


def test_a_million_tasks_are_rehearsed_as_ranges_and_leave_nothing_of_their_own(tmp_path: Path) -> None:
    """Neither directories nor lists: what a rehearsal leaves does not grow with its tasks."""
    directory = run(tmp_path, 1_000_000, "--rehearse")
    assert [path.name for path in directory.iterdir()] == ["merlin_info"]
    logs = list((directory / "merlin_info").rglob("*.jsonl"))
    assert 0 < sum(log.stat().st_size for log in logs) < 200_000


def test_a_rehearsal_takes_its_time(tmp_path: Path) -> None:
    """With seconds given, each task takes a slot for as long, one after the other."""
    directory = run(tmp_path, 10, "--rehearse=0.01", "--slots", "2")
    assert [path.name for path in directory.iterdir()] == ["merlin_info"]


def test_counted_samples_run_for_real_without_a_file(tmp_path: Path) -> None:
    directory = run(tmp_path, 30)
    assert (directory / "ran").exists()
    told = [path.read_text().strip() for path in directory.glob("look/**/look.out")]
    assert sorted(map(int, told)) == list(range(30))
    assert (directory / "look" / "01" / "04" / "look.out").read_text() == "29\n"


def test_seconds_that_are_none_are_wrong_usage(tmp_path: Path) -> None:
    command = [MERLIN, "run", "spec.yaml", "--local", "--rehearse=soon"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert "expected seconds, as in --rehearse=0.5, found 'soon'" in done.stderr
