"""How many short tasks a slot takes at once: so many that handing them over costs little, so few that nobody waits for them."""

from __future__ import annotations

from typing import Final

_AT_ONCE: Final = 0.06
"""Seconds of work taken at once."""
_AHEAD: Final = 0.15
"""How long a task is at most for which the next one is made ready while it runs: the pause between two is some percent of it."""
_MOST: Final = 32
_WEIGHT: Final = 0.2


class Pace:
    """How long the tasks of a step take; slots' threads tell it, and a figure that is a task old does no harm."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, seconds: float, *, warm: bool) -> None:
        """Note how long a task took; one that has to be started counts as long: nothing is gained by taking more of them."""
        taken = seconds if warm else max(seconds, 2 * _AHEAD)
        self._seconds = taken if self._seconds is None else (1 - _WEIGHT) * self._seconds + _WEIGHT * taken

    @property
    def appetite(self) -> int:
        """How many to take at once."""
        if self._seconds is None:
            return 1
        return max(1 + (self._seconds < _AHEAD), min(_MOST, int(_AT_ONCE / max(self._seconds, 1e-6))))
