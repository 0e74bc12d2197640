"""What tasks closed and what dead agents left half is removed, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from merlin_agent import files, leftovers, presence
from merlin_agent.scratch import Scratch

NOBODY = 65534


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of a user who is not root, and that user's rights: nothing opens to root by itself."""
    place = Path(tempfile.mkdtemp())
    try:
        with contextlib.ExitStack() as stack:
            if os.geteuid() == 0:
                os.chown(place, NOBODY, NOBODY)
                os.seteuid(NOBODY)
                stack.callback(os.seteuid, 0)
            yield place
    finally:
        shutil.rmtree(place)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def closed(directory: Path) -> Path:
    """What a task may leave: directories against writing and looking, and a link to somebody else's."""
    (directory / "tree/deep").mkdir(parents=True)
    (directory / "other").mkdir(exist_ok=True)
    (directory / "tree/deep/file").touch(0o400)
    (directory / "tree/link").symlink_to(directory / "other")
    (directory / "tree/deep").chmod(0o500)
    (directory / "other").chmod(0o500)
    (directory / "tree").chmod(0o000)
    return directory / "tree"


def test_a_tree_that_a_task_closed_is_removed_and_what_a_link_points_to_is_not_touched(theirs: Path) -> None:
    files.remove_tree(str(closed(theirs)))
    assert names(theirs) == ["other"]
    assert (theirs / "other").stat().st_mode & 0o777 == 0o500
    files.remove_tree(str(theirs / "absent"))


def test_the_reaper_removes_a_tree_that_a_task_closed(tmp_path: Path) -> None:
    tree = closed(tmp_path)
    code = "from merlin_agent.reaper import Reaper; import sys; r = Reaper(1); r.remove_at_end(sys.argv[1]); r.close()"
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    subprocess.run([*without, sys.executable, "-c", code, f"{tree}/"], check=True, timeout=120)
    assert names(tmp_path) == ["other"]


def test_a_lent_directory_that_a_task_closed_becomes_its_own_or_goes(theirs: Path) -> None:
    scratch = Scratch(f"{theirs}/lent", "sim")
    scratch.write("/bin/sh", "echo")
    (theirs / "lent").chmod(0o500)
    assert not scratch.is_clean(), "nobody else could write there"
    assert not scratch.holds_more()
    Path(f"{theirs}/lent/result").touch()
    (theirs / "lent").chmod(0o000)
    assert not scratch.is_clean()
    assert scratch.holds_more()
    scratch.move_to(f"{theirs}/sim/00", "sim")
    assert names(theirs / "sim/00") == ["result", "sim.err", "sim.out", "sim.sh"]
    scratch.close()


def test_a_lent_directory_whose_files_a_task_changed_is_lent_to_no_other(tmp_path: Path) -> None:
    """A new file in the place of an output would take the next tasks' words, and a script the next task's place."""

    def closes(name: str) -> None:
        (tmp_path / "lent" / name).chmod(0o000)

    def replaces(name: str) -> None:
        (tmp_path / "new").write_text("mine")
        (tmp_path / "new").rename(tmp_path / "lent" / name)

    for harms in (closes, replaces):
        for name in ("sim.sh", "sim.out", "sim.err"):
            scratch = Scratch(f"{tmp_path}/lent", "sim")
            scratch.write("/bin/sh", "echo")
            os.write(scratch.handles[0], b"words")
            assert scratch.is_clean()
            harms(name)
            assert not scratch.is_clean(), (harms, name)
            scratch.discard()
            assert names(tmp_path) == []


def test_a_lent_directory_to_whose_outputs_somebody_still_writes_is_lent_to_no_other(tmp_path: Path) -> None:
    scratch = Scratch(f"{tmp_path}/lent", "sim")
    scratch.write("/bin/sh", "echo")
    for path in (scratch.out, scratch.err):
        with Path(path).open("ab") as file:
            left = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        assert not scratch.is_clean()
        left.communicate()
        assert scratch.is_clean()
    scratch.discard()


def test_what_a_task_closed_is_read_and_stays_closed_and_what_is_no_file_is_empty(theirs: Path) -> None:
    directory = theirs / "task"
    directory.mkdir()
    (directory / "sim.out").write_text("words")
    (directory / "sim.out").chmod(0o000)
    os.mkfifo(directory / "sim.err")
    directory.chmod(0o000)
    assert files.read_tail(f"{directory}/sim.out", 10) == "words"
    assert directory.stat().st_mode & 0o777 == 0
    for name in ("sim.err", "absent", ""):
        assert files.read_tail(f"{directory}/{name}", 10) == ""
    assert not files.make_directory(str(directory))
    assert (directory / "sim.out").stat().st_mode & 0o777 == 0


def test_halves_of_agents_that_are_gone_or_silent_are_removed_and_all_others_stay(tmp_path: Path) -> None:
    info, logs = str(tmp_path), tmp_path / "tasks/sim/00000"
    logs.mkdir(parents=True)
    (tmp_path / "agents").mkdir()
    agents = ("node.x-1-00000a", "node.x-2-00000b", "node.x-3-00000c", "me-4-00000d")
    gone, silent, lives, me = agents
    for agent in (silent, lives):
        files.touch(presence.path_of(info, agent))
    os.utime(presence.path_of(info, silent), (1.0, 1.0))
    halves = {agent: Path(leftovers.half(f"{logs}/0-9.7.{agent}.2.zip")) for agent in agents}
    others = [logs / f"0-9.7.{gone}.zip", logs / ".hidden", logs / f"0-9.8.{gone}.log"]
    elsewhere = Path(leftovers.half(f"{tmp_path}/tasks/sim/00003/786432-786440.9.{gone}.zip"))
    elsewhere.parent.mkdir()
    for path in (*halves.values(), *others, elsewhere):
        path.touch()
    leftovers.remove(str(logs.parent), range(4, 6), info=info, agent=me, stale=90.0)
    assert sorted(logs.iterdir()) == sorted([halves[lives], halves[me], *others])
    assert elsewhere.exists(), "of other tasks"
    leftovers.remove(f"{tmp_path}/absent", range(4, 6), info=info, agent=me, stale=90.0)
