"""How many files and directories a second may be made in workspaces: a parallel file system's metadata server is shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_BURST: Final = 1.0
"""Seconds' worth that may be made at once."""
_LOOK_EVERY: Final = 0.2


class Allowance:
    """A bucket that fills at a rate; slots' threads take from it what a task is going to make.

    A task may take more than there is: the bucket owes it then, and the next one waits the longer. So a task that makes more
    than the bucket holds is served, too, and the rate is kept all the same.
    """

    def __init__(self, rate: Callable[[], float | None], clock: Callable[[], float] = time.monotonic) -> None:
        """Be full; ``rate`` returns entries a second, None for as many as one likes."""
        self._rate, self._clock = rate, clock
        self._guard = threading.Lock()
        self._at = clock()
        self._has: float | None = None

    def wait(self, count: int) -> float:
        """Take so many; return 0, or after how many seconds to ask again where nothing was taken."""
        rate = self._rate()
        if rate is None or not count:
            return 0.0
        with self._guard:
            now = self._clock()
            has = rate * _BURST if self._has is None else min(rate * _BURST, self._has + (now - self._at) * rate)
            self._at = now
            self._has = has - count if has > 0 else has
            return 0.0 if has > 0 else max(0.001, -has / rate)

    def take(self, count: int, *, patient: bool, given_up: Callable[[], bool]) -> bool:
        """Take so many, waiting for them where ``patient``, until given up; return whether they were taken."""
        while (seconds := self.wait(count)) > 0:
            if not patient or given_up():
                return False
            time.sleep(min(seconds, _LOOK_EVERY))
        return True


def unlimited() -> Allowance:
    """Return one that never waits."""
    return Allowance(lambda: None)


def share(own: float | None, site: float | None, agents: int) -> float | None:
    """Return an agent's rate: its own limit and its part of the site's, whichever is less.

    ``agents`` is how many the operator says that the site has, 0 where it has not said yet.
    """
    limits = [own] if own is not None else []
    if site is not None:
        limits.append(site / max(1, agents))
    return min(limits, default=None)
