"""How long to wait after failures that go on, and which of them to tell. Pure: time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FIRST: Final = 0.2
"""Seconds to wait after a failure that came after some success."""
LONGEST: Final = 10.0
"""Seconds to wait at most, however long it goes on: so much later is noticed that it works again."""
TOLD_AGAIN: Final = 600.0
"""Seconds until a failure that was told is told again."""


@dataclass(slots=True)
class Setbacks:
    """The failures of one thing that is tried again and again."""

    _pause: float = 0.0
    _told: str = ""
    _told_at: float = -math.inf

    def add(self, why: str, now: float, *, got_on: bool) -> tuple[float, bool]:
        """Note a failure at ``now`` (monotonic seconds); return the seconds to wait, and whether it is to be told.

        ``got_on``: something came of the attempt before it failed, so that the pauses begin anew.
        """
        self._pause = FIRST if got_on or not self._pause else min(2 * self._pause, LONGEST)
        is_told = why != self._told or now - self._told_at >= TOLD_AGAIN
        if is_told:
            self._told, self._told_at = why, now
        return self._pause, is_told
