"""Which task speaks: a token for each task that runs, in its environment, and forgotten when it ends.

A token proves no more than that its bearer was started by a task of this agent; the socket's own checks keep other users out.
Called from slots' threads and from the event loop; each call is one operation on a dictionary.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from merlin_study import nested


@dataclass(slots=True, eq=False)
class Speaker:
    """A running task: the study, the step and the task's index; ``turn`` as `merlin_study.nested.submission_key` has it."""

    study: str
    step: str
    task: int
    turn: int
    info: str
    """The study's ``merlin_info``."""
    asked: int = field(default=0)
    """How many studies this execution has asked for."""


class Badges:
    """The tokens that count at the moment."""

    def __init__(self) -> None:
        self._speakers: dict[str, Speaker] = {}

    def issue(self, speaker: Speaker) -> str:
        """Return a new token for a task."""
        token = secrets.token_urlsafe(16)
        self._speakers[token] = speaker
        return token

    def revoke(self, token: str) -> None:
        """Forget a token: its task has ended."""
        self._speakers.pop(token, None)

    def speaker(self, token: str) -> Speaker | None:
        """Return who bears a token; None where nobody does any more."""
        return self._speakers.get(token)


def variables(token: str, cores: int) -> dict[bytes, bytes]:
    """Return what a task's environment has of its own."""
    return {nested.TOKEN.encode(): token.encode(), nested.CORES.encode(): b"%d" % cores}
