"""The broker loses what it held (rows 11 and 14): the study ends all the same, and nothing that succeeded runs again."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext

from merlin_study.subjects import Space
from tests.faults.checker import Finding, read
from tests.faults.rig import TIMING, Rig, a_rig, hold
from tests.ground import Broker, eventually

SPACE = Space("local")
TASKS = 360
AGAIN = TASKS // 40
"""Tasks that ask for another try."""


@pytest.fixture
def rig(broker: Broker, tmp_path: Path) -> Iterator[Rig]:
    """A study in its middle, with two agents. One of its tasks fails, and a few ask for another try."""
    cmd = (
        f"sleep 0.1\n{hold(tmp_path)}\n[ $(MERLIN_SAMPLE_ID) -ne 17 ] || exit 3\n"
        "[ $(( $(MERLIN_SAMPLE_ID) % 40 )) -ne 5 ] || mkdir tried || exit 0\n"
        "[ $(( $(MERLIN_SAMPLE_ID) % 40 )) -ne 5 ] || exit $(MERLIN_RETRY)"
    )
    timing = TIMING.model_copy(update={"lost_after": 15.0})  # else a busy machine makes losses of its own
    with a_rig(broker, tmp_path, tasks=TASKS, cmd=cmd, timing=timing) as made:
        made.operator()
        made.agent()
        made.agent()
        made.until_done(20)
        yield made


def ask(broker: Broker, what: Callable[[JetStreamContext], Awaitable[object]]) -> None:
    """Do something to the streams, as somebody with the broker's password can."""

    async def run() -> None:
        client = await nats.connect(broker.url, **broker.credentials)
        await what(client.jetstream())
        await client.close()

    asyncio.run(run())


def wipe(broker: Broker) -> None:
    """Kill the server, empty its disk, start it."""
    broker.kill()
    shutil.rmtree(broker.directory / "store")
    broker.start()


def rewind(rig: Rig, broker: Broker, work: Callable[[], None]) -> None:
    """Put back a copy of the disk that is older than some of the ``work``."""
    backup = rig.directory / "backup"
    broker.kill()
    shutil.copytree(broker.directory / "store", backup)
    broker.start()
    work()
    broker.kill()
    shutil.rmtree(broker.directory / "store")
    backup.rename(broker.directory / "store")
    broker.start()


def ends_well(rig: Rig) -> Finding:
    """Every task has its outcome; who asked for another try had it, and that one failed stands."""
    finding = rig.finish(seconds=180)
    (sim,) = [step for step in rig.view()["steps"] if step["name"] == "sim"]
    assert (sim["succeeded"], sim["soft_failed"]) == (TASKS - 1, 1)
    return finding


async def _delete_consumers(stream: JetStreamContext) -> None:
    for each in await stream.consumers_info(SPACE.task_stream):
        await stream.delete_consumer(SPACE.task_stream, each.name)


def _goes_on(rig: Rig, before: int, name: str) -> None:
    """Wait for more tasks that are done; on a slow machine all may be by now, and then there is nothing to go on with."""
    done = min(before + 7, TASKS)
    eventually(lambda: rig.done() >= done, timeout=300, message=f"{name}, and all goes on")


LOSSES: dict[str, Callable[[JetStreamContext], Awaitable[object]]] = {
    "the log is deleted": lambda stream: stream.delete_stream(SPACE.report_stream),
    "the log is emptied": lambda stream: stream.purge_stream(SPACE.report_stream),
    "the chunks are deleted": lambda stream: stream.delete_stream(SPACE.task_stream),
    "the last values are deleted": lambda stream: stream.delete_stream(SPACE.control_stream),
    "the consumers are deleted": _delete_consumers,
}


@pytest.mark.parametrize("dies", [False, True], ids=["operator lives", "operator dies too"])
def test_a_study_outlives_all_that_its_broker_can_lose(rig: Rig, broker: Broker, dies: bool) -> None:  # noqa: FBT001
    """One after the other, while agents work on: each task runs once, but for those that ask for another try."""
    losses: dict[str, Callable[[], None]] = {name: partial(ask, broker, what) for name, what in LOSSES.items()}
    losses |= {
        "the disk is put back": partial(rewind, rig, broker, lambda: rig.until_done(rig.done() + 10)),
        "the disk is wiped": partial(wipe, broker),
    }
    for name, lose in losses.items():
        before = rig.done()
        if dies and name != "the disk is put back":  # that one takes some work in between
            rig.operators[-1].kill()
        lose()
        if dies:
            if rig.operators[-1].alive:
                rig.operators[-1].kill()
            rig.operator()
        _goes_on(rig, before, name)
    finding = ends_well(rig)
    assert (finding.losses, finding.overlaps) == (0, 0)
    assert finding.executions == TASKS + AGAIN
    assert Counter(rig.runs().values()) == {1: TASKS - AGAIN, 2: AGAIN}, "as the tasks' own files say"


def test_an_older_disk_hands_out_chunks_again_and_nothing_runs_twice_though_no_operator_is_there(
    rig: Rig, broker: Broker
) -> None:
    """Agents find in the workspace who had claimed it, though the log knows nothing of that and the epoch is the one that it was."""
    rig.hold.touch()
    eventually(lambda: rig.view()["steps"][1]["queued"] >= 8, message="two chunks a slot wait while all slots stand")
    rig.operators[-1].kill()

    def run_all() -> None:
        rig.hold.unlink()
        eventually(lambda: _chunks(broker) == 0, message="all chunks are claimed of which the copy says that they wait")

    rewind(rig, broker, run_all)
    eventually(lambda: _chunks(broker) == 0, message="all that the copy has is handed out again")
    rig.operator()
    finding = ends_well(rig)
    assert (finding.losses, finding.overlaps) == (0, 0)
    assert finding.executions == TASKS + AGAIN
    assert Counter(rig.runs().values()) == {1: TASKS - AGAIN, 2: AGAIN}, "as the tasks' own files say"


def test_all_that_is_left_is_the_workspace(rig: Rig, broker: Broker) -> None:
    """Broker, disk, operator and agents are gone. The study waits for an agent, which dies as it tells; the next one tells all."""
    for process in rig.processes:
        process.kill()
    wipe(broker)
    rig.operator()
    eventually(lambda: "no agent serves" in rig.view().get("waiting_for", ""), message="what is missing is shown")
    first = rig.agent(failpoints="agent.retell=kill@9")
    eventually(lambda: not first.alive, message="the first agent dies while it tells")
    rig.agent()
    rig.agent()
    finding = ends_well(rig)
    assert finding.repeated <= AGAIN + 4, "what four slots had in hand when they died, and what asks for it"


def test_who_comes_late_with_a_claim_of_a_lost_log_runs_nothing(rig: Rig, broker: Broker) -> None:
    """One agent stands still before its claim, one with a claim that is then lost; they wake when all that is recorded is told.

    An operator dies as it raises the epoch: agents hear of that from the next one, before it has anything told.
    """
    rig.hold.touch()
    late, told = rig.directory / "late", rig.directory / "told"
    for point in ("agent.claim", "agent.standby"):
        rig.agent(failpoints=f"{point}=pause:{late}@1")
    eventually(lambda: _standing(rig) == {"agent.claim", "agent.standby"}, message="both stand")
    rig.operators[-1].kill()
    wipe(broker)
    doomed = rig.operator(failpoints="operator.raised=kill")
    eventually(lambda: not doomed.alive, message="the operator dies as it raises the epoch")
    rig.operator(failpoints=f"operator.repaired=pause:{told}@1")
    rig.hold.unlink()
    eventually(lambda: "operator.repaired" in _standing(rig), message="all that is recorded is told")
    late.touch()
    eventually(lambda: len(list(rig.root.glob("merlin_info/outcomes/*.jsonl"))) == 4, message="they wrote their claims")
    told.touch()
    finding = ends_well(rig)
    assert finding.overlaps == 0


def _chunks(broker: Broker) -> int:
    """How many chunks are in the task stream; beside them there is the study's cursor."""
    found: list[int] = []

    async def look(stream: JetStreamContext) -> None:
        found.append((await stream.stream_info(SPACE.task_stream)).state.messages - 1)

    ask(broker, look)
    return found[0]


def _standing(rig: Rig) -> set[str]:
    """The points where processes stand, or stood, still."""
    return {each["point"] for each in read(rig.history) if each["event"] == "paused"}
