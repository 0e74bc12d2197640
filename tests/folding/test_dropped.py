"""What was dropped stays dropped: nothing that is told later of a chunk of before brings it back."""

from __future__ import annotations

import pytest

from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from tests.folding.studies import plan_of
from tests.folding.test_control import TEXT, A, B, Bench, C, D, asking


@pytest.fixture
def plan() -> Plan:
    return plan_of(TEXT)


@pytest.mark.parametrize("switches", [{"purge": "now"}, {"cancel": True}])
def test_a_mark_that_was_looked_for_before_a_drop_restarts_nothing_after_it(
    plan: Plan, switches: dict[str, object]
) -> None:
    """Not even once a cancellation is taken back; a later restart looks for itself."""
    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", scan=True))
    looks = bench.issue()
    assert looks
    assert all(chunk.scan for chunk in looks)
    for chunk in looks:
        bench.start(chunk)
    bench.switch(restart=asking("1", scan=True), **switches)
    for chunk in looks:
        bench.looked(chunk, {(chunk.step, chunk.tasks.first)})
    bench.switch(restart=asking("1", scan=True))
    assert bench.run_all() == []
    assert bench.ledger.finished
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in (A, B, C, D))
    assert sum(isinstance(entry, wire.Dropped) for entry, _ in bench.log) == 1
    bench.same_in_replay()
    bench.switch(restart=asking("2", scan=True))
    assert bench.run_all(gone={(D, 2)}) == [(D, 2)]
