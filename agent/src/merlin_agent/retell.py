"""Completing a log that may have lost something: what the outcome logs in the workspace record and the broker does not.

They hold each claim, written before anything of it ran, and each report, written before the broker heard of it. They are told by
fence, since a chunk was issued after the reports that it follows from: of a task, nothing is told before the broker has all that
earlier fences say of it. Fences without a task in common are told side by side. Whatever the log has already changes nothing: a ledger
knows a claim by its fence and a report by its number. So an agent that dies on the way is followed by another one.

Logs are read twice, once to see what there is and where, and then line by line, so that their length costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from pydantic import ValidationError

from merlin_agent import binding
from merlin_agent.binding import RefusedError
from merlin_agent.broker import ConflictError
from merlin_agent.post import Post, until_answered
from merlin_agent.studies import NotYetError, Studies
from merlin_study import failpoints, nested, outcomelog, wire, workspace

_log: Final = logging.getLogger(__name__)

AT_ONCE: Final = 32
"""Fences that are told side by side, at most."""


class Line(NamedTuple):
    """Where an outcome log says something of a fence; ``serial`` 0: its claim."""

    fence: int
    serial: int
    path: str
    offset: int
    length: int
    step: int = 0
    first: int = 0
    end: int = 0
    """A claim's tasks lie from ``first`` to ``end``, without that one."""


def find(directory: str, study: str, known: Sequence[tuple[int, int]]) -> list[Line]:
    """Return what the outcome logs of a workspace say of fences that are in no ``known`` range, by fence, claims first.

    Looks at marks are left out: what they found may have changed since, and who asked for them asks again.

    Raises:
        OSError: a log can't be read.
    """
    found, scans, names = [], set(), list[str]()
    lows = [low for low, _ in known]
    with contextlib.suppress(FileNotFoundError):  # whoever removed them left marks, by which tasks are found done
        names = sorted(os.listdir(directory))
    for name in names:
        if not name.endswith(".jsonl"):
            continue
        for line, entry in _entries(f"{directory}/{name}"):
            at = bisect_right(lows, line.fence) - 1
            if entry.study == study and not (at >= 0 and line.fence <= known[at][1]):
                found.append(line)
                if entry.start is not None and entry.start.chunk.scan:
                    scans.add(line.fence)
    return sorted(line for line in found if line.fence not in scans)


def together(lines: Sequence[Line]) -> Iterator[list[list[Line]]]:
    """Part lines that `find` returned by fence, and fences into groups that may be told side by side, one group after the other.

    No two fences of a group have a task in common. One without a claim, of which nobody knows what it held, is on its own.
    """
    group: list[list[Line]] = []
    for _, each in groupby(lines, key=lambda line: line.fence):
        fence = list(each)
        is_alone = fence[0].serial > 0 or any(other[0].serial > 0 for other in group)
        if group and (is_alone or len(group) == AT_ONCE or any(_share(fence, other) for other in group)):
            yield group
            group = []
        group.append(fence)
    if group:
        yield group


def _share(one: Sequence[Line], other: Sequence[Line]) -> bool:
    """Whether two fences may have a task in common; of one that two agents claimed, each claim counts."""
    return any(
        mine.step == theirs.step and mine.first < theirs.end and theirs.first < mine.end
        for mine in one
        for theirs in other
        if mine.serial == theirs.serial == 0
    )


def _entries(path: str) -> Iterator[tuple[Line, outcomelog.Entry]]:
    offset = 0
    with open(path, "rb") as file:
        for data in file:
            for entry in outcomelog.decode_lines(data).entries:
                if entry.start is not None:
                    chunk = entry.start.chunk
                    span = chunk.step, chunk.tasks.first, chunk.tasks.end
                    yield Line(chunk.fence, 0, path, offset, len(data), *span), entry
                elif entry.report is not None:
                    yield Line(entry.report.fence, entry.report.serial, path, offset, len(data)), entry
            offset += len(data)


def read(lines: Sequence[Line]) -> list[wire.Start | wire.Report]:
    """Return what some lines say.

    Raises:
        OSError: a log can't be read any more.
    """
    said: list[wire.Start | wire.Report] = []
    for line in lines:
        with open(line.path, "rb") as file:
            file.seek(line.offset)
            for entry in outcomelog.decode_lines(file.read(line.length)).entries:
                said += [each for each in (entry.start, entry.report) if each is not None]
    return said


_Asked = tuple[str, int, str]
"""Study, epoch, and which reading of the log asks."""


def _asked(recall: wire.Recall) -> _Asked:
    return recall.study, recall.epoch, recall.reading


class Reteller:
    """Heeds the recalls of an offer; see the module."""

    def __init__(self, post: Post, studies: Studies, *, agent: str, site: str, complain: Callable[[str], None]) -> None:
        self._post, self._studies = post, studies
        self._agent, self._site, self._complain = agent, site, complain
        self._tasks: dict[_Asked, asyncio.Task[None]] = {}
        self._asked: set[_Asked] = set()
        """What the offer asks us for: who is not asked any more has been followed by another agent."""

    async def ended(self) -> None:
        """Wait until nothing is being told any more."""
        await asyncio.gather(*self._tasks.values())

    def heed(self, recalls: Sequence[wire.Recall]) -> None:
        """Tell what an offer asks us for; what is being told already goes on, unless it is not asked for any more."""
        self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
        self._asked = {_asked(recall) for recall in recalls if recall.agent == self._agent}
        for recall in recalls:
            key = _asked(recall)
            if recall.agent == self._agent and key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._tell(recall))

    async def _tell(self, recall: wire.Recall) -> None:
        unread = ""
        try:
            found = await self._tell_workspace(recall)
        except (OSError, NotYetError, RefusedError, ValidationError) as error:
            self._complain(f"study {recall.study}: its workspace can't be read to complete its log: {error}")
            found, unread = False, _why(error)
        if found is None:
            _log.info("another agent completes the log of study %s, epoch %d", recall.study, recall.epoch)
            return
        word = wire.Recalled(
            agent=self._agent,
            site=self._site,
            epoch=recall.epoch,
            found=found,
            unread=unread,
            reading=recall.reading,
        )
        await self._store(recall.study, self._post.space.recalled(recall.study), word)
        _log.info("completed the log of study %s, epoch %d, found %s", recall.study, recall.epoch, found)

    async def _tell_workspace(self, recall: wire.Recall) -> bool | None:
        """Tell everything that is recorded here; False where the study has no workspace here, None where nobody asks any more."""
        root = await self._studies.root_of(recall.study, recall.plan)
        info = f"{root}/{workspace.INFO}"
        mark = await asyncio.to_thread(binding.read_mark, info)
        if mark is None or mark.study != recall.study:
            return False
        bound = wire.Bound(site=self._site, agent=self._agent, mark=mark.mark, workspace=root)
        await self._first(recall.study, self._post.space.bound(recall.study), bound)
        lines = await asyncio.to_thread(find, f"{info}/{workspace.OUTCOMES}", recall.study, recall.known)
        for group in together(lines):
            if _asked(recall) not in self._asked:
                return None
            await asyncio.gather(*(self._tell_fence(recall.study, fence) for fence in group))
        for asked in await asyncio.to_thread(_submissions, info):
            subject = self._post.space.child(recall.study, asked.key(recall.study))
            await self._first(recall.study, subject, asked)
        return True

    async def _tell_fence(self, study: str, lines: Sequence[Line]) -> None:
        """Tell a fence's claim and reports.

        Without the names of their first delivery, and not as the first of their subject: what came while the log was incomplete
        may stand there, and be of no use without what went before.
        """
        failpoints.reach("agent.retell")
        for entry in await asyncio.to_thread(read, lines):
            fence = entry.chunk.fence if isinstance(entry, wire.Start) else entry.fence
            await self._store(study, self._post.space.reports(study, fence), entry)

    async def _first(self, study: str, subject: str, entry: wire.Message) -> None:
        async def attempt() -> None:
            with contextlib.suppress(ConflictError):
                await self._post.store(study, subject, entry, first=True)

        await until_answered(attempt)

    async def _store(self, study: str, subject: str, entry: wire.Message) -> None:
        await until_answered(lambda: self._post.store(study, subject, entry))


def _why(error: Exception) -> str:
    """Say what can't be read and why, the path first."""
    path = error.filename if isinstance(error, OSError) else None
    said = f"{path}: {error.strerror}" if isinstance(error, OSError) and path is not None else str(error)
    return (said.splitlines() or [type(error).__name__])[0][: wire.MAX_TAIL]


def _submissions(info: str) -> list[nested.Submission]:
    """Return what the study's steps had asked for; what can't be read was cut short, and is asked for again."""
    found = []
    directory = f"{info}/{workspace.SUBMISSIONS}"
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            with contextlib.suppress(ValidationError), open(f"{directory}/{name}", "rb") as file:
                found.append(nested.Submission.model_validate_json(file.read()))
    return found
