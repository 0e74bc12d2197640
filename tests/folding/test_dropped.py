"""What was dropped stays dropped: nothing that is told later of a chunk of before brings it back."""

from __future__ import annotations

import pytest

from merlin_operator.quarantine import Told, Watch
from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of
from tests.folding.test_control import LANES, TEXT, A, B, Bench, C, D, asking


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


def excused(bench: Bench, below: int) -> wire.Excused:
    """The verdict that host n0 failed all of the first step at its first attempt, thought of when ``below`` was the next fence."""
    failed = (wire.Excuse(step=A, attempt=1, tasks=TaskSet(first=0, width=len(bench.ledger.steps[A].issued))),)
    return wire.Excused(token=f"excused:n0:{below}", host="n0", failed=failed, below=below)


def test_what_a_host_failed_stays_as_it_was_dropped_and_is_excused_once_it_was_restarted(plan: Plan) -> None:
    bench = Bench(plan)
    bench.run_all({(A, task): 127 for task in (1, 2)} | {(D, 5): 1})
    before = bench.ledger.next_fence
    bench.switch(restart=asking("d", steps=["d"]))
    bench.switch(purge="now", restart=asking("d", steps=["d"]))
    bench.apply(excused(bench, before))
    assert bench.issue() == []
    assert bench.ledger.finished
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 4, Outcome.SOFT_FAILED: 2}
    assert bench.ledger.lost == [0, 0, 0, 0]
    bench.same_in_replay()
    bench.switch(purge="now", restart=asking("a", steps=["a"]))
    assert sorted(bench.run_all({(A, 1): 127})) == [(A, 1), (A, 2)]
    bench.apply(excused(bench, bench.ledger.next_fence))
    assert (A, 1) in bench.run_all()
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 6}
    bench.same_in_replay()


def test_a_queue_that_was_dropped_does_not_keep_back_what_a_host_failed_of_another() -> None:
    bench = Bench(plan_of(LANES))
    bench.run_all({(A, task): 127 for task in range(4)})
    below = bench.ledger.next_fence
    bench.apply(wire.Dropped(cause="hard-fail", queue="one", below=below))
    bench.apply(excused(bench, below))
    queues = {bench.ledger.lane(chunk).queue for chunk in bench.issue() if chunk.step == A}
    assert queues == {"two"}
    bench.same_in_replay()


def test_a_verdict_on_a_host_leaves_out_what_was_dropped_before_it() -> None:
    """What failed in chunks of before, of the queue that was dropped; nothing at all where that is all there is."""
    ledger = Ledger(plan_of(LANES))
    ledger.apply(wire.Dropped(cause="hard-fail", queue="one", below=9), at=1.0)

    def spared(step: int, tasks: TaskSet, fence: int) -> TaskSet | None:
        return ledger.stops.spared(step, tasks, fence=fence, geometry=ledger.geometry)

    def taken(*failed: tuple[int, int]) -> set[int]:
        watch, place = Watch(), ("hpc", "n0")
        watch.held[place] = wire.Quarantine(site="hpc", host="n0", since=0.0, until=9.0, why="w")
        for fence, task in failed:
            tasks = (TaskSet(first=task, width=1),)
            watch.tell(Told(place, ("u", A), fence, 1, 1.0, failed=tasks, seconds=1.0))
        found = watch.take("u", spared)
        return {task for excuse in found[1] for task in excuse.tasks.indices()} if found is not None else set()

    one = {task for task in range(4) if ledger.geometry.lane(A, task).queue == "one"}
    assert len(one) in {1, 2, 3}
    assert taken(*((8, task) for task in range(4))) == set(range(4)) - one
    assert taken(*((9, task) for task in range(4))) == set(range(4))
    assert taken(*((8, task) for task in one)) == set()
