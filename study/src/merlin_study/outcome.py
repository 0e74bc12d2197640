"""What came of a task, and what that means for the tasks that depend on it.

The exit codes are Merlin's (its ``ReturnCode``); a code that Merlin does not name counts as a soft failure there and
here. 106 (raise an error, for Merlin's own tests) is one of those.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """How an execution ended."""

    SUCCEEDED = "succeeded"
    SOFT_FAILED = "soft-failed"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    RESTART = "restart"
    RETRY = "retry"
    CANCELLED = "cancelled"
    LOST = "lost"


EXIT_CODES: Final[dict[str, int]] = {
    "MERLIN_SUCCESS": 0,
    "MERLIN_RESTART": 100,
    "MERLIN_SOFT_FAIL": 101,
    "MERLIN_HARD_FAIL": 102,
    "MERLIN_RETRY": 104,
    "MERLIN_STOP_WORKERS": 105,
    "MERLIN_RAISE_ERROR": 106,
}
"""The tokens that a step may use for its exit codes."""

_BY_CODE: Final = {
    0: Outcome.SUCCEEDED,
    100: Outcome.RESTART,
    101: Outcome.SOFT_FAILED,
    102: Outcome.FAILED,
    104: Outcome.RETRY,
    105: Outcome.CANCELLED,
}

FINAL: Final = frozenset({Outcome.SUCCEEDED, Outcome.SOFT_FAILED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CANCELLED})
"""Outcomes after which the task does not run again by itself."""


def of_exit(code: int) -> Outcome:
    """Return the outcome of an exit status; a death by signal is the signal's number, negated."""
    return _BY_CODE.get(code, Outcome.SOFT_FAILED)


def after_budget(outcome: Outcome, *, attempt: int, max_retries: int, restarts: bool) -> Outcome:
    """Return what stands of ``outcome`` once the user's budget of ``max_retries`` is considered.

    ``attempt`` counts from 1 and restarts share the budget with retries, as in Merlin: ``max_retries + 1`` tries in all,
    then a soft failure. A timeout asks for the restart script where the step ``restarts`` (Maestro's rule).
    """
    spent = attempt > max_retries
    if outcome in (Outcome.RESTART, Outcome.RETRY) and spent:
        return Outcome.SOFT_FAILED
    if outcome is Outcome.TIMED_OUT and restarts and not spent:
        return Outcome.RESTART
    return outcome


HARD_FAIL: Final = EXIT_CODES["MERLIN_HARD_FAIL"]
STOP_WORKERS: Final = EXIT_CODES["MERLIN_STOP_WORKERS"]

_FAILURES: Final = frozenset({Outcome.SOFT_FAILED, Outcome.FAILED, Outcome.TIMED_OUT})


def releases_dependants(outcome: Outcome, *, fail_fast: bool) -> bool:
    """Whether tasks that depend on one with this final outcome may run.

    Merlin goes on after a soft failure; with ``fail_fast`` (Maestro's rule) every failure blocks. 105 never does.
    """
    return outcome in FINAL and outcome not in (_FAILURES if fail_fast else {Outcome.FAILED})
