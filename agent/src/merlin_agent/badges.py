"""Which task speaks: a token for each task that runs, in its environment, and forgotten when it ends.

A token proves no more than that its bearer was started by a task of this agent; the socket's own checks keep other users out.
Called from slots' threads and from the event loop; each call is one operation on a dictionary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from merlin_study import nested

_BYTES: Final = 18
_LETTERS: Final = 24
"""Of a token, and the letters that are written for them."""


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
        return self.issue_all([speaker])[0]

    def issue_all(self, speakers: Sequence[Speaker]) -> list[str]:
        """Return a new token for each of several tasks."""
        random = secrets.token_urlsafe(
            _BYTES * len(speakers)
        )  # whole groups of three bytes: each token is some of its letters
        tokens = [random[at : at + _LETTERS] for at in range(0, len(random), _LETTERS)]
        self._speakers.update(zip(tokens, speakers, strict=True))
        return tokens

    def revoke(self, token: str) -> None:
        """Forget a token: its task has ended."""
        self._speakers.pop(token, None)

    def speaker(self, token: str) -> Speaker | None:
        """Return who bears a token; None where nobody does any more."""
        return self._speakers.get(token)


def variables(cores: int) -> dict[bytes, bytes]:
    """Return what tasks of so many cores have in their environment, besides their token."""
    return {nested.CORES.encode(): b"%d" % cores}
