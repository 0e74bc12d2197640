"""Views of studies: made anew where something happened, and only there."""

from __future__ import annotations

import pytest

from merlin_operator.showing import waiting_for
from merlin_operator.study import Study
from merlin_operator.view import StudyRef, StudyView
from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of

YAML = "description: {name: n, description: d}\nstudy: [{name: a, description: d, run: {cmd: x}}]"


def test_a_view_is_made_anew_exactly_where_something_has_happened() -> None:
    """Ten thousand studies are looked at several times a second, and few of them have changed."""
    study = Study(StudyRef("ns", "s", "u"), 1)
    study.adopt(plan_of(YAML))
    assert study.ledger is not None

    def view(*, agents: int = 0) -> StudyView:
        return study.view(agents=agents, waiting_for="", broker_problem="", clock=1.0)

    first = view()
    assert view() is first
    assert view(agents=1).agents == 1
    chunk = wire.Chunk(study="u", plan="h", epoch=1, fence=1, step=0, tasks=TaskSet(first=0, width=1), attempt=1)
    study.ledger.issue(chunk)
    assert view().steps[0].queued == 1
    study.ledger.withdraw(chunk)
    assert view().steps[0].queued == 0
    study.ledger.apply(wire.Start(agent="a", chunk=chunk.model_copy(update={"fence": 2})), at=1.0)
    study.folded += 1
    assert view().steps[0].running == 1
    results = (wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=chunk.tasks),)
    study.ledger.apply(
        wire.Report(agent="a", fence=2, serial=1, step=0, attempt=1, results=results, final=True), at=1.0
    )
    study.folded += 1
    assert view().finished
    study.cancelled = True
    assert view().cancelled


ROUTED = """
description: {name: n, description: d}
batch: {type: slurm}
global.parameters:
  Q: {values: [small, big, small], label: Q.%%}
  N: {values: [1, 4, 2], label: N.%%}
study:
- {name: sim, description: d, run: {cmd: $(LAUNCHER) ./sim, task_queue: $(Q), nodes: $(N), procs: $(N), gpus: $(N)}}
"""


def _agent(name: str, **size: object) -> wire.Heartbeat:
    known: dict[str, object] = {"site": "hpc", "host": "h", "pid": 1, "version": "1", "slots": 8, "gpus": 2, "nodes": 2}
    return wire.Heartbeat.model_validate({"agent": name, **known, **size})


@pytest.mark.parametrize(
    ("agents", "says"),
    [
        ([], "no agent serves queue 'small'; start merlin-agent in an allocation"),
        ([_agent("a", queues=("small",))], "no agent serves queue 'big'; start merlin-agent in an allocation"),
        (
            [_agent("a"), _agent("b", nodes=1, gpus=0)],
            (
                "no agent of queue 'big' has room for a task of step 'sim': expected 4 hosts of 1 core and 1 GPU each, the largest has "
                "2 hosts of 8 cores and 2 GPUs each; start merlin-agent in a larger allocation, or lower nodes, procs, cores per task or "
                "gpus"
            ),
        ),
        (
            [_agent("a", nodes=4), _agent("b", nodes=1, gpus=0, queues=("small",))],
            "",
        ),
    ],
)
def test_a_study_says_which_agents_it_waits_for(agents: list[wire.Heartbeat], says: str) -> None:
    """An allocation with fewer hosts than a task wants is not the same as no allocation."""
    study = Study(StudyRef("ns", "s", "u"), 1)
    study.adopt(plan_of(ROUTED))
    assert waiting_for(study, agents) == says


def test_a_queue_whose_combinations_are_over_is_waited_for_no_more() -> None:
    study = Study(StudyRef("ns", "s", "u"), 1)
    study.adopt(plan_of(ROUTED))
    assert study.ledger is not None
    study.ledger.dag.finish(0, TaskSet(first=1, width=1), Outcome.SUCCEEDED, code=0)
    assert waiting_for(study, [_agent("a", queues=("small",))]) == ""
