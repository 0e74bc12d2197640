"""Several tasks that a slot took at once: each ends as if it had run alone, and what did not begin can run elsewhere."""

import os
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from merlin_agent.badges import Badges
from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.launch import NotStartedError
from merlin_agent.pace import Pace
from merlin_agent.slot import Fate, Job, Launched, Slot
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk
from tests.agent.test_warm import Runs, a_script, runs
from tests.ground import eventually

__all__ = ["runs"]


class Heard:
    """What a slot told of jobs."""

    def __init__(self) -> None:
        self.fates: dict[int, Fate] = {}
        self.back: list[int] = []

    def launch(self, slot: Slot, jobs: Sequence[Job]) -> None:
        """Run them."""
        slot.launch_all(jobs, self.fates.__setitem__, self.back.extend)

    def launch_every(self, slot: Slot, work: Sequence[Job]) -> None:
        """Run them, and again what is given back because one took long on a busy machine."""
        left = list(range(len(work)))
        while left:
            one = Heard()
            one.launch(slot, [work[at] for at in left])
            assert one.fates, "one at least runs each time"
            self.fates |= {left[at]: fate for at, fate in one.fates.items()}
            left = [left[at] for at in one.back]

    def codes(self) -> dict[int, tuple[int, bool]]:
        """Exit codes and whether the time was up."""
        return {at: (fate.code, fate.late) for at, fate in self.fates.items() if isinstance(fate, Launched)}


def jobs(directory: Path, *texts: str, walltime: float | None = None) -> list[Job]:
    """A job for each text, in a directory of its own."""
    return [Job(a_script(directory / f"d{at}", text), walltime) for at, text in enumerate(texts)]


def a_run(count: int) -> ChunkRun:
    """A chunk that is fed."""
    run = ChunkRun(Chunk(study="s", plan="p", step=0, epoch=1, fence=1, attempt=1, tasks=TaskSet.of(range(count))))
    run.feed()
    return run


def test_each_of_a_batch_ends_as_it_does_alone(runs: Runs, tmp_path: Path) -> None:
    """Exit codes, signals, an interpreter that dies of one, and what has to be started."""
    texts = {
        "echo a": 0,
        "exit 7": 7,
        "kill -9 $BASHPID": -9,
        "exit 137": 137,
        "kill -TERM $BASHPID": -15,
        "kill -STOP $BASHPID & echo $!; sleep 0.2; exit 4": 4,
        "exit 147": 147,
        "export A=leaks; cd /; umask 0; exit 1": 1,
        "echo ${A-clean} $(umask); exit 2": 2,
        "kill -INT $BASHPID": -2,
    }
    work = jobs(tmp_path, *texts)
    heard = Heard()
    heard.launch_every(runs.slot, work)
    assert [heard.codes()[at][0] for at in range(len(work))] == list(texts.values())
    assert (tmp_path / "d8" / "s.out").read_text() == "clean 0022\n"
    assert (tmp_path / "d0" / "s.out").read_text() == "a\n"
    os.kill(int((tmp_path / "d5" / "s.out").read_text()), signal.SIGKILL)  # what a task leaves behind nobody ends


def test_what_has_to_be_started_gives_back_what_stands_behind_it(runs: Runs, tmp_path: Path) -> None:
    """Nobody knows how long it takes."""
    heard = Heard()
    heard.launch(runs.slot, jobs(tmp_path, "echo $$; exit 2", "exit 3", "exit 4"))
    assert heard.codes() == {0: (2, False)}
    assert heard.back == [1, 2]


def test_a_task_that_takes_long_gives_back_those_behind_it(runs: Runs, tmp_path: Path) -> None:
    """While it runs: another slot may have them."""
    (tmp_path / "gate").touch()
    heard = Heard()
    work = jobs(tmp_path, f"while [[ -e {tmp_path}/gate ]]; do sleep 0.01; done; exit 2", "exit 3", "exit 4")
    thread = threading.Thread(target=heard.launch, args=(runs.slot, work))
    thread.start()
    eventually(lambda: len(heard.back) == 2)
    assert not heard.fates
    (tmp_path / "gate").unlink()
    thread.join()
    assert (heard.codes(), heard.back) == ({0: (2, False)}, [1, 2])
    assert not any((tmp_path / f"d{at}" / "s.out").exists() for at in (1, 2))
    again = Heard()
    again.launch(runs.slot, work[1:2])
    assert again.codes() == {0: (3, False)}
    assert runs.were_warm[-1]


def test_a_walltime_ends_its_own_task_only(runs: Runs, tmp_path: Path) -> None:
    """The others are told of or given back."""
    heard = Heard()
    heard.launch(runs.slot, jobs(tmp_path, "sleep 60", "exit 3", walltime=0.05))
    told = heard.codes()
    assert told.pop(0) == (-signal.SIGTERM, True)
    assert sorted([*heard.fates, *heard.back]) == [0, 1]


def test_a_strike_ends_what_runs_and_begins_nothing_more(runs: Runs, tmp_path: Path) -> None:
    """Of a chunk that is cancelled."""
    heard = Heard()
    work = jobs(tmp_path, "echo on; sleep 60", "echo no", "echo no")
    runs.slot.run = a_run(3)
    thread = threading.Thread(target=heard.launch, args=(runs.slot, work))
    thread.start()
    eventually(lambda: (tmp_path / "d0" / "s.out").exists() and (tmp_path / "d0" / "s.out").read_text())
    runs.slot.run.stop(Stop.CANCELLED)
    runs.slot.strike(Stop.CANCELLED, signal.SIGTERM)
    thread.join()
    fate = heard.fates[0]
    assert isinstance(fate, Launched)
    assert (fate.code, fate.struck) == (-signal.SIGTERM, Stop.CANCELLED)
    assert sorted(heard.back) == [1, 2]
    assert not (tmp_path / "d1" / "s.out").exists()


def test_a_chunk_that_is_handed_back_begins_nothing_more(runs: Runs, tmp_path: Path) -> None:
    """What runs of it ends by itself."""
    (tmp_path / "gate").touch()
    heard = Heard()
    wait = f"echo on; while [[ -e {tmp_path}/gate ]]; do sleep 0.01; done; exit 5"
    runs.slot.run = a_run(3)
    thread = threading.Thread(target=heard.launch, args=(runs.slot, jobs(tmp_path, wait, "echo no", "echo no")))
    thread.start()
    eventually((tmp_path / "d0" / "s.out").exists)
    runs.slot.run.stop(Stop.HANDED_BACK)
    runs.slot.take_back()
    (tmp_path / "gate").unlink()
    thread.join()
    assert heard.codes() == {0: (5, False)}
    assert sorted(heard.back) == [1, 2]


def test_a_directory_that_is_gone_is_its_own_tasks_fault_only(runs: Runs, tmp_path: Path) -> None:
    """The shell goes on with the next one."""
    heard = Heard()
    work = jobs(tmp_path, "exit 1", "exit 2", "exit 3")
    shutil.rmtree(tmp_path / "d1")
    heard.launch_every(runs.slot, work)
    assert heard.codes() == {0: (1, False), 2: (3, False)}
    assert isinstance(heard.fates[1], OSError | NotStartedError)


def test_directories_of_several_parents_are_told_apart(runs: Runs, tmp_path: Path) -> None:
    """Each script runs in its own."""
    work = [Job(a_script(tmp_path / f"p{at % 2}" / f"d{at}", "pwd >where; exit 3"), None) for at in range(6)]
    heard = Heard()
    heard.launch_every(runs.slot, [job._replace(script=job.script._replace(text="exit 3")) for job in work])
    assert heard.codes() == dict.fromkeys(range(6), (3, False))
    assert all((Path(job.script.directory) / "where").read_text() == f"{job.script.directory}\n" for job in work)


@pytest.mark.parametrize("kind", ["bash", "python"])
def test_a_slot_that_ends_leaves_nothing_behind(runs: Runs, tmp_path: Path, kind: str) -> None:
    """Of a batch of either interpreter."""
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    shell, text, preload = ("/bin/bash", ":", ()) if kind == "bash" else ("/usr/bin/env python3", "pass", ("json",))
    work = [Job(a_script(tmp_path / f"d{at}", text, shell=shell, preload=preload), None) for at in range(5)]
    heard = Heard()
    heard.launch_every(runs.slot, work)
    assert heard.codes() == dict.fromkeys(range(5), (0, False))
    runs.slot.close()
    # Other threads of this process open and close files of their own.
    eventually(lambda: {path.name for path in Path("/proc/self/fd").iterdir()} <= before, message="none is left open")


def test_a_slot_takes_many_short_tasks_and_one_long_one() -> None:
    """And one where it does not know."""
    pace = Pace()
    assert pace.appetite == 1
    pace.note(0.001, warm=True)
    assert pace.appetite > 10
    for _ in range(50):
        pace.note(1.0, warm=True)
    assert pace.appetite == 1
    started = Pace()
    started.note(0.001, warm=False)
    assert started.appetite == 1


def test_a_slot_has_the_next_task_ready_where_the_pause_between_two_would_count() -> None:
    """And takes no other one ahead where it would not."""
    pace = Pace()
    pace.note(0.1, warm=True)
    assert pace.appetite == 2
    pace = Pace()
    pace.note(0.5, warm=True)
    assert pace.appetite == 1


def test_what_stands_behind_a_long_task_stays_while_nobody_else_could_run_it(runs: Runs, tmp_path: Path) -> None:
    """And runs without a pause; it is given back as soon as another slot has nothing to do."""
    waits, asked = threading.Event(), threading.Event()

    def others_wait(_: ChunkRun | None) -> bool:
        asked.set()
        return waits.is_set()

    slot = Slot(
        0,
        runs.slot._launcher,
        lambda *_: None,
        grace=1.0,
        badges=Badges(),
        warm=runs.warm,
        others_wait=others_wait,
    )
    (tmp_path / "gate").touch()
    text = f"while [[ -e {tmp_path}/gate ]]; do sleep 0.01; done; exit 2"
    heard, work = Heard(), jobs(tmp_path, text, "exit 3")
    thread = threading.Thread(target=heard.launch, args=(slot, work))
    thread.start()
    asked.wait()
    (tmp_path / "gate").unlink()
    thread.join()
    assert (heard.codes(), heard.back) == ({0: (2, False), 1: (3, False)}, [])
    (tmp_path / "gate").touch()
    waits.set()
    again = Heard()
    thread = threading.Thread(target=again.launch, args=(slot, work))
    thread.start()
    eventually(lambda: again.back == [1])
    (tmp_path / "gate").unlink()
    thread.join()
    assert again.codes() == {0: (2, False)}


def test_tasks_that_are_given_back_are_taken_again_first() -> None:
    """And count as before."""
    run = a_run(6)
    taken = run.take_more(4)
    run.back(taken[2:])
    assert (run.left, run.running) == (4, 2)
    assert run.take_more(9) == [2, 3, 4, 5]
