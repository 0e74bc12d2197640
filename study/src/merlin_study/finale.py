"""What came of a study, in one small file of its workspace: for people, and for commands years later.

It is written once the study is over, by an agent that hears it from the operator, or by ``merlin run --local``. The outcome logs
beside it say the same task by task; where one of them is younger, something ran since, and the logs are read instead.
"""

from __future__ import annotations

from typing import Final, Literal

from merlin_study.wire import Failure, Message, SampleFacts

FILE: Final = "outcome.json"
"""In ``merlin_info``."""
MAX_FAILURES: Final = 20
MAX_BYTES: Final = 1 << 20


class StepFinale(Message):
    """One step's tasks by outcome."""

    name: str
    total: int
    succeeded: int = 0
    soft_failed: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0


class StepFailure(Message):
    """A task that did not succeed, and its step."""

    step: str
    failure: Failure


class Finale(Message):
    """The study's end. ``finished_at`` is UTC, ISO 8601; ``samples`` tells length and digest of the sample table."""

    version: Literal[1] = 1
    study: str
    plan: str
    succeeded: bool
    finished_at: str
    steps: tuple[StepFinale, ...]
    first_failures: tuple[StepFailure, ...] = ()
    samples: SampleFacts | None = None

    def to_file(self) -> bytes:
        """Return the file's text, one field a line."""
        return (self.model_dump_json(indent=1) + "\n").encode()
