"""Telling a log what the outcome logs of a workspace record: in which order, for how long, and what where they can't be read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from merlin_agent.binding import Mark
from merlin_agent.post import Post
from merlin_agent.retell import Reteller
from merlin_agent.studies import Studies
from merlin_study import outcomelog, wire, workspace
from merlin_study.outcome import Outcome
from merlin_study.subjects import Space
from merlin_study.taskset import TaskSet

ASKED = wire.Recall(study="u", plan="h", epoch=2, agent="me")


class Ground:
    """Broker and studies, as far as a telling needs them: a claim is stored at once, a report takes its time."""

    def __init__(self, root: Path) -> None:
        self.space, self.root = Space("default"), root
        self.stored: list[wire.Message] = []
        self.at_report = asyncio.Event()
        self.reteller = Reteller(
            cast("Post", self), cast("Studies", self), agent="me", site="here", complain=lambda _why: None
        )
        info = root / workspace.INFO
        self.outcomes = info / workspace.OUTCOMES
        self.outcomes.mkdir(parents=True)
        (info / workspace.MARK).write_text(Mark(study="u", mark="m", plan="h").model_dump_json())

    async def root_of(self, study: str, plan: str) -> str:
        """The workspace is here."""
        del study, plan
        return str(self.root)

    async def store(self, study: str, subject: str, message: wire.Message, **how: Any) -> None:
        """Keep what was told."""
        del study, subject, how
        if isinstance(message, wire.Report):
            self.at_report.set()
            await asyncio.sleep(0.05)
        self.stored.append(message)

    async def tell(self) -> None:
        """Tell what is asked, to the end."""
        self.reteller.heed([ASKED])
        await self.reteller.ended()

    def record(self, *chunks: wire.Chunk) -> None:
        """Have an agent have claimed these chunks, and reported that their last tasks ask for another try."""
        with (self.outcomes / "a.jsonl").open("ab") as file:
            for chunk in chunks:
                result = wire.Result(outcome=Outcome.RETRY, code=104, tasks=TaskSet.of([chunk.tasks.end - 1]))
                report = wire.Report(
                    agent="a", fence=chunk.fence, serial=1, step=1, attempt=1, results=(result,), final=True
                )
                start = wire.Start(agent="a", chunk=chunk)
                file.write(outcomelog.encode_line(outcomelog.Entry(study="u", plan="h", start=start)))
                file.write(outcomelog.encode_line(outcomelog.Entry(study="u", plan="h", report=report)))

    @property
    def told(self) -> list[str]:
        """What was told, in its order: claims as ``+1``, reports as ``-1``."""
        return [
            f"+{each.chunk.fence}" if isinstance(each, wire.Start) else f"-{each.fence}"
            for each in self.stored
            if isinstance(each, wire.Start | wire.Report)
        ]


def chunk(fence: int, *tasks: int, attempt: int = 1) -> wire.Chunk:
    """A chunk of the study's step."""
    return wire.Chunk(
        study="u", plan="h", epoch=1, fence=fence, step=1, tasks=TaskSet.of(list(tasks)), attempt=attempt, samples=9
    )


def test_what_follows_from_a_report_is_told_after_it(tmp_path: Path) -> None:
    """However long the report takes. What has nothing to do with it does not wait."""

    async def scenario() -> None:
        ground = Ground(tmp_path)
        ground.record(chunk(1, 0, 1, 2), chunk(2, 5, 6), chunk(3, 2, attempt=2))
        await ground.tell()
        told = ground.told
        assert sorted(told) == ["+1", "+2", "+3", "-1", "-2", "-3"]
        assert told.index("-1") < told.index("+3")
        assert told.index("+2") < told.index("-1")

    asyncio.run(scenario())


def test_who_is_not_asked_any_more_tells_no_further(tmp_path: Path) -> None:
    """And does not say that it told all; asked again, it does."""

    async def scenario() -> None:
        ground = Ground(tmp_path)
        ground.record(*(chunk(fence, 0, attempt=fence) for fence in range(1, 6)))
        ground.reteller.heed([ASKED])
        await ground.at_report.wait()
        ground.reteller.heed([ASKED.model_copy(update={"agent": "another"})])
        await ground.reteller.ended()
        assert ground.told == ["+1", "-1"]
        assert not any(isinstance(each, wire.Recalled) for each in ground.stored)
        await ground.tell()
        assert ground.told[-2:] == ["+5", "-5"]

    asyncio.run(scenario())


@pytest.mark.parametrize("what", [workspace.OUTCOMES, f"{workspace.OUTCOMES}/a.jsonl", workspace.MARK])
def test_a_workspace_that_cannot_be_read_is_not_called_missing(tmp_path: Path, what: str) -> None:
    """The operator hears which path, and why."""

    async def scenario() -> None:
        ground = Ground(tmp_path)
        path = tmp_path / workspace.INFO / what
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.symlink_to(path)  # which nobody can follow, not even root
        await ground.tell()
        word = ground.stored[-1]
        assert isinstance(word, wire.Recalled)
        assert not word.found
        assert word.unread == f"{path}: Too many levels of symbolic links"

    asyncio.run(scenario())


def test_a_workspace_that_is_not_there_is_missing(tmp_path: Path) -> None:
    async def scenario() -> None:
        ground = Ground(tmp_path)
        (tmp_path / workspace.INFO / workspace.MARK).unlink()
        await ground.tell()
        assert ground.stored == [wire.Recalled(agent="me", site="here", epoch=2, found=False)]

    asyncio.run(scenario())
