"""Views of studies: made anew where something happened, and only there."""

from __future__ import annotations

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
