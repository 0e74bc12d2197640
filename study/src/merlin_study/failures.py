"""The failures that are kept in full: the first of a study and the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap

KEPT_FAILURES: Final = 5
"""First and last failures that are kept in full."""


class Failures:
    """What tasks said when they failed for good, each as (step, failure) in the log's order."""

    def __init__(self) -> None:
        self.first: list[tuple[int, wire.Failure]] = []
        self.last: deque[tuple[int, wire.Failure]] = deque(maxlen=KEPT_FAILURES)

    def keep(self, step: int, failure: wire.Failure) -> None:
        """Keep a failure among the first while there is room, then among the last."""
        if len(self.first) < KEPT_FAILURES:
            self.first.append((step, failure))
        else:
            self.last.append((step, failure))

    def forget(self, again: Sequence[Bitmap]) -> None:
        """Drop those of tasks that run ``again``, a bitmap per step."""

        def stands(told: tuple[int, wire.Failure]) -> bool:
            return told[1].task not in again[told[0]]

        self.first = list(filter(stands, self.first))
        self.last = deque(filter(stands, self.last), maxlen=KEPT_FAILURES)
