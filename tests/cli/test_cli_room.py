"""A study that will not fit into the user's quota says so with figures and the cure, and runs all the same."""

import os
import signal
from pathlib import Path

import pytest

from merlin_agent.quota import left_of, rooms
from merlin_study import footprint
from merlin_study.footprint import Room
from tests.cli.test_cli_local import Merlin, place, spec
from tests.planning.test_packed import planned

__all__ = ["place"]

LFS = """\
#!/bin/sh
[ "$1 $2 $3" = "quota -q -u" ] && [ "$4" = "$(id -u)" ] && [ -d "$5" ] && [ $# = 5 ] || { echo "lfs: $*" >&2; exit 22; }
echo "$5"
echo "   812*    800   1000  6d23h    95*     90    100    6d23h"
"""
QUOTA = """\
#!/bin/sh
[ "$*" = "-w -p" ] || { echo "quota: $*" >&2; exit 22; }
echo "Disk quotas for user me (uid 1): "
echo "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace"
awk '{ print $1, 12, 0, 0, 0, 95, 0, 100, 0 }' /proc/self/mounts
exit 1
"""
TEXT = """\
description: {name: tight, description: more files than there may be}
study: [{name: sim, description: leaves nothing, run: {cmd: "echo $(X)"}}]
global.parameters: {X: {values: [1, 2, 3, 4], label: X.%%}}
"""


def faked(place: Path, **commands: str) -> dict[str, str]:
    bin_ = place / "bin"
    bin_.mkdir()
    for name, text in commands.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    return {"PATH": f"{bin_}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("columns", "left"),
    [
        ("/d 12 0 0 - 95 0 100 -", 5),
        ("/d 12* 10 20 6d 95* 90 100 6d", -5),
        ("/d 12 0 0 - 95 0 0 -", None),
        ("/my data 12 0 0 - 95 0 100 -", 5),
        ("/d [12] 0 0 - [95] 0 100 -", 5),
        ("/d 12 0 0 - many 0 100 -", None),
        ("none", None),
    ],
)
def test_what_a_quota_leaves_is_the_lower_limit_less_what_is_used(columns: str, left: int | None) -> None:
    assert left_of(columns.split()) == left


@pytest.mark.parametrize(
    ("columns", "left"),
    [("/d 812* 800 1000 6d 95 0 0 -", -12), ("/my data 12 0 100 - 95 0 0 -", 88), ("/d 12 0 0 - 95 90 100 -", None)],
)
def test_a_quota_of_blocks_leaves_bytes(columns: str, left: int | None) -> None:
    assert left_of(columns.split(), footprint.BYTES) == (None if left is None else left * 1024)


def test_both_commands_are_asked_in_their_own_words(tmp_path: Path) -> None:
    told = rooms(str(tmp_path / "not/yet"), faked(tmp_path, lfs=LFS, quota=QUOTA))
    found = {(room.source, room.of): room.left for room in told}
    assert (found["lfs quota", footprint.FILES], found["quota", footprint.FILES]) == (-5, 5)
    assert found["lfs quota", footprint.BYTES] == -12 * 1024
    assert ("quota", footprint.BYTES) not in found, "no limit"
    free = os.statvfs(tmp_path)
    assert found["free space of the file system", footprint.BYTES] <= free.f_blocks * free.f_frsize


@pytest.mark.parametrize("command", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho no such thing\n", "no program"])
def test_a_command_that_fails_says_nothing(tmp_path: Path, command: str) -> None:
    found = {room.source for room in rooms(str(tmp_path), faked(tmp_path, lfs=command, quota=command))}
    assert found <= {"free inodes of the file system", "free space of the file system"}


def test_a_command_that_no_signal_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose metadata server does not answer is in the kernel and dies of nothing; here the signal is what is lost."""
    monkeypatch.setattr("merlin_agent.quota._WITHIN", 0.2)
    kill, killed = os.killpg, list[int]()
    monkeypatch.setattr(os, "killpg", lambda group, _: killed.append(group))
    command = "#!/bin/sh\nexec sleep 600\n"
    found = {room.source for room in rooms(str(tmp_path), faked(tmp_path, lfs=command, quota=command))}
    assert found <= {"free inodes of the file system", "free space of the file system"}
    assert len(killed) == 2
    for group in killed:
        kill(group, signal.SIGKILL)  # both live still


def test_what_is_expected_follows_from_layout_and_tasks() -> None:
    plan = planned(last="echo $PWD")
    totals = {"sim": 1_000_000, "last": 1}
    few = [Room(10**9, "free inodes of the file system"), Room(3, "quota")]
    assert footprint.warning(plan, totals, "/w", [Room(4, "quota")]) == ""
    assert "expected room for 4 files" in footprint.warning(plan, totals, "/w", few)
    full = plan.model_copy(update={"outputs": "full"})
    said = footprint.warning(full, totals, "/w", few)
    assert said.startswith(
        "/w: expected room for 5,000,005 files and directories, which outputs: full makes for 1,000,001"
    )
    assert "found room for 3 (quota)" in said
    assert "use `outputs: lean` or `outputs: packed`" in said
    assert footprint.warning(full, totals, "/w", [Room(6_000_000, "quota")]) == ""
    assert footprint.warning(full, totals, "/w", []) == ""
    blocks = [Room(6_000_000, "quota"), Room(10**9, "lfs quota", footprint.BYTES)]
    said = footprint.warning(full, totals, "/w", blocks)
    assert said.startswith("/w: expected room for 4,096,004,096 bytes, which outputs: full makes for 1,000,001 tasks")
    assert "found room for 1,000,000,000 (lfs quota)" in said
    assert footprint.warning(plan, totals, "/w", blocks) == "", "a hundred bytes a task"
    assert "expected room for 5,000,005 files" in footprint.warning(full, totals, "/w", [*blocks, *few])


def test_a_run_without_room_is_warned_and_not_blocked(place: Path) -> None:
    asked = place / "asked"
    lfs = LFS.replace("#!/bin/sh\n", f"#!/bin/sh\necho once >> '{asked}'\n")
    code, lines, said = Merlin(place, "run", spec(place, TEXT), "--local", environ=faked(place, lfs=lfs)).ended()
    assert code == 0, (lines, said)
    told = "".join(lines) + said
    assert "expected room for 20 files and directories, which outputs: full makes for 4 tasks" in told
    assert "found room for 0 (lfs quota)" in told
    assert asked.read_text() == "once\n", "a metadata server is asked by the command, and not by the agent again"
