"""When cores will be free again, from how long tasks of each step took: what may run before a task that waits for more. Pure.

A task that needs more than is free has the next turn, and what becomes free is kept for it. Until the last of it is free, others may use
it that will have ended by then (backfill). Nothing is promised by an estimate: one that is too short delays the waiting task by the
rest of a task that had begun, once, since nothing new is started beyond the time that was foreseen.

Where a task needs several hosts, the one that will be ready last tells the others how long they may go on with what ends by then; see `wide`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from merlin_agent.resources import Share
from merlin_study.shape import Shape

_MEMORY: Final = 50
"""Tasks of a step whose times are remembered."""
_LEAST: Final = 3
"""Tasks that have to be known before anything is said of a step."""
_SLACK: Final = 1.1
"""A task may take so much longer than the longest one that is remembered."""

Step = tuple[str, int]
"""A study's uid, and the step's number."""


class Durations:
    """How long tasks of each step took here."""

    def __init__(self) -> None:
        self._seconds: dict[Step, deque[float]] = {}

    def note(self, step: Step, seconds: float) -> None:
        """Remember one more."""
        self._seconds.setdefault(step, deque(maxlen=_MEMORY)).append(seconds)

    def most(self, step: Step, needs: Shape) -> float | None:
        """Return the seconds that a task takes at most, as far as one can tell; None where one can't."""
        seen = self._seconds.get(step, ())
        if len(seen) >= _LEAST:
            return max(seen) * _SLACK
        return needs.least_seconds or None  # what it declares, up to the end of its class


@dataclass(frozen=True, slots=True)
class Running:
    """A task that runs: its step, when it began, when it will have ended (None: nobody knows), and what it has."""

    step: Step
    began: float
    ends: float | None
    share: Share


def free_at(needs: Shape, running: Iterable[Running], *, cores: int, gpus: int, now: float) -> float:
    """Return when so much will be free, where ``cores`` and ``gpus`` are now.

    What is not known, or takes longer than was foreseen, may end at any time: then it is ``now``, and nothing is put before.
    """
    ends = ((now if each.ends is None else max(now, each.ends), each.share) for each in running)
    return _when_free(needs, ends, cores=cores, gpus=gpus, now=now)[0]


def ready_at(needs: Shape, running: Iterable[Running], *, cores: int, gpus: int, now: float) -> float | None:
    """Return when so much will be free as far as that is known, and None where it is not; else as `free_at`."""
    known = ((max(now, each.ends), each.share) for each in running if each.ends is not None)
    when, is_enough = _when_free(needs, known, cores=cores, gpus=gpus, now=now)
    return when if is_enough else None


def _when_free(
    needs: Shape, ends: Iterable[tuple[float, Share]], *, cores: int, gpus: int, now: float
) -> tuple[float, bool]:
    """Return when so much is free, one share after the other, and whether it ever is; if not, when the last one is."""
    for when, share in sorted(ends, key=itemgetter(0)):
        if cores >= needs.cores and gpus >= needs.gpus:
            break
        cores, gpus, now = cores + share.cores, gpus + len(share.gpus), when
    return now, cores >= needs.cores and gpus >= needs.gpus
