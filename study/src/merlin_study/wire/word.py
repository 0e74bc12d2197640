"""What the operator tells agents by last value: what they may pull, what one of them shall do, and what became of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merlin_study.wire.message import Message


class Consumer(Message):
    """A pull consumer of the task stream that the operator made: agents bind to it by name."""

    name: str
    queue: str
    shape: str
    band: Literal["urgent", "bulk"]


class Timing(Message):
    """The clocks that operator and agents share, all in seconds."""

    heartbeat: float = 10.0
    lost_after: float = 60.0
    presence: float = 30.0
    presence_stale: float = 90.0


class Origin(Message):
    """What the logs of a namespace stand on, beside which it is stored.

    Logs are whole under ``since`` (Unix seconds by the broker's clock), on these servers (processes of one, by the name that each gives
    itself) or on any of the ``cluster``, and as long as the streams (tasks, reports, control) are these creations. ``made``: when these were found
    to be new. What is older than that has lost its log, what is older than ``since`` only may have lost some of it.
    """

    servers: tuple[str, ...]
    cluster: str = ""
    streams: tuple[str, ...]
    since: int
    made: int


class Recall(Message):
    """A study whose log may lack something: ``agent`` shall tell what the workspace records.

    ``known``: ranges of fences (first, last) of which the log lacks nothing. ``reading``: which operator's reading of the log asks;
    the agent repeats it (`Recalled`), so that whoever asked knows the answer from one to somebody else.
    """

    study: str
    plan: str
    epoch: int
    agent: str
    known: tuple[tuple[int, int], ...] = ()
    reading: str = ""


class Quarantine(Message):
    """A host that gets nothing until ``until`` (Unix seconds by the broker's clock), and then one chunk at a time to prove itself.

    ``times``: how often in turn it was quarantined. ``why`` is one sentence for people.
    """

    site: str
    host: str
    since: float
    until: float
    times: int = 1
    why: str = ""


class Quarantines(Message):
    """All hosts of a namespace that are quarantined: what a new operator goes on with."""

    hosts: tuple[Quarantine, ...] = ()


class Offer(Message):
    """What agents of a site may pull from now on, and which studies' logs one of them shall complete.

    Agents of a host in ``quarantined`` take nothing, those of one in ``proving`` one chunk at a time. ``agents``: how many the site has,
    up to the next power of two, so that offers change seldom.
    """

    consumers: tuple[Consumer, ...] = ()
    timing: Timing = Timing()
    recalls: tuple[Recall, ...] = ()
    quarantined: tuple[str, ...] = ()
    proving: tuple[str, ...] = ()
    agents: int = 0


class Assignment(Message):
    """What one agent is told to do. ``number`` is one more than its heartbeat named last, so an older word is never obeyed again.

    ``leave``: take nothing more, let what runs end, and go. ``queues``: serve these from now on (empty: all); None: as before.
    """

    agent: str
    number: int = Field(ge=1)
    leave: bool = False
    queues: tuple[str, ...] | None = None


class Control(Message):
    """The word on a study that agents check at intake and hear while running.

    ``cancelled``: it was deleted; nothing of it runs any more. Of chunks whose fence is below ``drop_below`` nothing more
    starts, and of those below ``kill_below`` what runs ends, too. Agents that were started for this study leave where
    ``retired`` is set, or names all queues that they serve. ``retained``: deleted, and the broker keeps what it holds of it.
    ``name``: what the study calls itself, by which agents know one that they were started for before it had a uid.
    ``epoch``: what was issued in an earlier one and does not run yet is not run any more.
    """

    study: str
    epoch: int = 1
    name: str = ""
    cancelled: bool = False
    drop_below: int = 0
    kill_below: int = 0
    retired: bool = False
    retired_queues: tuple[str, ...] = ()
    retained: bool = False
