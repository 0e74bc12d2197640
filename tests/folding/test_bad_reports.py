"""What an agent tells that can't be: it is counted, left out, and costs the operator nothing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from merlin_study import wire
from merlin_study.geometry import MAX_TASKS
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.taskset import MAX_WIDTH, TaskSet
from merlin_study.told import COUNTS
from tests.folding.studies import plan_of
from tests.folding.test_control import LANES, Bench, asking

SAMPLED = """
description: {name: n, description: d}
global.parameters: {P: {values: [1, 2], label: P.%%}}
merlin: {samples: {file: s.csv, column_labels: [S]}}
study:
- {name: a, description: d, run: {cmd: echo $(S) $(P)}}
- {name: z, description: d, run: {cmd: ls, depends: [a_*]}}
"""


def counting(chunk: wire.Chunk, count: int, *, serial: int = 1) -> wire.Report:
    """The report of an agent that counted so many samples."""
    facts = wire.SampleFacts(count=count, columns=1, digest="d")
    result = wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=chunk.tasks)
    return wire.Report(
        agent="host-1",
        fence=chunk.fence,
        serial=serial,
        step=0,
        attempt=1,
        results=(result,),
        samples=facts,
        final=True,
    )


@pytest.mark.parametrize("task", [-1, 4, 10**18])
def test_a_failure_of_a_task_that_its_chunk_has_not_is_left_out(task: int) -> None:
    """In a step of several lanes, too, where no budget is known of such a task."""
    bench = Bench(plan_of(LANES))
    chunk = bench.issue()[0]
    bench.start(chunk)
    failures = tuple(
        wire.Failure(task=each, outcome=Outcome.SOFT_FAILED, code=1, host="n", directory="d")
        for each in (task, chunk.tasks.first)
    )
    result = wire.Result(outcome=Outcome.SOFT_FAILED, code=1, tasks=chunk.tasks)
    bench.report(chunk, (result,), failures)
    assert [failure.task for _, failure in bench.ledger.failures.first] == [chunk.tasks.first]
    assert bench.ledger.misplaced == 1
    bench.same_in_replay()


def counts_three(bench: Bench) -> None:
    """The step that counts samples is asked again, counts three, and all tasks succeed."""
    (again,) = bench.issue()
    bench.start(again)
    bench.apply(counting(again, 3))
    bench.run_all()
    assert bench.ledger.finished
    assert [bench.outcomes(step) for step in range(3)] == [{Outcome.SUCCEEDED: each} for each in (1, 6, 1)]
    bench.same_in_replay()


@pytest.mark.parametrize("count", [0, -5, MAX_TASKS // 2 + 1, 10**18])
def test_samples_that_can_t_be_fail_the_step_that_counted_them_and_a_restart_counts_again(count: int) -> None:
    """Two combinations of each: half of what a step may have is the most."""
    bench = Bench(plan_of(SAMPLED))
    (chunk,) = bench.issue()
    bench.start(chunk)
    bench.apply(counting(chunk, count))
    assert bench.ledger.finished
    assert [bench.outcomes(step) for step in range(3)] == [{Outcome.FAILED: 1}, {}, {Outcome.CANCELLED: 1}]
    assert (bench.ledger.misplaced, bench.ledger.facts, bench.ledger.geometry.samples) == (1, None, 0)
    ((step, failure),) = bench.ledger.failures.first
    assert (step, failure.outcome, failure.code) == (0, Outcome.FAILED, 1)
    assert str(count) in failure.tail
    bench.same_in_replay()
    bench.switch(restart=asking("1"))
    counts_three(bench)


def test_nor_are_samples_believed_that_a_lost_agent_or_a_claim_tells_of() -> None:
    ledger = Ledger(plan_of(SAMPLED))
    chunk = wire.Chunk(study="u", plan="h", epoch=1, fence=1, step=0, tasks=TaskSet.of([0]), attempt=1, samples=10**18)
    ledger.apply(wire.Start(agent="host-1", chunk=chunk), at=1.0)
    assert ledger.geometry.samples == 0
    ledger.apply(wire.Lost(fence=1, agent="host-1"), at=2.0)
    ledger.apply(counting(chunk, 10**18), at=3.0)
    assert (ledger.misplaced, ledger.redundant, ledger.facts, ledger.geometry.samples) == (1, 1, None, 0)
    assert not ledger.failures.first
    ledger.apply(counting(chunk, 3, serial=2), at=4.0)
    assert ledger.geometry.samples == 3


def test_samples_that_are_counted_without_a_number_are_counted_again_but_not_without_end() -> None:
    """An agent that never tells it is not asked for ever; the failure says what was expected and what was found."""
    bench = Bench(plan_of(SAMPLED))
    for attempt in range(1, COUNTS + 1):
        assert not bench.ledger.finished
        (chunk,) = bench.issue()
        assert chunk.attempt == attempt
        bench.start(chunk)
        bench.apply(counting(chunk, 3).model_copy(update={"samples": None, "attempt": attempt}))
        bench.now += 60
    assert bench.ledger.finished
    assert [bench.outcomes(step) for step in range(3)] == [{Outcome.FAILED: 1}, {}, {Outcome.CANCELLED: 1}]
    ((_, failure),) = bench.ledger.failures.first
    assert (failure.outcome, failure.host) == (Outcome.FAILED, "host-1")
    assert f"expected their number with its success, found none at attempt {COUNTS}" in failure.tail
    bench.same_in_replay()
    bench.switch(restart=asking("1"))
    counts_three(bench)


def test_samples_that_are_told_after_a_purge_gave_them_up_are_counted_again_by_a_restart() -> None:
    """Their number without their tasks would be a study that never has them."""
    bench = Bench(plan_of(SAMPLED))
    (chunk,) = bench.issue()
    bench.start(chunk)
    bench.apply(wire.Lost(fence=chunk.fence, agent="host-1"))
    bench.switch(purge="1")
    assert bench.ledger.finished
    bench.apply(counting(chunk, 3))
    assert (bench.ledger.facts, bench.ledger.geometry.samples) == (None, 0)
    bench.same_in_replay()
    bench.switch(purge="1", restart=asking("1"))
    counts_three(bench)


TWO = """
description: {name: n, description: d}
merlin: {samples: {file: s.csv, column_labels: [S]}}
study:
- {name: other, description: d, run: {cmd: ls}}
- {name: a, description: d, run: {cmd: echo $(S)}}
"""


@pytest.mark.parametrize("lost", [False, True], ids=["from its holder", "late"])
def test_only_the_step_that_measures_the_samples_tells_how_many_there_are(lost: bool) -> None:  # noqa: FBT001
    """Or any step's agent could size all the others."""
    bench = Bench(plan_of(TWO))
    counts, other = bench.issue()
    assert [bench.plan.steps[each.step].name for each in (counts, other)] == ["merlin_info", "other"]
    for each in (counts, other):
        bench.start(each)
    if lost:
        bench.apply(wire.Lost(fence=other.fence, agent="host-1"))
    bench.apply(counting(other, 7).model_copy(update={"step": other.step}))
    assert (bench.ledger.misplaced, bench.ledger.facts, bench.ledger.geometry.samples) == (1, None, 0)
    assert bench.outcomes(other.step) == {Outcome.SUCCEEDED: 1}
    bench.apply(counting(counts, 3))
    assert (bench.ledger.facts, bench.ledger.geometry.samples) == (counting(counts, 3).samples, 3)
    bench.same_in_replay()


@pytest.mark.parametrize("width", [MAX_WIDTH + 1, 10**18])
def test_a_result_wider_than_any_chunk_is_refused_before_it_is_bits(width: int) -> None:
    """Two integers in a message, and an exabit in memory."""
    told = '{"kind":"report","agent":"a","fence":1,"serial":1,"step":0,"attempt":1,"results":[%s]}'
    result = '{"outcome":"succeeded","code":0,"tasks":{"first":0,"width":%d}}'
    assert isinstance(wire.decode_log((told % result % MAX_WIDTH).encode()), wire.Report)
    with pytest.raises(ValidationError, match="expected tasks of one chunk"):
        wire.decode_log((told % result % width).encode())
