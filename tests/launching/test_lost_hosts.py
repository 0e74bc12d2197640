"""What a task comes to that ran over several hosts of which one has lost its agent: handed back, and told of where it may have killed it."""

import signal
import threading
from pathlib import Path

import pytest

from merlin_agent.badges import Badges
from merlin_agent.chunkrun import Ended, Stop
from merlin_agent.execute import run_script
from merlin_agent.launch import DirectLauncher, Script
from merlin_agent.report import Pending
from merlin_agent.resources import Share
from merlin_agent.slot import Slot
from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from tests.agent.test_warm import ENVIRON, a_script
from tests.ground import eventually

CHUNK = wire.Chunk(study="s", plan="p", step=0, epoch=1, fence=1, attempt=1, tasks=TaskSet(first=0, width=9))
BOTH = ("n1", "n2")


def a_slot(
    found: Stop | None, *, hosts: tuple[str, ...] = BOTH, leaving: bool = False, launcher: DirectLauncher | None = None
) -> Slot:
    """A slot whose leader says this of the hosts."""
    left = threading.Event()
    if leaving:
        left.set()
    launcher = launcher or DirectLauncher(ENVIRON)
    slot = Slot(0, launcher, lambda *_: None, grace=0.3, badges=Badges(), leaving=left, loss=lambda *_: found)
    slot.share = Share(0, hosts=hosts, task="task-1")
    return slot


def run(slot: Slot, directory: Path, text: str = "exit 3") -> Ended:
    return run_script(slot, 7, a_script(directory, text), walltime=None, tells=lambda: True)


def told(ended: Ended) -> tuple[Outcome | None, Outcome | None]:
    """Its outcome, and that of what is told in full."""
    return ended.outcome, ended.failure.outcome if ended.failure is not None else None


@pytest.mark.parametrize(
    ("slot", "expected"),
    [
        (a_slot(Stop.HOST_LOST), (None, Outcome.LOST)),
        (a_slot(Stop.HANDED_BACK), (None, None)),
        (a_slot(Stop.HOST_LOST, leaving=True), (None, None)),
        (a_slot(None), (Outcome.SOFT_FAILED, Outcome.SOFT_FAILED)),
        (a_slot(Stop.HOST_LOST, hosts=("n1",)), (Outcome.SOFT_FAILED, Outcome.SOFT_FAILED)),
    ],
    ids=["gone without a word", "it had said so", "the allocation ends", "all are there", "it ran on one"],
)
def test_only_a_host_that_is_gone_without_a_word_is_told_of(
    slot: Slot, expected: tuple[Outcome | None, Outcome | None], tmp_path: Path
) -> None:
    assert told(run(slot, tmp_path)) == expected


@pytest.mark.parametrize("leaving", [False, True], ids=["in mid-work", "at the allocation's end"])
def test_a_task_that_is_ended_since_its_host_died_is_told_of_but_not_at_the_allocation_s_end(
    tmp_path: Path, *, leaving: bool
) -> None:
    slot, ended = a_slot(None, leaving=leaving), list[Ended]()
    thread = threading.Thread(target=lambda: ended.append(run(slot, tmp_path, "echo > began; sleep 600")))
    thread.start()
    eventually((tmp_path / "began").exists)
    assert slot.strike(Stop.HOST_LOST, signal.SIGTERM)
    thread.join()
    assert told(ended[0]) == (None, None if leaving else Outcome.LOST)


class Hesitant(DirectLauncher):
    """Does not tell a process's number before it is told to."""

    def __init__(self) -> None:
        super().__init__(ENVIRON)
        self.made, self.may_tell = threading.Event(), threading.Event()

    def start(self, script: Script) -> int:
        pid = super().start(script)
        self.made.set()
        self.may_tell.wait()
        return pid


def test_a_task_is_ended_of_which_a_host_dies_while_its_process_is_being_made(tmp_path: Path) -> None:
    launcher, ended = Hesitant(), list[Ended]()
    slot = a_slot(None, launcher=launcher)
    thread = threading.Thread(target=lambda: ended.append(run(slot, tmp_path, "sleep 600")))
    thread.start()
    launcher.made.wait()
    assert slot.strike(Stop.HOST_LOST, signal.SIGTERM)
    launcher.may_tell.set()
    thread.join()
    assert told(ended[0]) == (None, Outcome.LOST)


def test_such_a_task_has_no_result_and_travels_as_a_failure_in_full(tmp_path: Path) -> None:
    """Whoever knows of no such losses, an older operator say, sees a task that is handed back."""
    pending = Pending()
    pending.add(run(a_slot(Stop.HOST_LOST), tmp_path))
    assert pending, "it is told soon: whoever tells later may be lost, too"
    (report,) = pending.reports(agent="a", chunk=CHUNK, serial=1, final=False)
    assert report.results == ()
    (failure,) = report.failures
    assert (failure.task, failure.outcome, failure.code) == (7, Outcome.LOST, 3)
    assert "n1, n2" in failure.tail
    assert not pending
