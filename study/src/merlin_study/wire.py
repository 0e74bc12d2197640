"""What travels between operator and agents, inside the envelope of `merlin_study.seal`.

    operator → task stream      Chunk, Cursor
    agent, operator → report stream   Bound, Start, Report, Recalled (agents), Withdrawn, Noted, Lost, Dropped, Restarted (operator):
                                      the log that the ledger folds
    operator → control stream   PlanDocument (a plan's JSON as it is), Offer, Control: last value counts
    agent → operator            Heartbeat, not stored

Models are strict and closed: an unknown field, a wrong type or a version of another time is refused, never guessed at.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

SCHEMA_VERSION: Final = 1
MAX_REPORT_BYTES: Final = 64 * 1024
MAX_EXCEPTIONS: Final = 20
"""Failures that a report tells in full; the rest travel as masks per exit code."""
MAX_TAIL: Final = 512
"""Characters of standard error that travel with a failure."""
BUCKETS: Final = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)
"""Upper bounds, in seconds, of what a `Spread` counts; simulations run for days."""
MAX_QUEUES_TOLD: Final = 32
"""Queues of which a heartbeat tells figures; further ones are told together."""


MAX_FULL: Final = 100
"""Studies of which a heartbeat tells that their workspace is full."""


class Message(BaseModel):
    """The base of all messages: immutable, closed, strict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def encode(self) -> bytes:
        """Return the message as JSON."""
        return self.model_dump_json().encode()


class LostHolder(Message):
    """A fence that was called lost, and who held it: its outcome log tells what it still finished."""

    fence: int
    agent: str


class Chunk(Message):
    """The unit of delivery: a range of one step's tasks, to be tried for the ``attempt``-th time.

    ``step`` is an index into the plan's steps; ``samples`` the length of the sample table (0: none).
    ``restart`` asks for the step's restart script where it has one. ``lost`` names earlier holders of these tasks.
    ``fresh``: a mark of an earlier success says nothing, the tasks run again. ``rehearse``: seconds after which each task
    is reported as done instead of being run; None runs it. ``generation`` counts the restarts that had been asked of the
    study by then.
    """

    study: str
    plan: str
    epoch: int
    fence: int = Field(ge=1)
    step: int = Field(ge=0)
    tasks: TaskSet
    attempt: int = Field(ge=1)
    samples: int = 0
    restart: bool = False
    lost: tuple[LostHolder, ...] = ()
    fresh: bool = False
    rehearse: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    generation: int = Field(default=0, ge=0)


class Cursor(Message):
    """How far publication got: written in one batch with the chunks that it counts."""

    study: str
    plan: str
    epoch: int
    next_fence: int


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


class Result(Message):
    """Tasks that ended alike: one exit code (negative: that signal) and the outcome that the agent read from it."""

    outcome: Outcome
    code: int
    tasks: TaskSet


class Failure(Message):
    """One task that did not succeed, told in full."""

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
    seconds: float = 0.0
    samples: SampleFacts | None = None
    refused: str = ""
    final: bool = False


class Lost(Message):
    """The operator's verdict that a fence's holder is gone."""

    kind: Literal["lost"] = "lost"
    fence: int
    agent: str


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
    on it runs again. Fences below ``below`` are of an earlier generation.
    """

    kind: Literal["restarted"] = "restarted"
    token: str
    steps: tuple[int, ...]
    tasks: tuple[TaskSet, ...] = ()
    codes: tuple[int, ...] | None = None
    dependants: bool = False
    below: int


class Recalled(Message):
    """An agent's word that a site told all that the study's workspace there records (or that there is none: not ``found``)."""

    kind: Literal["recalled"] = "recalled"
    agent: str
    site: str
    epoch: int
    found: bool


Entry = Bound | Start | Report | Recalled | Withdrawn | Noted | Lost | Dropped | Restarted
"""Anything in a study's part of the report stream."""

VERDICTS: Final = (Noted, Lost, Dropped, Restarted)
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


class AllocationFacts(Message):
    """The batch job that an agent runs in; ``ends_at`` is a Unix time (0: no limit known)."""

    scheduler: str = "none"
    job_id: str = ""
    nodes: int = 1
    ends_at: float = 0.0


_COUNTS: Final = len(BUCKETS) + 1


class Spread(Message):
    """How durations are spread since the agent started: how many up to each of `BUCKETS`, and above; their sum in seconds."""

    counts: tuple[NonNegativeInt, ...] = Field(default=(0,) * _COUNTS, min_length=_COUNTS, max_length=_COUNTS)
    seconds: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)


class QueueFigures(Message):
    """What an agent ran of a queue since it started: ended executions by outcome, how long they ran, how long they had waited.

    A task waits from the publication of its chunk until it starts, by the clocks of broker and agent.
    """

    queue: str
    outcomes: dict[Outcome, NonNegativeInt] = Field(default_factory=dict)
    ran: Spread = Spread()
    waited: Spread = Spread()


class Heartbeat(Message):
    """An agent's sign of life and what it can take; ``slots`` are cores. ``queues`` empty: any. ``holds``: fences started and not finished.

    ``nodes``: over how many hosts of so many cores it can start a task, its own among them; the one agent that leads those of its
    allocation says more than 1. ``full``: studies whose workspace has no room. ``leaving``: the agent drains and takes nothing
    more; ``left``: this is its last word. ``figures`` only ever grow.
    """

    agent: str
    site: str
    host: str
    pid: int
    version: str
    slots: int
    gpus: int = 0
    nodes: int = 1
    busy: int = 0
    queues: tuple[str, ...] = ()
    allocation: AllocationFacts = AllocationFacts()
    holds: tuple[tuple[str, int], ...] = ()
    done: int = 0
    refused: int = 0
    figures: tuple[QueueFigures, ...] = Field(default=(), max_length=MAX_QUEUES_TOLD + 1)
    problems: tuple[str, ...] = ()
    full: tuple[str, ...] = Field(default=(), max_length=MAX_FULL)
    leaving: bool = False
    left: bool = False


class Consumer(Message):
    """A pull consumer of the task stream that the operator made: agents bind to it by name."""

    name: str
    queue: str
    shape: str
    band: Literal["urgent", "bulk"]


class Timing(Message):
    """The clocks that operator and agents share, all in seconds (DESIGN: heartbeat 10, lost 60, presence 30 and 90)."""

    heartbeat: float = 10.0
    lost_after: float = 60.0
    presence: float = 30.0
    presence_stale: float = 90.0


class Recall(Message):
    """A study whose log was lost: ``agent`` shall tell what the workspace records, everybody else what it holds of it."""

    study: str
    plan: str
    epoch: int
    agent: str


class Offer(Message):
    """What agents of a site may pull from now on, and which studies' logs they shall tell anew."""

    consumers: tuple[Consumer, ...] = ()
    timing: Timing = Timing()
    recalls: tuple[Recall, ...] = ()


class Control(Message):
    """The word on a study that agents check at intake and hear while running.

    ``cancelled``: it was deleted; nothing of it runs any more. Of chunks whose fence is below ``drop_below`` nothing more
    starts, and of those below ``kill_below`` what runs ends, too. Agents that were started for this study leave where
    ``retired`` is set, or names all queues that they serve. ``retained``: deleted, and the broker keeps what it holds of it.
    ``name``: what the study calls itself, by which agents know one that they were started for before it had a uid.
    """

    study: str
    name: str = ""
    cancelled: bool = False
    drop_below: int = 0
    kill_below: int = 0
    retired: bool = False
    retired_queues: tuple[str, ...] = ()
    retained: bool = False
