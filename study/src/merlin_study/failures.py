"""The failures that are kept in full: the first of a study and the last."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

KEPT_FAILURES: Final = 5
"""First and last failures that are kept in full."""
UNCOUNTED: Final = 1
"""The exit code of a task that counted samples and did not come to a number."""


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

    def keep_lost(self, step: int, tasks: TaskSet, agents: Sequence[str]) -> int:
        """Keep the failure of tasks that were lost with one agent after the other; return its exit code."""
        named = ", ".join(dict.fromkeys(agents))
        tail = f"lost with {len(agents)} agents, or hosts of theirs, in turn, so it is not tried again: {named}"
        self.keep(step, _told(tasks, Outcome.SOFT_FAILED, -signal.SIGKILL, agents[-1], tail))
        return -signal.SIGKILL

    def keep_uncounted(self, step: int, tasks: TaskSet, agent: str, why: str) -> None:
        """Keep the failure of the task that counted samples and told no number of them that can be; ``why`` says what was wrong."""
        said = f"{agent} counted the samples: {why}"
        self.keep(step, _told(tasks, Outcome.FAILED, UNCOUNTED, agent, said))

    def forget(self, again: Sequence[Bitmap]) -> None:
        """Drop those of tasks that run ``again``, a bitmap per step."""

        def stands(told: tuple[int, wire.Failure]) -> bool:
            return told[1].task not in again[told[0]]

        self.first = list(filter(stands, self.first))
        self.last = deque(filter(stands, self.last), maxlen=KEPT_FAILURES)


def _told(tasks: TaskSet, outcome: Outcome, code: int, host: str, tail: str) -> wire.Failure:
    """Return the failure of the first of some tasks, in words of the ledger's own."""
    return wire.Failure(
        task=tasks.first, outcome=outcome, code=code, host=host, directory="", tail=tail[: wire.MAX_TAIL]
    )
