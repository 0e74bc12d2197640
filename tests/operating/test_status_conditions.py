"""A status says where its study stands, fits the schema of the CRD, and stays below its bound whatever happens."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_operator import conditions
from merlin_operator.view import FULL as NO_ROOM
from merlin_operator.view import StepView, StudyView
from merlin_study.errors import Fault
from merlin_study.outcome import Outcome
from tests.ground.needs import ROOT
from tests.operating.views import ACCEPTED, CANCELLED, FAILED, NEW, REFUSED, RUNNING, SUCCEEDED, failure

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = "2026-01-01T00:00:00Z"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the API server applies it: a field that it does not have is dropped, which a test must not miss."""
    inner = {key: closed(value) for key, value in schema.get("properties", {}).items()}
    items = {"items": closed(schema["items"])} if "items" in schema else {}
    return {**schema, **items} | ({"properties": inner, "additionalProperties": False} if inner else {})


def status_schema(path: Path) -> dict[str, Any]:
    version = yaml.safe_load(path.read_text())["spec"]["versions"][0]
    return closed(version["schema"]["openAPIV3Schema"]["properties"]["status"])


SCHEMA = status_schema(ROOT / "crds" / "study.yaml")


def status(view: StudyView, previous: dict[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
    made = conditions.status_of(view, previous or {}, now)
    jsonschema.validate(made, SCHEMA, format_checker=jsonschema.FormatChecker())
    return made


def told(view: StudyView) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status(view)["conditions"]}


CASES = {
    "new": (NEW, "Pending", "Unknown Compiling", "False InProgress", "Unknown InProgress"),
    "accepted": (ACCEPTED, "Pending", "True Compiled", "False InProgress", "Unknown InProgress"),
    "running": (RUNNING, "Running", "True Compiled", "False InProgress", "Unknown InProgress"),
    "succeeded": (SUCCEEDED, "Succeeded", "True Compiled", "True Completed", "True Completed"),
    "failed": (
        FAILED,
        "CompletedWithFailures",
        "True Compiled",
        "True CompletedWithFailures",
        "False CompletedWithFailures",
    ),
    "cancelled": (CANCELLED, "Cancelled", "True Compiled", "True Cancelled", "False Cancelled"),
    "refused": (REFUSED, "Refused", "False UnknownDependency", "True Refused", "False Refused"),
}


@pytest.mark.parametrize(("view", "phase", "accepted", "finished", "succeeded"), CASES.values(), ids=CASES)
def test_phase_and_the_conditions_that_are_waited_for(
    view: StudyView, phase: str, accepted: str, finished: str, succeeded: str
) -> None:
    found = told(view)
    shown = [" ".join(found[name]) for name in ("Accepted", "Finished", "Succeeded")]
    assert (status(view)["phase"], shown) == (phase, [accepted, finished, succeeded])
    assert phase in conditions.STATES


def test_all_conditions_are_there_from_the_first_visit() -> None:
    everything = [
        "Accepted",
        "Unrolled",
        "Progressing",
        "Suspended",
        "Degraded",
        "BrokerAvailable",
        "Finished",
        "Succeeded",
    ]
    for view, *_ in CASES.values():
        assert list(told(view)) == everything


@pytest.mark.parametrize(
    ("view", "phase", "suspended", "progressing"),
    [
        (replace(RUNNING, suspended=True), "Suspended", "True Suspended", "False Suspended"),
        (replace(RUNNING, stopped=True), "Suspended", "True StopWorkers", "False StopWorkers"),
        (replace(RUNNING, cancelled=True, suspended=True), "Cancelling", "True Suspended", "True Cancelling"),
        (replace(SUCCEEDED, suspended=True), "Succeeded", "False NotSuspended", "False Completed"),
    ],
)
def test_a_study_that_is_held_says_by_whom(view: StudyView, phase: str, suspended: str, progressing: str) -> None:
    found = told(view)
    assert conditions.state_of(view) == phase
    assert [" ".join(found[name]) for name in ("Suspended", "Progressing")] == [suspended, progressing]


def test_tasks_that_took_agents_with_them_degrade_a_study() -> None:
    assert told(replace(FAILED, exhausted=2))["Degraded"] == ("True", "AgentsLost")


def test_a_full_workspace_is_told_with_the_hosts_that_find_it_so() -> None:
    view = replace(FAILED, full_on=tuple(f"n{at}" for at in range(7)))
    (degraded,) = (each for each in status(view)["conditions"] if each["type"] == "Degraded")
    assert degraded["reason"] == "WorkspaceFull"
    assert "n0, n1, n2, n3, n4 and others" in degraded["message"]


def test_each_reason_is_a_constant_with_a_sentence() -> None:
    lines = Path(conditions.__file__).read_text().splitlines()
    names = [at for at, line in enumerate(lines) if ": Final = " in line and line[:1].isupper() and '"' in line]
    assert len(names) >= 18
    for at in names:
        assert lines[at + 1].startswith('"""'), lines[at]


def test_a_refused_study_names_every_fault_with_its_place_and_cure() -> None:
    accepted = status(REFUSED)["conditions"][0]
    assert accepted["message"] == (
        "spec.study[1].run.depends[0]: no step named 'simm' (did you mean 'sim'?)\n"
        "spec.study[2].run.cmd: expected a script, found nothing"
    )


def test_what_its_author_should_know_stands_with_the_acceptance() -> None:
    """A study that is accepted is told of steps that no worker serves, and of arguments without effect."""
    found = status(replace(ACCEPTED, notes=("spec.a: first", "spec.b: second")))["conditions"][0]
    assert (found["type"], found["status"], found["message"]) == ("Accepted", "True", "spec.a: first\nspec.b: second")


def test_why_nothing_moves_is_said() -> None:
    waiting = replace(ACCEPTED, waiting_for="no agent serves queue 'merlin'", broker_problem="connection refused")
    found = {each["type"]: each for each in status(waiting)["conditions"]}
    progressing, broker = found["Progressing"], found["BrokerAvailable"]
    assert (progressing["status"], progressing["reason"], progressing["message"]) == (
        "False",
        "Waiting",
        "no agent serves queue 'merlin'",
    )
    assert (broker["status"], broker["reason"], broker["message"]) == ("False", "Unreachable", "connection refused")


def test_a_broker_without_room_is_not_available() -> None:
    shown = {each["type"]: each for each in status(replace(ACCEPTED, broker_problem=NO_ROOM))["conditions"]}
    broker = shown["BrokerAvailable"]
    assert (broker["status"], broker["reason"], broker["message"]) == ("False", "StoreFull", NO_ROOM)


def test_a_broker_that_must_not_lose_another_server_says_so() -> None:
    shown = {each["type"]: each for each in status(replace(ACCEPTED, broker_note="tasks 1 of 3"))["conditions"]}
    broker = shown["BrokerAvailable"]
    assert (broker["status"], broker["reason"], broker["message"]) == ("True", "CatchingUp", "tasks 1 of 3")


def test_failures_and_doubled_executions_degrade_a_study() -> None:
    assert told(FAILED)["Degraded"] == ("True", "TasksFailed")
    assert told(replace(SUCCEEDED, doubled=1))["Degraded"] == ("True", "ExecutionsDoubled")
    assert told(SUCCEEDED)["Degraded"] == ("False", "AsExpected")


def test_the_whole_status_of_a_study_with_failures() -> None:
    found = status(replace(FAILED, first_failures=(failure(),), last_failures=(failure(code=-9),)))
    del found["conditions"]
    entry = {"step": "sim", "task": 7, "outcome": "softFailed", "host": "n1", "directory": "sim/7", "stderr": "no\n"}
    counts = {"done": 100, "succeeded": 97, "allFailed": 3, "softFailed": 2, "timedOut": 1}
    everything = {"total": 101, "done": 101, "succeeded": 98, "failed": 0, "cancelled": 0, "running": 0}
    assert found == {
        "observedGeneration": 1,
        "phase": "CompletedWithFailures",
        "workspace": "/w/probe_20260101-000000",
        "site": "hpc",
        "planHash": "ab" * 32,
        "counts": {**counts, **everything, "retrying": 0, "lost": 0},
        "steps": [{"name": "sim", "total": 100, **counts}, {"name": "collect", "total": 1, "done": 1, "succeeded": 1}],
        "agents": 2,
        "doubled": 0,
        "startTime": "2023-11-14T22:13:20Z",
        "completionTime": "2023-11-14T22:15:00Z",
        "failures": {"first": [{**entry, "exitCode": 3}], "last": [{**entry, "exitCode": 137}]},
    }


def test_a_transition_time_changes_only_with_the_status_of_its_condition() -> None:
    first = status(ACCEPTED)
    later = NOW + timedelta(minutes=5)
    second = status(replace(SUCCEEDED, broker_problem=""), first, later)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    new = "2026-01-01T00:05:00Z"
    assert times == {
        "Accepted": STAMP,
        "Unrolled": new,
        "Progressing": new,
        "Suspended": STAMP,
        "Degraded": STAMP,
        "BrokerAvailable": STAMP,
        "Finished": new,
        "Succeeded": new,
    }


def test_without_news_the_status_stays_the_same() -> None:
    first = status(RUNNING)
    assert status(replace(RUNNING, rate=12.349, remaining_seconds=59.0), first, NOW + timedelta(seconds=2)) == first


def test_a_study_that_was_refused_keeps_the_time_of_its_end() -> None:
    first = status(REFUSED)
    assert first["completionTime"] == STAMP
    assert status(REFUSED, first, NOW + timedelta(days=1)) == first


def test_a_previous_status_that_makes_no_sense_is_no_obstacle() -> None:
    assert status(RUNNING, {"estimatedEnd": "soon", "conditions": [{"type": "Accepted"}]}) == status(RUNNING)


def test_steps_beyond_the_hundredth_are_summed_up() -> None:
    steps = tuple(StepView(f"step-{number}", 10, succeeded=1) for number in range(150))
    found = status(replace(RUNNING, steps=steps))
    assert (len(found["steps"]), found["counts"]["total"]) == (100, 1500)
    assert found["otherSteps"] == {"steps": 50, "total": 500, "done": 50, "succeeded": 50}


BILLION = 10**9
FULL = StepView(
    "full",
    BILLION,
    succeeded=BILLION,
    soft_failed=BILLION,
    failed=BILLION,
    timed_out=BILLION,
    cancelled=BILLION,
    running=BILLION,
    retrying=BILLION,
    lost=BILLION,
)
# What the server stores: its encoder writes some characters as six.
WORST = st.sampled_from(["x", "<", "\u2028", "\x00", "\U0001f600", '"', "é", "\n"])


@settings(max_examples=50)
@given(
    steps=st.integers(0, 250),
    name=WORST,
    tail=WORST,
    failures=st.integers(0, 20),
    faults=st.integers(0, 300),
    finished=st.booleans(),
)
def test_no_study_makes_a_status_of_32_kib(
    *, steps: int, name: str, tail: str, failures: int, faults: int, finished: bool
) -> None:
    views = tuple(replace(FULL, name=f"{number:03}" + name * 197) for number in range(steps))
    told = tuple(
        failure(tail=tail * 512, host=tail * 300, directory=tail * 2000, outcome=Outcome.TIMED_OUT)
        for _ in range(failures)
    )
    view = replace(
        RUNNING,
        steps=views,
        first_failures=told,
        last_failures=told,
        finished=finished,
        faults=tuple(Fault(name * 100, tail * 100) for _ in range(faults)),
        waiting_for=tail * 5000,
        broker_problem=tail * 5000,
        workspace=name * 5000,
    )
    made = conditions.status_of(view, {}, NOW)
    jsonschema.validate(made, SCHEMA)
    stored = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
    assert len(stored.encode()) + 5 * sum(stored.count(each) for each in "<>&\u2028\u2029") < 32 * 1024
