"""A workspace without room is nobody's failure: intake stops there, the study says so, and all goes on once there is some."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from merlin_study import archive
from tests.faults.rig import a_rig
from tests.folding.studies import plan_of
from tests.ground import Broker, eventually
from tests.ground.needs import missing

TASKS = 30
TEXT = f"""
description: {{name: study, description: d}}
study:
- name: sim
  description: writes more than there is room for
  run:
    cmd: |
      head -c 100000 /dev/zero > data || exit 1
      : $(S)
- name: after
  description: reads what they wrote
  run:
    depends: [sim_*]
    cmd: test "$(find $(sim.workspace) -name data -size +97k | wc -l)" = {TASKS}
merlin:
  samples:
    generate: {{cmd: "seq {TASKS} > $(MERLIN_INFO)/s.csv"}}
    file: $(MERLIN_INFO)/s.csv
    column_labels: [S]
"""


@contextlib.contextmanager
def small(place: Path, size: str = "2m") -> Iterator[None]:
    """Have a file system of that size there."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        missing("a file system of its own: root and mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_workspace_fails_no_task_and_nothing_downstream_starts(broker: Broker, tmp_path: Path) -> None:
    """ENOSPC of a real file system, in the middle of a task's own output; no task has a retry to burn."""
    with a_rig(broker, tmp_path, tasks=TASKS, plan=plan_of(TEXT)) as rig, small(rig.workspace):
        rig.operator()
        rig.agent()
        eventually(lambda: rig.view().get("full_on"), timeout=120, interval=0.05, message="it says that it is full")
        steps = {step["name"]: step for step in rig.view()["steps"]}
        assert 0 < steps["sim"]["succeeded"] < TASKS
        assert [step["soft_failed"] + step["failed"] for step in steps.values()] == [0] * len(steps)
        assert not (rig.root / "after").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", rig.workspace], check=True)
        rig.finish()
        assert rig.succeeded(), rig.view()
        eventually(lambda: not rig.view()["full_on"], timeout=60, interval=0.05, message="it is full no more")


PACKED = (
    TEXT[: TEXT.index("- name: after")].replace("study:\n", "outputs: packed\nstudy:\n", 1)
    + TEXT[TEXT.index("merlin:") :]
)


@pytest.mark.parametrize("full", ["workspace", "scratch"])
def test_packed_tasks_run_again_where_their_archive_or_their_node_has_no_room(
    broker: Broker, tmp_path: Path, full: str
) -> None:
    """The study says so and goes on once there is room; no task has a retry to burn, and each success is in one archive."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with a_rig(broker, tmp_path, tasks=TASKS, plan=plan_of(PACKED)) as rig:
        tight, size = (scratch, "64k") if full == "scratch" else (rig.workspace, "2m")
        with small(tight, size):
            rig.operator()
            rig.agent(flags=f"--scratch {scratch}")
            eventually(lambda: rig.view().get("full_on"), timeout=120, interval=0.05, message="it says that it is full")
            steps = {step["name"]: step for step in rig.view()["steps"]}
            assert [step["soft_failed"] + step["failed"] for step in steps.values()] == [0] * len(steps)
            subprocess.run(["mount", "-o", "remount,size=64m", tight], check=True)
            eventually(lambda: rig.view().get("finished"), timeout=180, interval=0.05, message="it ends")
            assert rig.succeeded(), rig.view()
            assert rig.view()["doubled"] == 0
            logs = archive.executions(str(rig.root / "merlin_info/tasks/sim"), range(TASKS))
            assert sorted(each.ran.task for each in logs) == list(range(TASKS))
            left = list((rig.root / "merlin_info/tasks/sim").rglob(".*"))
            assert left == [], "nothing half is left"
