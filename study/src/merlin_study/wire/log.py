"""What stands in a study's log on the report stream: what agents tell, and the operator's verdicts."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from merlin_study.outcome import Outcome
from merlin_study.taskset import MAX_WIDTH, TaskSet
from merlin_study.wire.chunk import Chunk
from merlin_study.wire.message import Message


class Bound(Message):
    """The first claim of a study: the site that runs it from now on, and the mark in its workspace."""

    kind: Literal["bound"] = "bound"
    site: str
    agent: str
    mark: str
    workspace: str


class Start(Message):
    """An agent's claim of a chunk. It carries the chunk, because it outlives every copy of it."""

    kind: Literal["start"] = "start"
    agent: str
    chunk: Chunk


def _bounded(tasks: TaskSet) -> TaskSet:
    """Refuse a range that no chunk has: as bits, two integers of a message would be more than there is memory."""
    if tasks.width > MAX_WIDTH:
        raise ValueError(f"expected tasks of one chunk, found a range of {tasks.width}")
    return tasks


class Result(Message):
    """Tasks that ended alike: one exit code (negative: that signal) and the outcome that the agent read from it."""

    outcome: Outcome
    code: int
    tasks: Annotated[TaskSet, AfterValidator(_bounded)]


class Failure(Message):
    """One task that did not succeed, told in full.

    With the outcome LOST it has no result and is handed back: it took a host with it of the several that it ran over.
    """

    task: int
    outcome: Outcome
    code: int
    host: str
    directory: str
    tail: str = ""


class SampleFacts(Message):
    """What the implicit first step found: how many samples, how many columns, and the file's SHA-256."""

    count: int
    columns: int
    digest: str


class Report(Message):
    """What came of a chunk's tasks since the last report of this fence.

    ``serial`` counts the fence's reports from 1. ``final`` gives the chunk up: tasks of it without a result are handed
    back. ``seconds`` is the sum of the tasks' run times.
    """

    kind: Literal["report"] = "report"
    agent: str
    fence: int
    serial: int
    step: int
    attempt: int
    results: tuple[Result, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: float = Field(default=0.0, ge=0.0)
    samples: SampleFacts | None = None
    refused: str = ""
    final: bool = False


class Lost(Message):
    """The operator's verdict that a fence's holder is gone."""

    kind: Literal["lost"] = "lost"
    fence: int
    agent: str


class Excuse(Message):
    """Tasks of a step that failed on a quarantined host at their ``attempt``-th try, in ``seconds`` together."""

    step: int
    attempt: int = Field(ge=1)
    tasks: TaskSet
    seconds: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)


class Excused(Message):
    """The operator's verdict that failures were a host's and not the tasks': these run again, and what depends on them.

    ``token`` tells one such verdict from the others. Fences below ``below`` are of an earlier generation.
    """

    kind: Literal["excused"] = "excused"
    token: str
    host: str
    failed: tuple[Excuse, ...]
    below: int


class Noted(Message):
    """The first entry of a study's verdicts: which requests stood in it from the beginning, so that they ask for nothing."""

    kind: Literal["noted"] = "noted"
    tokens: tuple[str, ...] = ()


class Withdrawn(Message):
    """The operator's word that a chunk which nobody had started will not be: the first message of its fence's subject."""

    kind: Literal["withdrawn"] = "withdrawn"
    fence: int


class Dropped(Message):
    """The operator's verdict that what waits of a study is cancelled, on one queue or on all (``queue`` None).

    Fences below ``below`` hand nothing back: what they leave is cancelled, too. ``token`` is the text that asked for it.
    """

    kind: Literal["dropped"] = "dropped"
    cause: Literal["purge", "cancel", "hard-fail"]
    token: str = ""
    queue: str | None = None
    below: int


class Restarted(Message):
    """The operator's verdict that tasks which are over run again.

    ``steps`` are indices into the plan's steps; ``tasks`` empty: all of them; ``codes`` None: all but successes (a signal
    is a negative code). What was cancelled because of such a task comes back with it; with ``dependants`` all that depends
    on it runs again. With ``scan`` successes among these are looked at: those without a mark run again, too. Fences below ``below`` are of an earlier generation.
    """

    kind: Literal["restarted"] = "restarted"
    token: str
    steps: tuple[int, ...]
    tasks: tuple[TaskSet, ...] = ()
    codes: tuple[int, ...] | None = None
    dependants: bool = False
    scan: bool = False
    below: int


class Recalled(Message):
    """An agent's word that it told all that the study's workspace at its site records (or that it sees none: not ``found``).

    ``unread``: why it could not tell all, which says nothing of what there is; not ``found``, too. ``reading``: as the recall has it.
    """

    kind: Literal["recalled"] = "recalled"
    agent: str
    site: str
    epoch: int
    found: bool
    unread: str = ""
    reading: str = ""


class Repaired(Message):
    """The operator's verdict that the log says all that workspaces record; no claim of an earlier epoch counts from here on.

    ``entries``: how many entries of the log it was judged by. Where fewer come before it, some were lost while it was on its way,
    and it says nothing of the log that is left.
    """

    kind: Literal["repaired"] = "repaired"
    epoch: int
    entries: int = Field(default=0, ge=0)


Entry = Bound | Start | Report | Recalled | Withdrawn | Noted | Lost | Excused | Dropped | Restarted | Repaired
"""Anything in a study's part of the report stream."""

VERDICTS: Final = (Noted, Lost, Excused, Dropped, Restarted, Repaired)
"""What stands on the subject of verdicts, appended by compare-and-set."""

LogEntry = Annotated[Entry, Field(discriminator="kind")]
"""An entry as it is parsed."""

_LOG: Final[TypeAdapter[Entry]] = TypeAdapter(LogEntry)


def decode_log(data: bytes) -> Entry:
    """Parse a log entry.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _LOG.validate_json(data)
