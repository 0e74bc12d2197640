"""A chunk's states, and what is reported of it: pure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.report import WINDOW, Pending
from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet


def a_chunk(tasks: TaskSet) -> wire.Chunk:
    """A chunk of step 1."""
    return wire.Chunk(study="s", plan="p", epoch=1, fence=7, step=1, tasks=tasks, attempt=2)


def a_result(*tasks: int, outcome: Outcome = Outcome.SUCCEEDED, code: int = 0) -> wire.Result:
    """A lost holder's result."""
    return wire.Result(outcome=outcome, code=code, tasks=TaskSet.of(tasks))


def taken(run: ChunkRun) -> list[int]:
    """All that slots still get."""
    found = []
    while (task := run.take()) is not None:
        found.append(task)
    return found


def test_tasks_are_taken_in_order_and_the_chunk_is_over_with_the_last() -> None:
    """A mask's gaps are left out."""
    run = ChunkRun(a_chunk(TaskSet.of([3, 4, 9])))
    assert not run.over
    run.feed()
    assert taken(run) == [3, 4, 9]
    assert (run.left, run.running, run.over) == (0, 3, False)
    for _ in range(3):
        run.ended()
    assert run.over


def test_adopted_tasks_do_not_run() -> None:
    """Only what is in the chunk and new is adopted, however often it is read."""
    run = ChunkRun(a_chunk(TaskSet(first=10, width=6)))
    assert run.adopt([a_result(8, 10, 12), a_result(12, 15, 99, outcome=Outcome.FAILED, code=102)]) == [
        a_result(10, 12),
        a_result(15, outcome=Outcome.FAILED, code=102),
    ]
    assert run.adopt([a_result(10, 12)]) == []
    assert run.unresolved == 3
    run.feed()
    assert taken(run) == [11, 13, 14]


def test_a_chunk_that_was_adopted_whole_is_over_when_fed() -> None:
    """Nothing is left to take."""
    run = ChunkRun(a_chunk(TaskSet(first=0, width=2)))
    run.adopt([a_result(0, 1)])
    run.feed()
    assert run.over


def test_stopping_starts_nothing_more_and_waits_for_what_runs() -> None:
    """Cancelling overrides handing back, not the other way round."""
    run = ChunkRun(a_chunk(TaskSet(first=0, width=3)))
    run.feed()
    assert run.take() == 0
    run.stop(Stop.HANDED_BACK)
    assert (run.take(), run.over) == (None, False)
    run.stop(Stop.CANCELLED)
    run.stop(Stop.HANDED_BACK)
    assert run.stopped is Stop.CANCELLED
    run.ended()
    assert run.over


def test_a_chunk_stopped_before_it_is_fed_is_over() -> None:
    """And stays so when it is fed all the same."""
    run = ChunkRun(a_chunk(TaskSet(first=0, width=3)))
    run.stop(Stop.HANDED_BACK)
    assert run.over
    run.feed()
    assert taken(run) == []
    assert run.over


def test_adopting_into_a_fed_chunk_is_a_bug() -> None:
    """The task may be running."""
    run = ChunkRun(a_chunk(TaskSet(first=0, width=3)))
    run.feed()
    with pytest.raises(AssertionError, match="bug"):
        run.adopt([])


def test_equal_ends_are_one_result() -> None:
    """A report sums up; the next one starts anew."""
    pending = Pending()
    for task in (5, 3, 4):
        pending.add(Ended(task, Outcome.SUCCEEDED, 0, 0.5))
    pending.add(Ended(9, Outcome.SOFT_FAILED, 1, 0.25))
    pending.add(Ended(10, None))
    (report,) = pending.reports(agent="a", chunk=a_chunk(TaskSet(first=0, width=11)), serial=4, final=False)
    assert report == wire.Report(
        agent="a",
        fence=7,
        serial=4,
        step=1,
        attempt=2,
        results=(
            wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=TaskSet(first=3, width=3)),
            wire.Result(outcome=Outcome.SOFT_FAILED, code=1, tasks=TaskSet(first=9, width=1)),
        ),
        seconds=1.75,
    )
    assert not pending
    assert pending.reports(agent="a", chunk=a_chunk(TaskSet(first=0, width=1)), serial=5, final=False) == []


def test_a_final_report_comes_even_where_there_is_nothing_to_tell() -> None:
    """Giving a chunk up is a report of its own."""
    (report,) = Pending().reports(
        agent="a", chunk=a_chunk(TaskSet(first=0, width=1)), serial=1, final=True, refused="x" * 9999
    )
    assert (report.final, report.results, len(report.refused)) == (True, (), wire.MAX_TAIL)


def failure(task: int, tail: str) -> wire.Failure:
    """A failure in full."""
    return wire.Failure(task=task, outcome=Outcome.FAILED, code=102, host="h" * 60, directory="/d" * 500, tail=tail)


def test_failures_are_told_in_full_up_to_a_number() -> None:
    """The rest is in the results."""
    pending = Pending()
    for task in range(50):
        assert pending.tells_more is (task < wire.MAX_EXCEPTIONS)
        pending.add(Ended(task, Outcome.FAILED, 102, 0.0, failure(task, "")))
    (report,) = pending.reports(agent="a", chunk=a_chunk(TaskSet(first=0, width=50)), serial=1, final=True)
    assert [told.task for told in report.failures] == list(range(wire.MAX_EXCEPTIONS))


def test_no_report_is_larger_than_its_bound() -> None:
    """The widest masks and the longest tails are spread over several reports; only the last is final."""
    pending = Pending()
    for task in range(0, 2 * WINDOW, 2):
        pending.add(Ended(task, (Outcome.SUCCEEDED, Outcome.FAILED)[task % 3 == 0], task % 3, 0.0))
    for task in range(20):
        pending.add(Ended(2 * WINDOW + task, Outcome.FAILED, 102, 0.0, failure(task, "\u0001" * wire.MAX_TAIL)))
    reports = pending.reports(agent="a" * 80, chunk=a_chunk(TaskSet(first=0, width=1)), serial=1, final=True)
    assert max(len(report.encode()) for report in reports) <= wire.MAX_REPORT_BYTES
    assert [report.serial for report in reports] == list(range(1, len(reports) + 1))
    assert [report.final for report in reports] == [False] * (len(reports) - 1) + [True]
    assert sum(len(result.tasks) for report in reports for result in report.results) == WINDOW + 20
    assert sum(len(report.failures) for report in reports) == 20


@given(st.dictionaries(st.integers(0, 5000), st.sampled_from([0, 1, 2, 104]), min_size=1))
def test_reports_tell_exactly_what_ended(codes: dict[int, int]) -> None:
    """Each task once, with its own code."""
    pending = Pending()
    for task, code in codes.items():
        pending.add(Ended(task, Outcome.SOFT_FAILED, code))
    reports = pending.reports(agent="a", chunk=a_chunk(TaskSet(first=0, width=1)), serial=1, final=False)
    told = {task: result.code for report in reports for result in report.results for task in result.tasks.indices()}
    assert told == codes
    assert all(wire.Report.model_validate_json(json.dumps(json.loads(r.encode()))) == r for r in reports)
