"""What a new operator concludes from a log that another one left, or that agents told anew."""

from __future__ import annotations

import itertools

import pytest

from merlin_operator.study import Study
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of

PLAN = plan_of("""
description: {name: t, description: d}
global.parameters: {G: {values: [1, 2, 3, 4], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", retry_delay: 0}}
""")


def chunk(fence: int, first: int, width: int, *, attempt: int = 1, lost: tuple[int, ...] = ()) -> wire.Chunk:
    """A chunk of the only step."""
    tasks = TaskSet(first=first, width=width)
    holders = tuple(wire.LostHolder(fence=each, agent=f"agent-{each}") for each in lost)
    return wire.Chunk(study="u", plan="p", epoch=1, fence=fence, step=0, tasks=tasks, attempt=attempt, lost=holders)


def start(of: wire.Chunk) -> wire.Start:
    """Its claim, by an agent that is named after the fence."""
    return wire.Start(agent=f"agent-{of.fence}", chunk=of)


def report(of: wire.Chunk, outcome: Outcome | None, serial: int = 1, *, final: bool = True) -> wire.Report:
    """A report of all its tasks."""
    results = () if outcome is None else (wire.Result(outcome=outcome, code=0, tasks=of.tasks),)
    return wire.Report(
        agent=f"agent-{of.fence}",
        fence=of.fence,
        serial=serial,
        step=0,
        attempt=of.attempt,
        results=results,
        final=final,
    )


def fold(*entries: wire.Entry) -> Ledger:
    """Fold a log, as an operator that starts does."""
    ledger = Ledger(PLAN)
    for entry in entries:
        ledger.apply(entry, at=1.0)
    ledger.settle_waiting()
    return ledger


def waiting(ledger: Ledger) -> list[tuple[int, list[int]]]:
    """What is due, as (attempt, tasks)."""
    found = []
    while (each := ledger.due(10.0)) is not None:
        found.append((each.attempt, list(each.tasks.indices())))
    return found


def test_a_retry_that_was_issued_and_failed_again_waits_once() -> None:
    """The first operator had taken the second attempt off its list; the log does not say so, but the third attempt's claim does."""
    first, second = chunk(1, 0, 4), chunk(2, 0, 4, attempt=2)
    log = (start(first), report(first, Outcome.RETRY), start(second), report(second, Outcome.RETRY))
    assert waiting(fold(*log)) == [(3, [0, 1, 2, 3])]


def test_the_rest_of_a_chunk_that_was_handed_back_twice_waits_once() -> None:
    first, second = chunk(1, 0, 4), chunk(2, 0, 4)
    log = (start(first), report(first, None), start(second), report(second, None))
    assert waiting(fold(*log)) == [(1, [0, 1, 2, 3])]


def test_a_last_report_that_overtakes_others_ends_nothing_before_they_are_in() -> None:
    whole = chunk(1, 0, 4)
    ledger = fold(start(whole), report(whole, None, serial=2))
    assert 1 in ledger.fences
    ledger.apply(report(whole, Outcome.SUCCEEDED, serial=1, final=False), at=2.0)
    ledger.apply(report(whole, None, serial=2), at=2.0)
    assert ledger.finished
    assert ledger.steps[0].outcomes[Outcome.SUCCEEDED] == 4


def test_a_claim_that_names_a_lost_holder_stands_for_the_verdict_that_is_gone() -> None:
    """Whichever claim is told first; what the later chunk does not have of the lost one waits."""
    lost, after = chunk(1, 0, 4), chunk(2, 1, 2, lost=(1,))
    for log in ((start(lost), start(after)), (start(after), start(lost))):
        ledger = fold(*log)
        assert set(ledger.fences) == {2}
        assert waiting(ledger) == [(1, [0, 3])]
        ledger.apply(report(after, Outcome.SUCCEEDED), at=2.0)
        assert len(ledger.steps[0].final) == 2


def test_two_successes_are_explained_by_a_lost_holder_whose_own_came_before_anybody_called_it_lost() -> None:
    """It came late, once its successor had failed and another one followed; told anew, by fence, it comes first."""
    lost, second, third = chunk(1, 0, 4), chunk(2, 0, 2, lost=(1,)), chunk(3, 2, 2, lost=(1,))
    again = chunk(4, 0, 2, attempt=2), chunk(5, 2, 2, attempt=2)
    told: list[wire.Entry] = [start(lost), report(lost, Outcome.SUCCEEDED)]
    for each in (second, third):
        told += [start(each), report(each, Outcome.RETRY)]
    for each in again:
        told += [start(each), report(each, Outcome.SUCCEEDED)]
    ledger = fold(*told)
    assert (ledger.doubled, ledger.redundant) == (0, 8)
    ledger.apply(report(lost, Outcome.SUCCEEDED), at=2.0)
    assert ledger.redundant == 9, "its reports are all in"


def test_what_late_claims_of_two_lost_epochs_hand_back_waits_once() -> None:
    """Both chunks were in agents' hands as a log was lost, one after the other, and both hold the same tasks."""
    old, newer = chunk(1, 0, 4), chunk(wire.first_fence(2), 0, 3)
    log = (start(newer), start(old), wire.Repaired(epoch=3))
    assert waiting(fold(*log, report(newer, None), report(old, None))) == [(1, [0, 1, 2, 3])]
    done = fold(*log, report(old, Outcome.SUCCEEDED), report(newer, None))
    assert (waiting(done), done.doubled) == ([], 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
@pytest.mark.parametrize("repaired", ["before", "after"])
def test_a_retry_waits_once_whenever_a_late_claim_of_its_first_attempt_is_told_and_handed_back(
    order: tuple[int, ...], repaired: str
) -> None:
    """A chunk of an epoch that is over was claimed and handed back while a later one ran the same tasks."""
    old, newer = chunk(1, 0, 4), chunk(wire.first_fence(2), 0, 3)
    entries = (start(old), report(old, None), start(newer), report(newer, Outcome.RETRY))
    log: list[wire.Entry] = [entries[at] for at in order]
    if repaired == "before":
        log.insert(0, wire.Repaired(epoch=2))
    else:
        log.append(wire.Repaired(epoch=3))
    waits = sorted((attempt, task) for attempt, tasks in waiting(fold(*log)) for task in tasks)
    assert waits == [(1, 3)] * (repaired != "before") + [(2, 0), (2, 1), (2, 2)]


def test_a_success_counts_of_whoever_claimed_the_fence_where_a_log_that_was_put_back_let_two_claim_it() -> None:
    """The second one, whose claim the log has, hands it back as one of an epoch that is over; the first one's is told after it."""
    whole = chunk(1, 0, 4)
    second = wire.Start(agent="second", chunk=whole)
    handed_back = report(whole, None).model_copy(update={"agent": "second"})
    for log in ((second, start(whole), handed_back, report(whole, Outcome.SUCCEEDED)),
                (start(whole), second, handed_back, report(whole, Outcome.SUCCEEDED)),
                (second, start(whole), report(whole, Outcome.SUCCEEDED), handed_back)):  # fmt: skip
        ledger = fold(*log)
        assert ledger.finished
        assert ledger.due(10.0) is None
        assert ledger.doubled == 0


def _claimed_twice() -> tuple[wire.Chunk, wire.Start, wire.Report]:
    """A chunk that agent-1 runs, another one's claim of it, and that one's handing it back since its epoch is over."""
    whole = chunk(1, 0, 4)
    handed_back = report(whole, None).model_copy(update={"agent": "second"})
    return whole, wire.Start(agent="second", chunk=whole), handed_back


@pytest.mark.parametrize("ends", ["handed back", "handed back before", "lost"])
def test_who_runs_a_chunk_keeps_it_where_another_one_claimed_it_too_and_is_done_with_it(ends: str) -> None:
    """Also where it is told of only after the other one has handed the chunk back: nothing of it is issued beside that."""
    whole, second, handed_back = _claimed_twice()
    log: list[wire.Entry] = [second, start(whole), wire.Repaired(epoch=2)]
    if ends == "lost":
        log.append(wire.Lost(fence=1, agent="second"))
    else:
        log.insert(1 if ends == "handed back before" else 2, handed_back)
    ledger = fold(*log)
    assert ledger.due(10.0) is None
    assert ledger.fences[1].holder == "agent-1"
    ledger.apply(report(whole, Outcome.RETRY), at=2.0)
    assert waiting(ledger) == [(2, [0, 1, 2, 3])]


def test_who_keeps_a_chunk_after_the_other_one_was_lost_can_be_lost_in_its_turn() -> None:
    whole, second, _ = _claimed_twice()
    ledger, study = fold(second, start(whole), wire.Repaired(epoch=2)), Study(StudyRef("ns", "s", "u"), 1)
    for holder in ("second", "agent-1"):
        assert study.held(ledger) == [(1, holder)]
        study.judged.add((1, holder))
        assert study.held(ledger) == []
        ledger.apply(wire.Lost(fence=1, agent=holder), at=2.0)
    assert waiting(ledger) == [(1, [0, 1, 2, 3])]


def test_who_hands_a_chunk_back_has_it_back_for_whoever_comes_next() -> None:
    """Its own claim, told again, takes nothing out of what waits; nor does anybody's after the log is whole."""
    whole, second, handed_back = _claimed_twice()
    assert waiting(fold(second, handed_back, second)) == [(1, [0, 1, 2, 3])]
    assert waiting(fold(second, handed_back, wire.Repaired(epoch=2), start(whole))) == [(1, [0, 1, 2, 3])]


def test_what_the_first_of_two_claimants_tells_counts_once_though_its_claim_is_told_last() -> None:
    whole, second, handed_back = _claimed_twice()

    def told(outcome: Outcome, *tasks: int, serial: int) -> wire.Report:
        result = wire.Result(outcome=outcome, code=0, tasks=TaskSet.of(tasks))
        return report(whole, None, serial, final=serial == 2).model_copy(update={"results": (result,)})

    some, rest = told(Outcome.SUCCEEDED, 0, 2, serial=1), told(Outcome.SOFT_FAILED, 1, 3, serial=2)
    entries: tuple[wire.Entry, ...] = (some, second, handed_back, start(whole), rest)
    for log in itertools.permutations(entries):
        if log.index(second) < log.index(handed_back):
            ledger = fold(*log, wire.Repaired(epoch=2))
            assert (waiting(ledger), ledger.doubled, ledger.finished) == ([], 0, True)
            assert ledger.steps[0].outcomes[Outcome.SUCCEEDED] == 2


@pytest.mark.parametrize("excused", [False, True])
def test_what_runs_is_not_issued_beside_that_where_it_is_named_to_run_again(excused: bool) -> None:  # noqa: FBT001
    """A lost holder succeeds after all, while its successor runs the same tasks: these are over, and run."""
    lost, after = chunk(1, 0, 4), chunk(2, 0, 4, lost=(1,))
    outcome = Outcome.SUCCEEDED
    log = (start(lost), wire.Lost(fence=1, agent="agent-1"), start(after), report(lost, outcome))
    ledger = Ledger(PLAN)
    for entry in log:
        ledger.apply(entry, at=1.0)
        while ledger.due(1.0) is not None:
            pass
    assert ledger.finished
    again: wire.Entry = wire.Restarted(token="restart:1", steps=(0,), codes=(0,), below=3)
    if excused:
        failed = TaskSet.of([0])
        ledger.apply(again, at=2.0)
        ledger.dag.finish(0, failed, Outcome.SOFT_FAILED, code=1)
        each = wire.Excuse(step=0, attempt=1, tasks=failed)
        again = wire.Excused(token="excused:1", host="h", failed=(each,), below=3)
    ledger.apply(again, at=3.0)
    assert not ledger.finished
    assert (ledger.steps[0].available, waiting(ledger)) == (0, [])
    ledger.apply(report(after, Outcome.SUCCEEDED), at=4.0)
    assert ledger.finished
    assert ledger.doubled == 0


def test_a_look_at_marks_of_a_lost_epoch_takes_no_task_from_who_runs_it() -> None:
    look = chunk(1, 0, 4).model_copy(update={"scan": True})
    again = chunk(wire.first_fence(2), 0, 4)
    ledger = fold(start(look), wire.Repaired(epoch=2), start(again), report(look, Outcome.SUCCEEDED))
    assert ledger.fences[again.fence].open == again.tasks.bits


def test_a_verdict_on_a_log_that_was_lost_again_meanwhile_closes_nothing() -> None:
    ran = chunk(1, 0, 4)
    lost = fold(wire.Repaired(epoch=2, entries=2), start(ran), report(ran, Outcome.SUCCEEDED))
    assert (lost.repaired, len(lost.steps[0].succeeded)) == (1, 4)
    whole = fold(start(ran), report(ran, Outcome.SUCCEEDED), wire.Repaired(epoch=2, entries=2))
    assert (whole.repaired, len(whole.steps[0].succeeded)) == (2, 4)
