"""Bugs of ours in a chunk's life: the chunk is handed back all the same, and what ended of it is told."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from merlin_agent.broker import Answer, Message
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.demand import Host
from merlin_agent.intake import Held, Intake
from merlin_agent.launch import DirectLauncher
from merlin_agent.life import Lives
from merlin_agent.post import Post
from merlin_agent.presence import Presence
from merlin_agent.record import Recorder
from merlin_agent.slots import Slots
from merlin_agent.studies import Studies, Study
from merlin_study import wire
from merlin_study.outcomelog import decode_lines
from merlin_study.subjects import Space
from merlin_study.taskset import TaskSet
from tests.agent.standin import STUDY, a_parameter, a_plan, a_step
from tests.ground import eventually_async

PATIENT = wire.Timing(presence=0.3, presence_stale=2.0)


class Stub:
    """Broker, intake and studies, as far as a chunk's life needs them; a test breaks one of them."""

    def __init__(self, root: Path) -> None:
        self.space, self.broker = Space("default"), self
        self.cancelled: set[str] = set()
        self.stored: list[wire.Message] = []
        self.answers: list[Answer] = []
        self.problems: list[str] = []
        script = "echo $$ > pid; [ $(X) = quick ] || sleep 600"
        step = a_step("sim", script, parameters=("X",))
        self.study = Study(STUDY, a_plan(step, parameters=(a_parameter("X", "quick", "slow"),)), str(root))

    def stopped(self, chunk: wire.Chunk) -> None:
        """Nothing is cancelled."""

    def is_outdated(self, chunk: wire.Chunk) -> bool:
        """No log was lost."""
        del chunk
        return False

    async def counts(self, chunk: wire.Chunk) -> bool:
        """Whatever is claimed counts."""
        del chunk
        return True

    async def store(self, study: str, subject: str, message: wire.Message, **how: Any) -> None:
        """Keep what was sent."""
        del study, subject, how
        self.stored.append(message)

    def server(self) -> tuple[str, str]:
        """A server that nobody knows."""
        return "", ""

    async def last(self, stream: str, subject: str) -> None:
        """Nothing is said of where the logs stand, so that each claim is looked back at."""
        del stream, subject

    async def open(self, chunk: wire.Chunk) -> Study:
        """Every chunk is the study's."""
        del chunk
        return self.study

    async def answer(self, held: Held, answer: Answer, *, delay: float = 0.0) -> None:
        """Keep what became of the chunk."""
        del held, delay
        self.answers.append(answer)

    def shun(self, consumer: str) -> None:
        """Nothing to shun."""

    def praise(self, consumer: str) -> None:
        """Nothing to praise."""

    def wake(self) -> None:
        """Nobody sleeps."""

    def go_on(self) -> None:
        """Nobody pauses."""

    @property
    def reports(self) -> list[wire.Report]:
        """What was told of the chunk."""
        return [message for message in self.stored if isinstance(message, wire.Report)]


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """What surrounds a life; no process of it is left."""
    stub = Stub(tmp_path / "ws")
    yield stub
    for file in tmp_path.glob("ws/**/pid"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            assert not Path(f"/proc/{int(file.read_text())}").exists()


def live(stub: Stub, break_it: Callable[[Lives, Recorder], Awaitable[None]], **changes: Any) -> Lives:
    """Take a chunk of two tasks, one that ends at once and one that does not, through its life."""

    async def run() -> Lives:
        recorder = Recorder(stub.problems.append)

        def deliver(batch: list[tuple[ChunkRun, Ended]]) -> None:
            for run, ended in batch:
                run.ended()
                life = lives.by_run[run]
                life.pending.add(ended)
                life.settle()

        slots = Slots(2, launcher=DirectLauncher({}), watch=lambda _slot, _group: None, deliver=deliver, grace=0.5)
        lives = Lives(
            "me",
            host=Host(1),
            post=cast("Post", stub),
            studies=cast("Studies", stub),
            slots=slots,
            recorder=recorder,
            presence=Presence("me", lambda _: None),
            timing=lambda: PATIENT,
            complain=stub.problems.append,
        )
        lives.serve(cast("Intake", stub), lambda _, __: None)
        slots.start()
        fields: dict[str, Any] = {"study": STUDY, "plan": "p", "epoch": 1, "fence": 1, "step": 0, "attempt": 1}
        chunk = wire.Chunk(tasks=TaskSet(first=0, width=2), **fields, **changes)
        lives.accept(Held([Message("s", b"", "")], chunk, "c", urgent=False, width=len(chunk.tasks)))
        await break_it(lives, recorder)
        await eventually_async(lambda: asyncio.sleep(0, lives.empty))
        slots.close()
        recorder.close()
        return lives

    return asyncio.run(run())


async def leave_it(lives: Lives, recorder: Recorder) -> None:
    """It is broken already."""
    del lives, recorder


def test_a_bug_before_the_claim_is_told_and_gives_the_chunk_back(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is claimed only to say why, or the operator would wait for it in silence; somebody else may be able to."""

    async def fail(chunk: wire.Chunk) -> Study:
        raise KeyError(chunk.step)

    monkeypatch.setattr(stub, "open", fail)
    lives = live(stub, leave_it)
    (report,) = stub.reports
    assert (report.final, report.results, report.refused) == (True, (), stub.problems[0])
    assert (stub.answers, lives.entering) == ([Answer.DONE], 0)
    assert stub.problems == ["internal error: KeyError: 0; this is a bug, please report it"]
    assert "this is a bug" in caplog.text


@pytest.mark.parametrize("where", ["_begin", "_feed", "_prepare", "_inherit"])
def test_a_bug_after_the_claim_hands_the_chunk_back(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A fence that is claimed and never told the end of would stay so while the agent lives."""

    def fail(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(Lives, where, fail)
    lives = live(stub, leave_it, lost=(wire.LostHolder(fence=7, agent="ghost"),))
    (report,) = stub.reports
    assert (report.final, report.results) == (True, ())
    assert report.refused.startswith("internal error: KeyError: 'oops'")
    assert Answer.DONE in stub.answers
    assert (lives.holds(), lives.entering) == ((), 0)
    assert "this is a bug" in caplog.text


def test_a_file_system_that_fails_while_inheriting_is_told(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bug, but no reason to keep the chunk either."""

    def fail(*_: object) -> float:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Lives, "_is_silent", fail)
    live(stub, leave_it, lost=(wire.LostHolder(fence=7, agent="ghost"),))
    (report,) = stub.reports
    assert (report.final, report.refused) == (True, "[Errno 5] Input/output error")


@pytest.mark.parametrize("part", ["record", "send", "report"])
def test_a_bug_while_tasks_run_ends_them_first(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """What is handed back must not run on; what ended is told, in the log before the broker, as far as that works."""
    root = Path(stub.study.root)
    broken: list[int] = []

    async def break_it(lives: Lives, recorder: Recorder) -> None:
        def slow_runs() -> bool:
            pid = root / "sim/X.slow/pid"
            told = any(life.pending for life in lives.by_run.values())
            return told and pid.exists() and bool(pid.read_text().strip())

        def fail(*_: object, **__: object) -> Any:
            monkeypatch.undo()
            broken.append(1)
            raise KeyError("oops")

        await eventually_async(lambda: asyncio.to_thread(slow_runs))
        (life,) = lives.by_run.values()
        match part:
            case "record":
                monkeypatch.setattr(recorder, "append", fail)
            case "report":
                monkeypatch.setattr(life.pending, "reports", fail)
            case _:
                monkeypatch.setattr(stub, "store", fail)
                await eventually_async(lambda: asyncio.sleep(0, bool(broken)))
                lives.hand_back(life)  # how sending ended is asked at the end
                (group,) = (slot._group for slot in lives._slots._slots if slot.run is life.run)
                assert group
                lives._slots.kill(life.run, cast("Any", life.run.stopped))

    lives = live(stub, break_it)
    assert broken
    assert "this is a bug" in caplog.text
    assert [report.final for report in stub.reports] == [False] * (len(stub.reports) - 1) + [True]
    assert {task for report in stub.reports for result in report.results for task in result.tasks.indices()} == {0}
    if part != "send":
        assert stub.reports[-1].refused.startswith("internal error: KeyError: 'oops'")
    assert lives.holds() == ()
    pid = (root / "sim/X.slow/pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()
    logged = decode_lines((root / "merlin_info/outcomes/me.jsonl").read_bytes()).entries
    assert [entry.report for entry in logged if entry.report and entry.report.final] == [stub.reports[-1]] * (
        2 if part == "send" else 1
    )


def test_an_agent_that_leaves_stays_while_what_tasks_left_is_brought_to_the_workspace(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that takes longer than the broker's last reports may: thrown away, all its tasks would run again."""
    monkeypatch.setattr("merlin_agent.life.TOLD_WITHIN", 0.1)
    monkeypatch.setattr("merlin_agent.life.TELL_EVERY", 600.0)
    done, passed = threading.Event(), threading.Event()

    async def break_it(lives: Lives, recorder: Recorder) -> None:
        del recorder
        await eventually_async(lambda: asyncio.to_thread((Path(stub.study.root) / "sim/X.slow/pid").exists))
        (life,) = lives.by_run.values()
        assert life.work is not None

        def sync() -> None:
            if done.wait(60):
                passed.set()

        monkeypatch.setattr(life.work, "sync", sync)
        monkeypatch.setattr(life.work, "patience", 600.0)
        draining = asyncio.create_task(lives.drain(0.1, asyncio.Event()))
        await eventually_async(lambda: asyncio.sleep(0, life.syncing))
        await asyncio.wait({draining}, timeout=1.0)  # ten times what it gives the broker
        done.set()
        await draining

    live(stub, break_it)
    assert passed.is_set()
    told = {task for report in stub.reports for result in report.results for task in result.tasks.indices()}
    assert (told, stub.reports[-1].final) == ({0}, True)


def test_a_hurry_ends_the_waiting_for_what_tasks_left(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second signal: what is not whole is not told, and its tasks run again elsewhere."""
    monkeypatch.setattr("merlin_agent.life.TOLD_WITHIN", 0.1)
    monkeypatch.setattr("merlin_agent.life.TELL_EVERY", 600.0)
    never = threading.Event()

    async def break_it(lives: Lives, recorder: Recorder) -> None:
        del recorder
        await eventually_async(lambda: asyncio.to_thread((Path(stub.study.root) / "sim/X.slow/pid").exists))
        (life,) = lives.by_run.values()
        assert life.work is not None
        monkeypatch.setattr(life.work, "sync", lambda: never.wait(120))
        monkeypatch.setattr(life.work, "patience", 600.0)
        hurry = asyncio.Event()
        draining = asyncio.create_task(lives.drain(0.1, hurry))
        await eventually_async(lambda: asyncio.sleep(0, life.syncing))
        hurry.set()
        await draining
        never.set()

    live(stub, break_it)
    assert [report for report in stub.reports if report.results] == []
