"""The shared file system runs full or turns read-only (row 21 of the fault table): nobody's failure, never a success."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.standin import Standin, a_sampled_plan
from tests.faults.rig import a_rig
from tests.ground import Broker, eventually, missing
from tests.ground.disks import a_disk

SIZE = 16 << 20


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own where the rig keeps its workspace."""
    mounted = tmp_path / "ws"
    mounted.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", mounted], capture_output=True, check=False
    )
    if made.returncode:
        missing(f"a file system of its own needs root: {made.stderr.decode().strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=False)


def test_a_workspace_without_room_and_one_that_turns_read_only_cost_no_task(
    broker: Broker, tmp_path: Path, workspace: Path
) -> None:
    """One after the other in one run: what can't be written is handed back, the agent says why, and goes on when it can."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=400, cmd="echo something > result || exit; sleep 0.01") as rig:
        rig.operator()
        agent = rig.agent(slots=1)
        rig.until_done(20)
        with pytest.raises(OSError, match="No space"):
            (workspace / "filler").write_bytes(bytes(SIZE))
        eventually(lambda: "free some space" in agent.log.read_text(), message="the agent says what is wrong")
        (workspace / "filler").unlink()
        rig.until_done(rig.done() + 20)
        eventually(lambda: _remounted(workspace, "ro"), interval=0.0, message="a moment in which no file is open")
        eventually(lambda: "Read-only file system" in agent.log.read_text(), message="the agent says what is wrong")
        assert _remounted(workspace, "rw")
        rig.finish()
        assert rig.succeeded()
        assert {path.read_text() for path in rig.root.glob("sim/**/result")} == {"something\n"}


def _remounted(workspace: Path, how: str) -> bool:
    return (
        subprocess.run(["mount", "-o", f"remount,{how}", workspace], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("outputs", ["full", "lean"])
def test_a_host_that_loses_power_loses_nothing_of_what_it_reported(
    broker: Broker, tmp_path: Path, outputs: str
) -> None:
    """Neither what tasks wrote in their directories nor what they wrote elsewhere in the workspace."""
    cmd = "head -c 50000 /dev/zero | tee data > $(MERLIN_WORKSPACE)/all.$(A)"
    plan = a_sampled_plan(tmp_path, 10, cmd).model_copy(update={"outputs": outputs})
    with a_disk(tmp_path / "disk", tmp_path / "ws") as disk, Standin(broker, tmp_path) as operator:
        operator.up(plan)
        agent = operator.agent()
        chunk = operator.issue(range(10), step=1, samples=10)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 10}
        agent.kill()
        disk.lose_power()
        sizes = [path.stat().st_size for kind in ("sim/*/data", "all.*") for path in operator.root.glob(kind)]
        assert sizes == [50_000] * 20
