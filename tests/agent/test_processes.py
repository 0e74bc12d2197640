"""Starting, watching and ending processes: real ones."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from merlin_agent import files, launch
from merlin_agent import slot as one_slot
from merlin_agent.badges import Badges
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.feed import Feed
from merlin_agent.launch import DirectLauncher, NotStartedError, Script
from merlin_agent.reaper import Reaper
from merlin_agent.resources import Pool
from merlin_agent.slot import Slot
from merlin_agent.slots import Slots, Work
from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.shape import Shape
from merlin_study.taskset import TaskSet
from tests.ground import eventually


def a_script(directory: Path, text: str, shell: str = "/bin/bash") -> Script:
    """A script that is written."""
    directory.mkdir(exist_ok=True)
    files.write_script(f"{directory}/s.sh", shell, text, replace=True)
    return Script(str(directory), f"{directory}/s.sh", f"{directory}/out", f"{directory}/err", shell)


@pytest.fixture(params=[True, False], ids=["own directory", "common directory"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DirectLauncher:
    """Both ways of starting."""
    if not request.param:
        monkeypatch.setattr(launch, "_leave_common_directory", lambda: False)
    else:
        # Not in this thread: it would leave pytest's directory for good.
        monkeypatch.setattr(DirectLauncher, "_has_own_directory", lambda _: True)
    return DirectLauncher({b"PATH": os.environb[b"PATH"], b"X": b"\xff"})


def run_in_thread(launcher: DirectLauncher, script: Script) -> int:
    """Start and wait; the thread's directory is its own."""

    async def start() -> int:
        return await asyncio.to_thread(launcher.start, script)

    here = Path.cwd()
    try:
        pid = asyncio.run(start())
    finally:
        os.chdir(here)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_script_runs_in_its_directory_and_session(launcher: DirectLauncher, tmp_path: Path) -> None:
    """Output is appended; input is empty; the environment is exact."""
    script = a_script(tmp_path / "d", "pwd; echo $(ps -o sid= $$) $$; cat; printf '%s' \"$X\"; echo no >&2; exit 7")
    assert [run_in_thread(launcher, script) for _ in range(2)] == [7, 7]
    lines = (tmp_path / "d" / "out").read_bytes().split(b"\n")
    assert lines[0] == os.fsencode(tmp_path / "d")
    sid, pid = lines[1].split()
    assert sid == pid
    assert lines[2].startswith(b"\xff")
    assert (tmp_path / "d" / "err").read_text() == "no\nno\n"


def test_what_cannot_be_executed_is_the_steps_fault(launcher: DirectLauncher, tmp_path: Path) -> None:
    """A gone directory is not."""
    script = a_script(tmp_path / "d", ":", shell="/no/such")
    with pytest.raises(NotStartedError, match="expected the interpreter") as caught:
        run_in_thread(launcher, script)
    assert caught.value.code == 127
    (tmp_path / "d" / "s.sh").chmod(0o600)
    with pytest.raises(NotStartedError, match="can't be executed") as caught:
        run_in_thread(launcher, script)
    assert caught.value.code == 126
    gone = Script("/no/such", "/no/such/s.sh", "/no/such/out", "/no/such/err", "/bin/sh")
    with pytest.raises(FileNotFoundError):
        run_in_thread(launcher, gone)


def test_a_script_that_somebody_still_writes_is_tried_again(
    launcher: DirectLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text file busy: a sibling holds the descriptor for a moment."""
    script = a_script(tmp_path / "d", "exit 3")
    holder = os.open(script.path, os.O_WRONLY)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            os.close(holder)

    monkeypatch.setattr("merlin_agent.launch.time.sleep", nap)
    assert run_in_thread(launcher, script) == 3
    assert len(naps) == 3


def test_the_agents_own_variables_are_not_inherited() -> None:
    """They say where credentials lie."""
    assert launch.environment({b"A": b"1", b"MERLIN_AGENT_KEYS": b"x", b"MERLIN_X": b"y"}) == {
        b"A": b"1",
        b"MERLIN_X": b"y",
    }


def gone(pid: int) -> bool:
    """Whether a process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


AGENT = """
import subprocess, sys, time
from merlin_agent.reaper import Reaper
from merlin_agent.resources import Pool
reaper = Reaper(3)
children = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
reaper.watch(0, children[0].pid)
reaper.watch(2, children[1].pid)
reaper.watch(2, 0)
reaper.remove_at_end(sys.argv[1])
print(reaper.pid, *(child.pid for child in children), flush=True)
time.sleep(600)
"""


def test_the_reaper_ends_what_a_killed_agent_leaves(tmp_path: Path) -> None:
    """Groups in cells die, others live; then the presence file goes, then the reaper itself."""
    present = tmp_path / "present"
    present.touch()
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(present)], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    reaper, watched, ended = map(int, agent.stdout.readline().split())
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    eventually(lambda: gone(watched) and gone(reaper))
    assert not present.exists()
    assert not gone(ended)
    os.kill(ended, signal.SIGKILL)


def test_closing_the_reaper_ends_it(tmp_path: Path) -> None:
    """And what it was told to remove is removed."""
    (tmp_path / "p").touch()
    reaper = Reaper(1)
    reaper.remove_at_end(str(tmp_path / "p"))
    reaper.close()
    assert gone(reaper.pid)
    assert not (tmp_path / "p").exists()


def a_run(width: int, *, urgent: bool = False, fence: int = 1) -> ChunkRun:
    """A chunk's state."""
    tasks = TaskSet(first=0, width=width)
    return ChunkRun(
        wire.Chunk(study="s", plan="p", epoch=1, fence=fence, step=0, tasks=tasks, attempt=1), urgent=urgent
    )


class Quick(Work):
    """Work that takes no process."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        """Note and succeed, but for one task that breaks."""
        del slot
        self.order.append((run.chunk.fence, task))
        if task == 13:
            raise KeyError("oops")
        return Ended(task, Outcome.SUCCEEDED)


def serve(feed: list[tuple[ChunkRun, Quick]], count: int) -> dict[int, list[Ended]]:
    """Run chunks to their end."""
    found: dict[int, list[Ended]] = {}

    async def work() -> None:
        done = asyncio.Event()

        def deliver(batch: list[tuple[ChunkRun, Ended]]) -> None:
            for run, ended in batch:
                run.ended()
                found.setdefault(run.chunk.fence, []).append(ended)
            if all(run.over for run, _ in feed):
                done.set()

        made = Slots(count, launcher=DirectLauncher({}), watch=lambda _slot, _group: None, deliver=deliver, grace=0.1)
        for run, quick in feed:
            made.feed.add(run, quick, Shape())
        made.start()
        await asyncio.wait_for(done.wait(), 180)
        made.close()

    asyncio.run(work())
    return found


def test_slots_run_every_task_once_urgent_chunks_first() -> None:
    """Whatever the number of slots."""
    quick = Quick()
    found = serve([(a_run(5), quick), (a_run(3, urgent=True, fence=2), quick)], 1)
    assert quick.order == [(2, 0), (2, 1), (2, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert {fence: len(ended) for fence, ended in found.items()} == {1: 5, 2: 3}
    many = serve([(a_run(1000, fence=fence), Quick()) for fence in (1, 2)], 8)
    assert {
        fence: sorted(e.task for e in ended)
        for fence, ended in many.items()
        if sum(e.outcome is None for e in ended) == 1
    } == {fence: list(range(1000)) for fence in (1, 2)}


def test_a_bug_in_one_task_is_handed_back_and_the_slot_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and told."""
    found = serve([(a_run(20), Quick())], 1)[1]
    assert len(found) == 20
    assert [(ended.task, ended.problem) for ended in found if ended.outcome is None] == [
        (13, "task 13: KeyError: 'oops'; this is a bug")
    ]
    assert "this is a bug" in caplog.text


def test_a_stopped_chunk_gives_nothing_more() -> None:
    """Also where it was the only one."""
    feed, run = Feed(Pool(5)), a_run(5)
    feed.add(run, Quick(), Shape())
    assert feed.ready == 5
    assert feed.take() is not None
    feed.stop(run, Stop.CANCELLED)
    assert feed.ready == 0
    feed.close()
    assert feed.take() is None


def a_slot(watch: Callable[[int, int], None] = lambda _slot, _group: None) -> Slot:
    """A slot whose processes are started from this thread."""
    return Slot(0, DirectLauncher({b"PATH": os.environb[b"PATH"]}), watch, grace=0.1, badges=Badges())


@pytest.fixture
def common_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting leaves this thread's directory alone."""
    monkeypatch.setattr(launch, "_leave_common_directory", lambda: False)


@pytest.mark.usefixtures("common_directory")
@pytest.mark.parametrize("days", [24.9, 30, 36500, float("inf")])
def test_a_walltime_of_a_month_is_waited_for(tmp_path: Path, days: float) -> None:
    """The kernel's wait ends at 24.8 days."""
    assert a_slot().launch(a_script(tmp_path / "d", "exit 3"), days * 86400) == (3, False)


@pytest.mark.usefixtures("common_directory")
def test_a_wait_in_pieces_ends_with_the_process_or_the_walltime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither earlier nor later."""
    monkeypatch.setattr(one_slot, "LONGEST_POLL", 0.02)
    began = time.monotonic()
    assert a_slot().launch(a_script(tmp_path / "d", "sleep 0.2; exit 3"), 60) == (3, False)
    assert 0.2 <= time.monotonic() - began < 55
    began = time.monotonic()
    assert a_slot().launch(a_script(tmp_path / "d", "sleep 600"), 0.3) == (-signal.SIGTERM, True)
    assert 0.3 <= time.monotonic() - began < 55


@pytest.mark.usefixtures("common_directory")
@pytest.mark.parametrize("broken", ["the wait", "the reaper"])
def test_what_can_not_be_watched_does_not_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Its task is handed back, so it must not run beside its next run; its number is not kept either."""

    def fail(*_: object) -> int:
        if broken == "the wait" or told.count(0) == 0:
            told.append(0)
            raise OSError(errno.EMFILE, "Too many open files")
        return 0

    told: list[int] = []
    started: list[int] = []
    starting = DirectLauncher.start

    def start(self: DirectLauncher, script: Script) -> int:
        started.append(starting(self, script))
        return started[-1]

    monkeypatch.setattr(DirectLauncher, "start", start)
    if broken == "the wait":
        monkeypatch.setattr(os, "pidfd_open", fail)
    slot = a_slot() if broken == "the wait" else a_slot(fail)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Too many open files"):
        slot.launch(a_script(tmp_path / "d", "sleep 600"), 60)
    (pid,) = started
    assert not Path(f"/proc/{pid}").exists(), "ended and reaped"
    assert not slot.strike(Stop.CANCELLED, signal.SIGTERM)
