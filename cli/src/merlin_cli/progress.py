"""What the engine says of a study, as the command line reads it: one JSON object a line, four times a second.

The models take what they need and leave the rest, so an engine may say more than this command knows. `merlin status` fills
the same models from a workspace, so that both commands draw the same bars.
"""

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StepCount(_Model):
    """One step's tasks by state; ``total`` is None until the samples are measured."""

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
        return self.succeeded + self.unsuccessful

    @property
    def unsuccessful(self) -> int:
        """Tasks that are over and did not succeed."""
        return self.soft_failed + self.failed + self.timed_out + self.cancelled


class Failed(_Model):
    """One task that did not succeed: which, how, where, and the end of its standard error."""

    task: int
    outcome: str
    code: int
    host: str = ""
    directory: str = ""
    tail: str = ""


class StepFailure(_Model):
    """A failed task and its step."""

    step: str
    failure: Failed


class Ref(_Model):
    """Which study: its name and its uid."""

    name: str = ""
    uid: str = ""


class FaultSaid(_Model):
    """Why a study was refused."""

    path: str = ""
    message: str


class Progress(_Model):
    """A study at one moment; ``agents``: how many could run something of it; ``children``: how many studies its steps started."""

    ref: Ref = Ref()
    faults: tuple[FaultSaid, ...] = ()
    warnings: tuple[FaultSaid, ...] = ()
    agents: int = 0
    children: int = 0
    refused_children: int = 0

    finished: bool = False
    succeeded: bool = False
    cancelled: bool = False
    stopped: bool = False
    steps: tuple[StepCount, ...] = ()
    workspace: str = ""
    rate: float | None = None
    remaining_seconds: float | None = None
    waiting_for: str = ""
    first_failures: tuple[StepFailure, ...] = ()
    doubled: int = 0

    @property
    def total(self) -> int:
        """Tasks that are known so far."""
        return sum(step.total or 0 for step in self.steps)

    @property
    def complete(self) -> bool:
        """Whether every step's number of tasks is known."""
        return all(step.total is not None for step in self.steps)

    @property
    def done(self) -> int:
        """Tasks with a final outcome."""
        return sum(step.done for step in self.steps)

    @property
    def unsuccessful(self) -> int:
        """Tasks that are over and did not succeed."""
        return sum(step.unsuccessful for step in self.steps)
