"""A study in a cluster as the commands show it: its object's status, read into what a workspace or an engine says."""

from collections.abc import Mapping
from typing import Any, Final

from merlin_cli.progress import Failed, Progress, StepCount, StepFailure
from merlin_cli.target import condition, is_over
from merlin_study.counts import COUNTS

_OUTCOMES: Final = {"softFailed": "soft-failed", "timedOut": "timed-out"}
_SIGNALS: Final = 128


def progress_of(study: Mapping[str, Any]) -> Progress:
    """Return how a Study stands."""
    status = study.get("status") or {}
    steps = [_step(each, each["name"]) for each in status.get("steps") or ()]
    if others := status.get("otherSteps"):
        steps.append(_step(others, f"{others.get('steps', 0)} other steps"))
    failures = (status.get("failures") or {}).get("first") or ()
    waits = condition(study, "Progressing")
    return Progress(
        finished=is_over(study),
        succeeded=condition(study, "Succeeded").get("status") == "True",
        cancelled=status.get("phase") == "Cancelled",
        steps=tuple(steps),
        workspace=str(status.get("workspace", "")),
        rate=status.get("rate"),
        waiting_for=waits.get("message", "") if waits.get("status") == "False" else "",
        first_failures=tuple(map(_failure, failures)),
        doubled=int(status.get("doubled", 0)),
    )


def remarks(study: Mapping[str, Any]) -> list[str]:
    """Return what a user should know beside the counts, one line each."""
    if not study.get("status"):
        return ["the operator has not looked at it yet; `kubectl get pods` of the release tells whether it runs"]
    accepted = condition(study, "Accepted")
    if accepted.get("status") == "False":
        return [f"refused: {line}" for line in str(accepted.get("message", "")).splitlines()]
    said = str(accepted.get("message", "")).splitlines() if accepted.get("status") == "True" else []
    for kind in ("Suspended", "Degraded"):
        found = condition(study, kind)
        if found.get("status") == "True" and found.get("reason") != "TasksFailed":
            said += [f"{found.get('reason')}: {line}" for line in str(found.get("message", "")).splitlines()]
    broker = condition(study, "BrokerAvailable")
    if broker.get("status") == "False":
        said.append(f"the operator can't reach the broker: {broker.get('message', '')}")
    return said


def _step(raw: Mapping[str, Any], name: str) -> StepCount:
    counts = {field: int(raw.get(key, 0)) for key, field in COUNTS.items()}
    total = raw.get("total")
    return StepCount(name=name, total=None if total is None else int(total), **counts)


def _failure(raw: Mapping[str, Any]) -> StepFailure:
    code, outcome = int(raw.get("exitCode", 0)), str(raw.get("outcome", ""))
    return StepFailure(
        step=str(raw["step"]),
        failure=Failed(
            task=int(raw["task"]),
            outcome=_OUTCOMES.get(outcome, outcome),
            code=code if code <= _SIGNALS else _SIGNALS - code,
            host=str(raw.get("host", "")),
            directory=str(raw.get("directory", "")),
            tail=str(raw.get("stderr", "")),
        ),
    )
