"""``outputs: lean`` and ``full`` come to the same: outcomes, files, restarts, and no task lost or doubled when an agent dies."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_cli_local import Merlin, outputs, place, spec
from tests.ground.waiting import eventually

__all__ = ["place"]

MIXED = """\
description: {{name: mixed, description: every way to end}}
outputs: {layout}
study:
  - name: sim
    description: prints, writes a file now and then, and ends in its own way
    run:
      cmd: |
        echo "hello $(N)"
        echo "care $(N)" >&2
        [ $(N) -gt 4 ] || echo "$(N)" > file.txt
        [ $(N) -ne 6 ] || exit $(MERLIN_SOFT_FAIL)
        [ $(N) -ne 7 ] || exit 3
        [ $(N) -ne 8 ] || kill -9 $$
  - name: again
    description: succeeds when it is restarted, from what it left
    run:
      cmd: "echo first > state; echo one; exit $(MERLIN_RESTART)"
      restart: "cat state; echo two"
      max_retries: 2
      retry_delay: 0
  - name: retried
    description: succeeds the second time
    run:
      cmd: "[ -e there ] || {{ touch there; exit $(MERLIN_RETRY); }}; echo done"
      max_retries: 2
      retry_delay: 0
  - name: gather
    description: finds what the samples left
    run: {{depends: [again, sim_*], cmd: 'cat "$(sim.workspace)"/$(MERLIN_GLOB_PATH)file.txt | sort > all.txt; cat all.txt'}}
  - name: last
    description: runs after the samples that succeeded
    run: {{depends: [sim], cmd: 'echo "after $(N)" > "$(WORKSPACE)/last.$(N).txt"'}}
merlin:
  samples:
    generate: {{cmd: 'seq 1 12 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""
CLOSED = """\
description: {{name: closed, description: tasks that take rights to their own directories away}}
outputs: {layout}
study:
  - name: lent
    description: runs where its slot's last task ran
    run: {{cmd: 'echo "hello $(N)"; case $(N) in 1) chmod 600 .;; 2) chmod 0 *;; 3) chmod 0 .; exit 7;; esac'}}
  - name: own
    description: has a directory of its own, and closes what is in it, too
    run: {{cmd: 'echo "own $(N)"; echo "$PWD" > file; chmod 0 * .'}}
  - name: again
    description: finds at its second attempt what the first one closed
    run:
      cmd: 'echo "again $(N)"; [ -e there ] || {{ touch there; chmod 0 * .; exit $(MERLIN_RETRY); }}'
      max_retries: 2
      retry_delay: 0
merlin:
  samples:
    generate: {{cmd: 'seq 1 5 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""
WALK = """\
description: {{name: walk, description: a study that takes a few seconds}}
outputs: {layout}
study:
  - name: step
    description: leaves a line for each time it runs
    run: {{cmd: 'echo $(N) >> "$(MERLIN_WORKSPACE)/runs"; echo "$(N)"{into}; sleep 0.05'}}
merlin:
  samples:
    generate: {{cmd: 'seq 1 80 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""


def killed(place: Path, text: str, far: Callable[[], object]) -> Path:
    """Run `WALK`, and kill the agent once it is so far; every task succeeded once. Returns the study's directory."""
    run = Merlin(place, "run", spec(place, text), "--local", "--slots", "2")
    eventually(lambda: bool(far()))
    run.kill("agent")
    code, lines, said = run.ended()
    assert code == 0, (lines, said)
    directory = outputs(lines)
    ended = re.findall(r"task (\d+), sample \d+: succeeded", merlin("logs", str(directory)).stdout)
    assert sorted(map(int, ended)) == list(range(80)), "each succeeded exactly once"
    return directory


def merlin(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "merlin_cli", *arguments], capture_output=True, text=True, check=False)


def counted(lines: list[str]) -> list[str]:
    """The table of outcomes."""
    first = next(at for at, line in enumerate(lines) if line.startswith("step "))
    return [line for line in lines[first:] if re.match(r"\w+ +\d", line)]


def files(directory: Path) -> dict[str, str]:
    """All files of the steps with their texts, the workspace's own path and times left out."""
    return {
        str(path.relative_to(directory)): path.read_text().replace(str(directory), "DIR")
        for path in directory.rglob("*")
        if path.is_file() and path.relative_to(directory).parts[0] != "merlin_info"
    }


def test_both_layouts_come_to_the_same_outcomes_and_extract_to_the_same_files(place: Path) -> None:
    found = {}
    for layout in ("full", "lean"):
        here = place / layout
        here.mkdir()
        code, lines, _ = Merlin(here, "run", spec(here, MIXED.format(layout=layout)), "--local", "--slots", "2").ended()
        directory = outputs(lines)
        assert code == 3, lines
        shown = merlin("logs", str(directory), "--failed", "--steps", "sim")
        heads = sorted(re.findall(r"==> sim, task (\d+)", shown.stdout))
        texts = (sorted(re.findall("hello .*", shown.stdout)), sorted(shown.stderr.split("\n")))
        status = counted(merlin("status", str(directory)).stdout.splitlines())
        if layout == "lean":
            assert not (directory / "sim/05").exists(), "no file, no directory"
            assert (directory / "sim/02/file.txt").read_text() == "3\n"
            assert merlin("extract", str(directory)).returncode == 0
        found[layout] = (counted(lines), status, heads, texts, files(directory))
        assert not list((directory / "merlin_info").glob("slots/*"))
    for lean, full in zip(found["lean"], found["full"], strict=True):
        assert lean == full


def test_a_lean_study_whose_agent_is_killed_loses_nothing_and_runs_nothing_again_that_succeeded(place: Path) -> None:
    logs = "walk_*/merlin_info/tasks/step/*/*.log"
    walk = WALK.format(layout="lean", into="")
    directory = killed(place, walk, lambda: [log for log in place.glob(logs) if log.stat().st_size > 900])
    times = [(directory / "runs").read_text().split().count(str(n)) for n in range(1, 81)]
    assert set(times) <= {1, 2}
    assert times.count(2) <= 4, "only what the two slots had taken as the agent died: one that runs, one that is ready"


@pytest.mark.parametrize("layout", ["full", "lean"])
def test_tasks_that_close_their_own_directories_come_to_their_ends_and_disturb_no_other(
    place: Path, layout: str
) -> None:
    """Without root's rights to go in all the same."""
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    run = subprocess.run(
        [
            *without,
            sys.executable,
            "-m",
            "merlin_cli",
            "run",
            spec(place, CLOSED.format(layout=layout)),
            "--local",
            "--slots",
            "1",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 3, (lines, run.stderr)
    ends = {name: ends for name, *ends in (line.split() for line in counted(lines))}
    assert (ends["lent"], ends["own"], ends["again"]) == (["5", "4", "1"], ["5", "5", "0"], ["5", "5", "0"])
    if layout == "lean":  # in the full layout what a task closed is closed to its reader, too
        shown = merlin("logs", str(outputs(lines))).stdout
        for each in range(1, 6):
            assert [shown.count(f"{step} {each}\n") for step in ("hello", "own", "again")] == [1, 1, 2], shown
