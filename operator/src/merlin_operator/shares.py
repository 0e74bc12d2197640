"""Whose turn it is among studies that compete: start-time fair queueing (Goyal, Vin and Cheng, 1996) in task-seconds. Pure.

What a study was served counts only while it competes. One that comes, or comes back from a suspension, a barrier or a time
without agents, goes on where those are that competed meanwhile: it neither stops them until it has caught up, nor has to wait
for them because it was there alone before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

MOST_CLOCKS: Final = 10_000
"""Routes whose time is remembered; the one that nothing was issued on for longest is forgotten first."""

Key = tuple[str, str, str]
"""Site, queue and shape."""


@dataclass(slots=True)
class Share:
    """What a study was served so far, in task-seconds, as compared with others of the priority and site ``among``."""

    served: float = 0.0
    among: tuple[int, str] | None = None


@dataclass(slots=True)
class Clocks:
    """How far those who compete have come, by priority and route, and who competed in the last round."""

    competing: frozenset[str] = frozenset()
    _times: dict[tuple[int, Key], float] = field(default_factory=dict)

    def enter(self, share: Share, priority: int, wanted: Collection[Key]) -> None:
        """Let a study compete that did not in the last round, for some routes of one site."""
        times = [time for key in wanted if (time := self._times.get((priority, key))) is not None]
        among = (priority, next(iter(wanted))[0])
        own = share.served if share.among == among else 0.0
        share.served = max(own, min(times, default=0.0))
        share.among = among

    def tick(self, served: float, priority: int, key: Key) -> None:
        """Note that it is the turn of a study that was ``served`` so much, on a route."""
        time = max(served, self._times.pop((priority, key), 0.0))
        self._times[priority, key] = time
        if len(self._times) > MOST_CLOCKS:
            del self._times[next(iter(self._times))]
