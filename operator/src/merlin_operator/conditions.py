"""From what the engine knows (`view.StudyView`) to what the user reads (the whole ``status`` of a Study). Pure.

Nothing of the operator ever reads a status to decide what to do: it is written for people, for ``kubectl wait`` and for
dashboards, and every part of it can be made again from the broker. What came before matters twice only: a condition
keeps its ``lastTransitionTime`` while its ``status`` stands, and an estimated end keeps still while it is about right.

The size is bounded whatever the study does: at most `MAX_STEPS` steps and an aggregate, a few failures, clean texts, and
if that is still more than `MAX_BYTES`, `_fit` gives up the least useful parts first.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from merlin_operator.view import FULL, FailureView, StepView, StudyView
from merlin_study.counts import COUNTS

MAX_BYTES: Final = 28 * 1024
"""Of a status as it is stored; the promise is less than 32 KiB (docs/limits.md), the rest is room for the server's own encoding."""
MAX_STEPS: Final = 100
MAX_FAILURES: Final = 5
"""At each end: the first ones tell what went wrong, the last ones whether it still does."""
MAX_MESSAGE: Final = 1024
MAX_FAULTS: Final = 4096
"""Of the message that names all faults of a refused study, one a line."""

COMPILING: Final = "Compiling"
"""The specification has not been judged yet."""
COMPILED: Final = "Compiled"
"""The specification is sound; its plan is stored and will not change any more."""
REFUSED: Final = "Refused"
"""The specification has faults; the condition ``Accepted`` names them. Nothing of the study runs."""
UNROLLING: Final = "Unrolling"
"""There are tasks that have not been handed out yet."""
ALL_ISSUED: Final = "AllIssued"
"""Every task has been handed out at least once."""
RUNNING: Final = "Running"
"""Tasks run, or wait for nothing but a free slot."""
WAITING: Final = "Waiting"
"""Nothing moves; the message says what is missing."""
CANCELLING: Final = "Cancelling"
"""The study is cancelled and its running tasks are being stopped."""
SUSPENDED: Final = "Suspended"
"""``spec.suspend`` is set: no further task starts, what runs goes on."""
STOP_WORKERS: Final = "StopWorkers"
"""A task ended with exit code 105: agents of the study stopped, others take nothing more of it; a restart goes on."""
NOT_SUSPENDED: Final = "NotSuspended"
"""The study is not suspended."""
LOG_INCOMPLETE: Final = "LogIncomplete"
"""The broker lost some of the study's log, and no agent that sees the workspace is there to tell it."""
WORKSPACE_FULL: Final = "WorkspaceFull"
"""Agents find the disk or the quota of the workspace full; they hand tasks back and wait. No task fails by it."""
AGENTS_LOST: Final = "AgentsLost"
"""Tasks were failed because one agent after the other was lost with them."""
AS_EXPECTED: Final = "AsExpected"
"""No task has failed."""
TASKS_FAILED: Final = "TasksFailed"
"""Some tasks ended otherwise than by success; ``failures`` tells the first and the last of them."""
DOUBLED: Final = "ExecutionsDoubled"
"""A task ran again without a retry, a restart or a verdict of loss: please report it, this is a bug."""
REACHABLE: Final = "Reachable"
"""The operator talks to the broker."""
CATCHING_UP: Final = "CatchingUp"
"""The broker answers; some of its servers do not hold all of a stream yet, so that none should be stopped."""
STORE_FULL: Final = "StoreFull"
"""The broker answers and can store nothing more; results wait in the workspace."""
UNREACHABLE: Final = "Unreachable"
"""The operator cannot reach the broker; agents go on with what they have."""
IN_PROGRESS: Final = "InProgress"
"""The study is not over."""
COMPLETED: Final = "Completed"
"""The study is over and every task succeeded."""
COMPLETED_WITH_FAILURES: Final = "CompletedWithFailures"
"""The study is over and some tasks did not succeed."""
CANCELLED: Final = "Cancelled"
"""The study was cancelled before its end."""

State = Literal[
    "Pending", "Refused", "Running", "Suspended", "Cancelling", "Succeeded", "CompletedWithFailures", "Cancelled"
]
STATES: Final[tuple[State, ...]] = (
    "Pending",
    "Refused",
    "Running",
    "Suspended",
    "Cancelling",
    "Succeeded",
    "CompletedWithFailures",
    "Cancelled",
)
"""The phases that a human reads; derived, and never read by the operator."""

_UNPRINTABLE: Final = re.compile(r"[^ -~\n\t]")
"""Candidates: what is not plain ASCII is looked at more closely."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition before it gets its times."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def state_of(view: StudyView) -> State:
    """Return the phase: one word for where the study stands."""
    if view.faults:
        return "Refused"
    if not view.plan_hash:
        return "Pending"
    if view.cancelled:
        return "Cancelled" if view.finished else "Cancelling"
    if view.finished:
        return "Succeeded" if view.succeeded else "CompletedWithFailures"
    return _going(view)


def _going(view: StudyView) -> State:
    if view.suspended or view.stopped:
        return "Suspended"
    return "Running" if view.started_at is not None else "Pending"


def is_over(view: StudyView) -> bool:
    """Whether nothing more will run, be it that it is done or that it was refused."""
    return view.finished or bool(view.faults)


def status_of(view: StudyView, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return the whole status; `previous` is the one that stands on the server."""
    status = {
        "observedGeneration": view.generation,
        "phase": state_of(view),
        "conditions": _timed(conditions_of(view), view.generation, previous.get("conditions", ()), now),
        "workspace": _clean(view.workspace, 4096),
        "site": view.site,
        "planHash": view.plan_hash,
        "counts": _counts(view.steps) if view.steps else None,
        "agents": view.agents,
        "doubled": view.doubled,
        "restarted": view.restarted or previous.get("restarted"),
        "rate": None if view.rate is None or is_over(view) else float(f"{view.rate:.3g}"),
        "estimatedEnd": _estimated_end(view, previous, now),
        "startTime": _stamp(view.started_at),
        "completionTime": _completion_time(view, previous, now),
        "failures": _failures(view, tail=512),
    }
    return _fit({key: value for key, value in status.items() if value not in (None, "", {}, [])}, view)


def conditions_of(view: StudyView) -> tuple[Condition, ...]:
    """Return all conditions in the order in which a study passes them; none is ever absent."""
    over = is_over(view)
    return (
        _accepted(view),
        _unrolled(view),
        _progressing(view),
        _suspended(view),
        _degraded(view),
        _broker_available(view),
        Condition("Finished", "True" if over else "False", _end_reason(view), _end_message(view)),
        Condition(
            "Succeeded",
            "Unknown" if not over else "True" if view.succeeded else "False",
            _end_reason(view),
            _end_message(view),
        ),
    )


def _broker_available(view: StudyView) -> Condition:
    if view.broker_problem:
        reason = STORE_FULL if view.broker_problem == FULL else UNREACHABLE
        return Condition("BrokerAvailable", "False", reason, _clean(view.broker_problem, MAX_MESSAGE))
    reason = CATCHING_UP if view.broker_note else REACHABLE
    return Condition("BrokerAvailable", "True", reason, _clean(view.broker_note, MAX_MESSAGE))


def _accepted(view: StudyView) -> Condition:
    if view.faults:
        faults = _clean("\n".join(str(fault) for fault in view.faults), MAX_FAULTS)
        return Condition("Accepted", "False", view.faults[0].reason, faults)
    if not view.plan_hash:
        return Condition("Accepted", "Unknown", COMPILING, _clean(view.waiting_for, MAX_MESSAGE))
    return Condition("Accepted", "True", COMPILED, _clean("\n".join(view.notes), MAX_MESSAGE))


def _unrolled(view: StudyView) -> Condition:
    if view.faults:
        return Condition("Unrolled", "False", REFUSED)
    return Condition("Unrolled", "True", ALL_ISSUED) if view.unrolled else Condition("Unrolled", "False", UNROLLING)


def _progressing(view: StudyView) -> Condition:
    if is_over(view):
        return Condition("Progressing", "False", _end_reason(view))
    if view.cancelled:
        return Condition("Progressing", "True", CANCELLING)
    if view.suspended or view.stopped:
        return Condition("Progressing", "False", SUSPENDED if view.suspended else STOP_WORKERS)
    if view.waiting_for:
        return Condition("Progressing", "False", WAITING, _clean(view.waiting_for, MAX_MESSAGE))
    if not view.plan_hash:
        return Condition("Progressing", "True", COMPILING)
    return Condition("Progressing", "True", RUNNING)


def _suspended(view: StudyView) -> Condition:
    running = sum(step.running for step in view.steps)
    still = f"{running} tasks still run" if running else "nothing runs"
    if is_over(view) or not (view.suspended or view.stopped):
        return Condition("Suspended", "False", NOT_SUSPENDED)
    if view.suspended:
        return Condition("Suspended", "True", SUSPENDED, f"no further task starts; {still}")
    return Condition("Suspended", "True", STOP_WORKERS, f"a task asked to stop the agents; {still}; restart to go on")


def _degraded(view: StudyView) -> Condition:
    if view.doubled:
        return Condition("Degraded", "True", DOUBLED, f"{view.doubled} executions ran again without a reason")
    if (held := _held_up(view)) is not None:
        return held
    if view.exhausted:
        message = f"{view.exhausted} tasks took one agent after the other with them; failures tells which"
        return Condition("Degraded", "True", AGENTS_LOST, message)
    failed = _unsuccessful(view.steps)
    if failed:
        return Condition("Degraded", "True", TASKS_FAILED, f"{failed} tasks did not succeed")
    if view.warnings:
        return Condition(
            "Degraded", "True", view.warnings[0].reason, _clean("\n".join(map(str, view.warnings)), MAX_MESSAGE)
        )
    return Condition("Degraded", "False", AS_EXPECTED)


def _held_up(view: StudyView) -> Condition | None:
    """Say what keeps all of a study from going on, and who can cure it."""
    if view.lost_log:
        return Condition("Degraded", "True", LOG_INCOMPLETE, _clean(view.lost_log, MAX_MESSAGE))
    if not view.full_on:
        return None
    hosts = ", ".join(view.full_on[:5]) + (" and others" if len(view.full_on) > 5 else "")
    message = f"no room to write in the workspace, say agents on {hosts}; free some, and all goes on"
    return Condition("Degraded", "True", WORKSPACE_FULL, _clean(message, MAX_MESSAGE))


def _end_reason(view: StudyView) -> str:
    if view.faults:
        return REFUSED
    if not view.finished:
        return IN_PROGRESS
    if view.cancelled:
        return CANCELLED
    return COMPLETED if view.succeeded else COMPLETED_WITH_FAILURES


def _end_message(view: StudyView) -> str:
    if view.faults:
        return "the specification has faults; see the condition Accepted"
    if not view.finished:
        return ""
    succeeded = sum(step.succeeded for step in view.steps)
    return f"{succeeded} of {view.total} tasks succeeded"


def _timed(
    conditions: Iterable[Condition], generation: int, previous: Iterable[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]]:
    before = {condition.get("type"): condition for condition in previous}
    timed = []
    for condition in conditions:
        old = before.get(condition.type, {})
        since = old.get("lastTransitionTime") if old.get("status") == condition.status else None
        timed.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": since or _time(now),
                "reason": condition.reason,
                "message": condition.message,
            }
        )
    return timed


def _counts(steps: Iterable[StepView]) -> dict[str, int]:
    counts = dict.fromkeys(("total", "done", "allFailed", *COUNTS), 0)
    for step in steps:
        counts["total"] += step.total or 0
        counts["done"] += step.done
        counts["allFailed"] += _unsuccessful([step])
        for key, attribute in COUNTS.items():
            counts[key] += getattr(step, attribute)
    return counts


def _unsuccessful(steps: Iterable[StepView]) -> int:
    return sum(step.soft_failed + step.failed + step.timed_out for step in steps)


def _step(step: StepView) -> dict[str, Any]:
    # The total is left out while it is unknown; a zero there would say that the step has no tasks.
    total = {} if step.total is None else {"total": step.total}
    return {"name": step.name, **total, **_some(_counts([step]), without="total")}


def _some(counts: Mapping[str, int], *, without: str = "") -> dict[str, int]:
    return {key: value for key, value in counts.items() if value and key != without}


def _failures(view: StudyView, *, tail: int) -> dict[str, Any]:
    ends = {"first": view.first_failures[:MAX_FAILURES], "last": view.last_failures[-MAX_FAILURES:]}
    return {key: [_failure(each, tail=tail) for each in some] for key, some in ends.items() if some}


def _failure(failure: FailureView, *, tail: int) -> dict[str, Any]:
    told = failure.failure
    entry = {
        "step": failure.step,
        "task": told.task,
        "outcome": _camel(told.outcome.value),
        # As a shell tells it: 128 and the number of the signal.
        "exitCode": told.code if told.code >= 0 else 128 - told.code,
        "host": _clean(told.host, 253),
        "directory": _clean(told.directory, 1024),
        # The end of what a step wrote is what tells why it failed.
        "stderr": _clean(told.tail[-tail:][::-1], 1024)[::-1] if tail else "",
    }
    return {key: value for key, value in entry.items() if value != ""}


def _camel(word: str) -> str:
    first, *rest = word.split("-")
    return first + "".join(part.capitalize() for part in rest)


def _estimated_end(view: StudyView, previous: Mapping[str, Any], now: datetime) -> str | None:
    """The estimate, held while the new one differs by less than a twentieth of what remains: no write without news."""
    if view.remaining_seconds is None or is_over(view):
        return None
    remaining = min(view.remaining_seconds, timedelta(days=3650).total_seconds())
    estimate = now + timedelta(seconds=remaining)
    before = _parsed(previous.get("estimatedEnd"))
    if before is not None and abs((before - estimate).total_seconds()) <= max(5.0, remaining / 20):
        return _time(before)
    return _time(estimate)


def _completion_time(view: StudyView, previous: Mapping[str, Any], now: datetime) -> str | None:
    if not is_over(view):
        return None
    before: str | None = previous.get("completionTime")
    return _stamp(view.finished_at) or before or _time(now)


def _stamp(seconds: float | None) -> str | None:
    return None if seconds is None else _time(datetime.fromtimestamp(seconds, UTC))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parsed(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _clean(text: str, limit: int) -> str:
    """Text that any terminal and any JSON can carry, of at most `limit` stored bytes; a cut ends in an ellipsis."""
    plain = _UNPRINTABLE.sub(_replaced, text[: limit + 1])
    if _stored_bytes(plain) <= limit:
        return plain
    sizes = list(itertools.accumulate(map(_stored_bytes, plain)))
    return plain[: bisect.bisect_right(sizes, limit - _stored_bytes("…"))] + "…"


def _replaced(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else "�"


def _stored_bytes(text: str) -> int:
    # Go's encoder, which stores it, writes these as six characters each.
    return len(text.encode()) + sum(text.count(c) for c in '"\\\n\t') + 5 * sum(text.count(c) for c in "<>&")


def _fit(status: dict[str, Any], view: StudyView) -> dict[str, Any]:
    """Add the steps and give up what is least useful until it fits: tails, then failures, then steps from the end on."""
    for tail, shown in ((512, MAX_STEPS), (128, MAX_STEPS), (0, MAX_STEPS), (None, MAX_STEPS), (None, 50), (None, 20)):
        failures = {} if tail is None else {"failures": _failures(view, tail=tail)}
        kept = {key: value for key, value in status.items() if key != "failures"}
        fitted = {**kept, **_steps(view.steps, shown), **{key: value for key, value in failures.items() if value}}
        if _size(fitted) <= MAX_BYTES:
            return fitted
    return {**kept, **_steps(view.steps, 0)}


def _steps(steps: Sequence[StepView], shown: int) -> dict[str, Any]:
    if len(steps) <= shown:
        return {"steps": [_step(step) for step in steps]} if steps else {}
    rest = steps[shown:]
    aggregate = {"steps": len(rest), **_some(_counts(rest))}
    return {"steps": [_step(step) for step in steps[:shown]], "otherSteps": aggregate}


def _size(status: Mapping[str, Any]) -> int:
    # Quotes and the like are escaped in the text already.
    text = json.dumps(status, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) + 5 * sum(text.count(c) for c in "<>&\u2028\u2029")
