"""A workspace without room is nobody's failure: intake stops there, the study says so, and all goes on once there is some."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from merlin_agent import files
from merlin_agent.execute import run_script
from merlin_study import archive
from merlin_study.outcome import Outcome
from tests.agent.test_warm import a_script
from tests.faults.rig import a_rig
from tests.folding.studies import plan_of
from tests.ground import Broker, eventually
from tests.ground.needs import debian, missing
from tests.launching.test_lost_hosts import a_slot

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
def disk(place: Path, size: str = "2m") -> Iterator[list[str]]:
    """Have a file system of that size there; the command that makes room is handed out."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        missing("a file system of its own: root and mount")
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield ["mount", "-o", "remount,size=64m", str(place)]
    finally:
        _run("umount", "-l", place)


@contextlib.contextmanager
def quota(place: Path) -> Iterator[list[str]]:
    """Have two MiB of a larger file system there, by a quota of the kernel's: that of Btrfs holds for root, too."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        missing("a file system with a quota: root and mount")
    debian(["btrfs-progs"], ["mkfs.btrfs", "btrfs"])
    image, whole = place.parent / "image", place.parent / "whole"
    whole.mkdir()
    image.touch()
    os.truncate(image, 128 << 20)
    _run("mkfs.btrfs", "-q", "--mixed", image)
    try:
        _run("mount", "-o", "loop", image, whole)
    except subprocess.CalledProcessError:
        missing("a file system with a quota: Btrfs in the kernel, and a loop device")
    try:
        _run("btrfs", "quota", "enable", whole)
        _run("btrfs", "subvolume", "create", whole / "share")
        _run("btrfs", "qgroup", "limit", "2M", whole / "share")
        _run("mount", "--bind", whole / "share", place)
        found = subprocess.run(
            ["btrfs", "inspect-internal", "rootid", whole / "share"], check=True, capture_output=True, text=True
        )
        try:
            # By its number, over the root: a change that is asked for over the full subvolume may find no room itself.
            yield ["btrfs", "qgroup", "limit", "none", f"0/{found.stdout.strip()}", str(whole)]
        finally:
            _run("umount", "-l", place)
    finally:
        _run("umount", "-l", whole)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("limit", "cure"), [(disk, "free some space"), (quota, "free some of the quota")])
def test_a_full_workspace_fails_no_task_and_nothing_downstream_starts(
    broker: Broker, tmp_path: Path, limit: Callable[[Path], AbstractContextManager[list[str]]], cure: str
) -> None:
    """ENOSPC and EDQUOT of real file systems, in the middle of a task's own output; no task has a retry to burn."""
    with a_rig(broker, tmp_path, tasks=TASKS, plan=plan_of(TEXT)) as rig, limit(rig.workspace) as make_room:
        rig.operator()
        rig.agent()
        eventually(lambda: rig.view().get("full_on"), timeout=120, interval=0.05, message="it says that it is full")
        steps = {step["name"]: step for step in rig.view()["steps"]}
        assert 0 < steps["sim"]["succeeded"] < TASKS
        assert [step["soft_failed"] + step["failed"] for step in steps.values()] == [0] * len(steps)
        assert not (rig.root / "after").exists()
        assert cure in rig.processes[-1].log.read_text()
        _run(*make_room)
        rig.finish()
        assert rig.succeeded(), rig.view()
        eventually(lambda: not rig.view()["full_on"], timeout=60, interval=0.05, message="it is full no more")


def test_who_says_that_there_was_no_room_is_believed_where_there_is_little(tmp_path: Path) -> None:
    """Room may come between a task's write and our look, where another one begins its output anew."""
    (place := tmp_path / "place").mkdir()
    (said := tmp_path / "step.err").write_text(f"head: error writing 'data': {os.strerror(errno.ENOSPC)}\n")
    with disk(place, "512k"):
        assert files.room(str(place)) is None
        full = files.room(str(place), said=str(said))
        assert full is not None
        assert full.errno == errno.ENOSPC
    assert files.room(str(tmp_path), said=str(said)) is None


def test_who_fails_right_after_its_disk_was_full_is_handed_back_and_nobody_elsewhere(tmp_path: Path) -> None:
    """Room may come before we look, and an error message that was to be written to the same disk is lost."""
    (place := tmp_path / "place").mkdir()

    def ends(directory: Path, text: str) -> tuple[Outcome | None, bool]:
        directory.mkdir()
        ended = run_script(a_slot(None), 0, a_script(directory, text), walltime=None, tells=lambda: True)
        return ended.outcome, ended.full

    with disk(place, "512k") as make_room:
        assert ends(place / "a", "head -c 600000 /dev/zero > data || exit 1") == (None, True)
        _run(*make_room)
        assert ends(place / "b", "exit 1") == (None, False)
    assert ends(tmp_path / "c", "exit 1") == (Outcome.SOFT_FAILED, False)


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
        with disk(tight, size) as make_room:
            rig.operator()
            rig.agent(flags=f"--scratch {scratch}")
            eventually(lambda: rig.view().get("full_on"), timeout=120, interval=0.05, message="it says that it is full")
            steps = {step["name"]: step for step in rig.view()["steps"]}
            assert [step["soft_failed"] + step["failed"] for step in steps.values()] == [0] * len(steps)
            _run(*make_room)
            eventually(lambda: rig.view().get("finished"), timeout=180, interval=0.05, message="it ends")
            assert rig.succeeded(), rig.view()
            assert rig.view()["doubled"] == 0
            logs = archive.executions(str(rig.root / "merlin_info/tasks/sim"), range(TASKS))
            assert sorted(each.ran.task for each in logs) == list(range(TASKS))
            left = list((rig.root / "merlin_info/tasks/sim").rglob(".*"))
            assert left == [], "nothing half is left"
