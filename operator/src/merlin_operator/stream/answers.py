"""What comes of asking the broker: a message, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass


class Outage(Exception):  # noqa: N818 a state of the world, not a mistake
    """The broker can't be reached, or does not answer."""


class Absent(Outage):
    """There is no such stream: somebody deleted it, or it was not made yet."""


class Missing(Outage):
    """The message or consumer that was asked for is not there."""


class Conflict(Exception):  # noqa: N818
    """A compare-and-set found another value: somebody else wrote first, or an earlier write of ours happened after all."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream: where it lies, when the broker stored it (Unix seconds), what it holds."""

    sequence: int
    subject: str
    at: float
    data: bytes
