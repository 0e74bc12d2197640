"""Views as an engine would make them, shortest first."""

from dataclasses import replace
from typing import Any

from merlin_operator.board import AgentView
from merlin_operator.view import COUNTED, FailureView, StepView, StudyRef, StudyView
from merlin_study import wire
from merlin_study.errors import Fault
from merlin_study.outcome import Outcome

REF = StudyRef("team", "probe", "0000-1111")
NEW = StudyView(REF, 1)
ACCEPTED = replace(
    NEW,
    plan_hash="ab" * 32,
    steps=(StepView("sim", 100),),
    workspace="/w/probe_20260101-000000",
    inherited=(0,) * len(COUNTED),
)
RUNNING = replace(
    ACCEPTED,
    steps=(StepView("sim", 100, succeeded=40, running=10, queued=20), StepView("collect", 1)),
    site="hpc",
    rate=12.3456,
    remaining_seconds=60.0,
    started_at=1_700_000_000.0,
    agents=2,
)
SUCCEEDED = replace(
    RUNNING,
    steps=(StepView("sim", 100, succeeded=100), StepView("collect", 1, succeeded=1)),
    unrolled=True,
    finished=True,
    finished_at=1_700_000_100.0,
)
FAILED = replace(
    SUCCEEDED,
    steps=(StepView("sim", 100, succeeded=97, soft_failed=2, timed_out=1), StepView("collect", 1, succeeded=1)),
)
CANCELLED = replace(
    SUCCEEDED, steps=(StepView("sim", 100, succeeded=40, cancelled=60), StepView("collect", 1)), cancelled=True
)
REFUSED = replace(
    NEW,
    faults=(
        Fault("spec.study[1].run.depends[0]", "no step named 'simm' (did you mean 'sim'?)", "UnknownDependency"),
        Fault("spec.study[2].run.cmd", "expected a script, found nothing"),
    ),
)


def failure(**changes: Any) -> FailureView:
    """A failed task."""
    told = {"task": 7, "outcome": Outcome.SOFT_FAILED, "code": 3, "host": "n1", "directory": "sim/7", "tail": "no\n"}
    return FailureView("sim", wire.Failure(**{**told, **changes}))


def agent(name: str = "a1", *, silent_for: float = 1.0, job: str = "77", **changes: Any) -> AgentView:
    """An agent with two slots in a Slurm job; outside of any where the job is empty."""
    facts = wire.AllocationFacts(scheduler="slurm" if job else "none", job_id=job, nodes=2, ends_at=2e9 if job else 0)
    told = {"site": "hpc", "host": "n1", "pid": 1, "version": "0.1.0", "slots": 2, "allocation": facts}
    return AgentView(wire.Heartbeat(agent=name, **{**told, **changes}), silent_for)
