"""What the engine knows of a study, as plain values: all that status, metrics and progress bars are made from.

The engine makes a `StudyView` whenever one is asked for; nothing that reads it can change the study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from merlin_study import wire
from merlin_study.errors import Fault


@dataclass(frozen=True, slots=True)
class StudyRef:
    """Which Study is meant: its object and its creation."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class StepView:
    """One step's tasks by state. ``total`` is None until the samples are measured.

    ``running`` counts tasks in chunks that an agent has started, ``queued`` those published and not started,
    ``retrying`` those that wait for their retry delay. ``lost`` counts executions lost with their agent (each is issued again).
    """

    name: str
    total: int | None
    succeeded: int = 0
    soft_failed: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    running: int = 0
    queued: int = 0
    retrying: int = 0
    lost: int = 0

    @property
    def done(self) -> int:
        """Tasks with a final outcome."""
        return self.succeeded + self.soft_failed + self.failed + self.timed_out + self.cancelled


@dataclass(frozen=True, slots=True)
class FailureView:
    """One task that did not succeed."""

    step: str
    failure: wire.Failure


FULL: Final = (
    "the broker's store is full: no chunks go out, and results wait in the workspace; raise its limit (nats.maxFileStore of the "
    "chart), or delete Studies that are over"
)
"""What a study's user is told where the broker has no room."""

COUNTED: Final = ("succeeded", "soft_failed", "failed", "timed_out", "cancelled", "lost", "redundant", "doubled")
"""What metrics count over all studies; see `StudyView.counted`."""


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study as its user should see it.

    ``faults`` is not empty exactly where the study was refused. ``unrolled``: every task has been issued at least once.
    ``rate`` is tasks a second over the last minute, ``remaining_seconds`` an estimate from it (None: unknown).
    ``started_at`` and ``finished_at`` are Unix times by the broker's clock. ``waiting_for`` says in one sentence why nothing moves, or is empty.
    ``doubled`` counts executions that ran again without a retry, a restart or a verdict of loss; it must stay 0.
    ``redundant`` counts results that came after a final outcome and were not applied.
    ``ready`` counts tasks that could be handed out and are not: what is out is bounded.
    ``progressed_at`` is when an agent last reported, else when the study began; a Unix time by the broker's clock.
    ``inherited`` tells, in the order of `COUNTED`, what stood when this operator first read the study's log: another
    operator counted it.
    ``warnings`` tells what was asked of the study after it was accepted and is not built yet, and which studies its
    steps asked for in vain. ``notes`` are what its author should know of the specification, one line each.
    ``full_on``: hosts that find no room in its workspace. ``lost_log``: what has to be done before a log that was lost can be
    whole again. ``ttl``: seconds after its end until it is to be deleted (None: never).
    ``parent`` is the uid of the study whose task started this one; ``children`` counts the studies that its own tasks asked
    for and that were or will be made, ``refused_children`` those that were refused, ``unborn`` those of which nothing has become yet.
    ``broker_problem`` says why the broker can't be reached or has no room, ``broker_note`` what is wanting while it can.
    ``suspended``: its user holds it; ``stopped``: a task asked to stop the agents, and a restart goes on. ``exhausted``
    counts tasks that were failed because too many agents in turn were lost with them. ``restarted``: the id of the last
    restart after which all was over (empty: none is known).
    """

    ref: StudyRef
    generation: int
    faults: tuple[Fault, ...] = ()
    steps: tuple[StepView, ...] = ()
    workspace: str = ""
    site: str = ""
    plan_hash: str = ""
    unrolled: bool = False
    finished: bool = False
    cancelled: bool = False
    suspended: bool = False
    stopped: bool = False
    exhausted: int = 0
    restarted: str = ""
    ttl: int | None = None
    full_on: tuple[str, ...] = ()
    lost_log: str = ""
    rate: float | None = None
    remaining_seconds: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    first_failures: tuple[FailureView, ...] = ()
    last_failures: tuple[FailureView, ...] = ()
    doubled: int = 0
    redundant: int = 0
    ready: int = 0
    progressed_at: float | None = None
    inherited: tuple[int, ...] = ()
    agents: int = 0
    waiting_for: str = ""
    broker_problem: str = ""
    broker_note: str = ""
    warnings: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    parent: str = ""
    children: int = 0
    refused_children: int = 0
    unborn: int = 0

    @property
    def total(self) -> int:
        """Tasks of the study that are known so far."""
        return sum(step.total or 0 for step in self.steps)

    @property
    def done(self) -> int:
        """Tasks with a final outcome."""
        return sum(step.done for step in self.steps)

    @property
    def counted(self) -> tuple[int, ...]:
        """What `COUNTED` names, over all steps."""
        of_steps = (sum(getattr(step, name) for step in self.steps) for name in COUNTED[:-2])
        return (*of_steps, self.redundant, self.doubled)

    @property
    def succeeded(self) -> bool:
        """Whether the study is over and every task of it succeeded."""
        return self.finished and not self.faults and all(step.succeeded == step.total for step in self.steps)
