"""Whether a Study runs: judged once, and not again where it runs already."""

from __future__ import annotations

from typing import Any

import pytest

from merlin_operator.acceptance import directory, judge
from merlin_operator.board import Submission
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.notyet import Missing
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of

SPEC: dict[str, Any] = {
    "description": {"name": "n", "description": "d"},
    "study": [{"name": "a", "description": "d", "run": {"cmd": "echo $(SPECROOT)"}}],
    "vars": {"SPECROOT": "/the/folder"},
}
ACCEPTED = {"conditions": [{"type": "Accepted", "status": "True"}]}


def _submission(spec: dict[str, Any], status: dict[str, Any] | None = None) -> Submission:
    return Submission(StudyRef("ns", "n", "uid"), 1, "1", 1_767_322_245.0, spec, status or {})


def test_the_same_study_becomes_the_same_plan() -> None:
    first, second = judge(_submission(SPEC)), judge(_submission(SPEC, ACCEPTED))
    assert first.plan is not None
    assert second.plan is not None
    assert first.plan.hash == second.plan.hash
    assert first.plan.workspace == "n_20260102-025045"


def test_studies_that_are_created_together_get_directories_of_their_own_and_keep_them() -> None:
    """A number behind the stamp; later, by what the Study shows, whatever else there is then. Who names the run gets that name."""
    first = judge(_submission(SPEC)).plan
    assert first is not None
    other = "n_20260102-025045"
    taken = {directory(first), ("elsewhere", f"{other}-9"), ("", "n_mine")}
    second = judge(_submission(SPEC), taken=taken).plan
    assert second is not None
    assert second.workspace == f"{other}-2"
    third = judge(_submission(SPEC), taken={*taken, directory(second)}).plan
    assert third is not None
    assert third.workspace == f"{other}-3"
    shown = {**ACCEPTED, "workspace": f"/p/{second.workspace}"}
    assert judge(_submission(SPEC, shown), taken={directory(second)}).plan == second
    assert judge(_submission(SPEC, {**ACCEPTED, "workspace": f"/p/{first.workspace}"}), taken=taken).plan == first
    named = judge(_submission({**SPEC, "runId": "mine"}), taken={("", "n_mine")}).plan
    assert named is not None
    assert named.workspace == "n_mine"


def test_what_only_the_submitter_knows_comes_through_vars() -> None:
    """``merlin run`` tells the folder of the specification; nothing else may take a reserved name."""
    plan = judge(_submission(SPEC)).plan
    assert plan is not None
    assert (plan.steps[0].cmd, plan.spec_root) == ("echo $(SPECROOT)", "/the/folder")
    refused = judge(_submission({**SPEC, "vars": {"SPECROOT": "/x", "MERLIN_INFO": "/y"}}))
    assert [fault.path for fault in refused.faults] != []


def test_a_switch_that_is_not_built_refuses_a_new_study_and_warns_of_a_running_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never ignored: a new study is refused with the reason; one that runs goes on, and its user is told."""
    monkeypatch.setattr("merlin_study.notyet.TABLE", (Missing(("suspend",), harmless=lambda value: value is False),))
    switch = {"suspend": True}
    new = judge(_submission({**SPEC, **switch}))
    assert new.plan is None
    assert {fault.reason for fault in new.faults} == {"NotYetSupported"}
    running, plain = judge(_submission({**SPEC, **switch}, ACCEPTED)), judge(_submission(SPEC))
    assert running.plan == plain.plan
    assert [fault.reason for fault in running.warnings] == ["NotYetSupported"]


def test_what_its_author_should_know_of_workers_is_told_with_the_acceptance() -> None:
    """A study runs whatever its worker blocks say, since any agent that serves a queue does; so these are no faults."""
    block = {"merlin": {"resources": {"workers": {"w": {"steps": ["b"], "args": "--time-limit 3"}}}}}
    verdict = judge(_submission({**SPEC, **block}))
    assert verdict.plan is not None
    assert [note.partition(": ")[0] for note in verdict.notes] == [
        "spec.merlin.resources.workers.w.args",
        "spec.merlin.resources.workers.w.steps[0]",
        "spec.merlin.resources.workers",
    ]


def test_vars_replace_labels_too() -> None:
    plan = plan_of(
        "description: {name: n, description: d}\nenv: {labels: {WHERE: here}}\nvars: {WHERE: there}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(WHERE)}}]"
    )
    assert plan.steps[0].cmd == "echo there"


RESTARTS = """
description: {name: n, description: d}
study: [{name: a, description: d, run: {cmd: one, restart: two, walltime: 10, max_retries: 1, retry_delay: 3}}]
"""


def _tried(plan: Plan, ledger: Ledger, outcome: Outcome, *, fence: int, attempt: int, restart: bool = False) -> None:
    chunk = wire.Chunk(
        study="u", plan=plan.hash, epoch=1, fence=fence, step=0, tasks=TaskSet(first=0, width=1), attempt=attempt,
        restart=restart,
    )  # fmt: skip
    ledger.apply(wire.Start(agent="a", chunk=chunk), at=100.0)
    failure = wire.Failure(task=0, outcome=outcome, code=104, host="h", directory="d")
    report = wire.Report(
        agent="a", fence=fence, serial=1, step=0, attempt=attempt, final=True, failures=(failure,),
        results=(wire.Result(outcome=outcome, code=104, tasks=chunk.tasks),),
    )  # fmt: skip
    ledger.apply(report, at=100.0)


@pytest.mark.parametrize(
    ("outcome", "restart"), [(Outcome.RESTART, True), (Outcome.RETRY, False), (Outcome.TIMED_OUT, True)]
)
def test_a_task_is_tried_again_after_its_delay_until_its_budget_is_spent(outcome: Outcome, restart: bool) -> None:  # noqa: FBT001
    """100 and a timeout run the restart script, 104 the command; one budget, then a soft failure (or a timeout)."""
    plan = plan_of(RESTARTS)
    ledger = Ledger(plan)
    _tried(plan, ledger, outcome, fence=1, attempt=1)
    assert ledger.due(102.9) is None
    waiting = ledger.due(103.0)
    assert waiting is not None
    assert (waiting.attempt, waiting.restart) == (2, restart)
    assert ledger.failures.first == []
    _tried(plan, ledger, outcome, fence=2, attempt=2, restart=restart)
    stands = Outcome.TIMED_OUT if outcome is Outcome.TIMED_OUT else Outcome.SOFT_FAILED
    assert ledger.steps[0].outcomes == {stands: 1}
    assert [failure.outcome for _, failure in ledger.failures.first] == [stands]
    assert ledger.finished


def test_samples_made_but_not_measured_are_made_again() -> None:
    """A success of the sampling step without the figures (its agent was lost in between) is no end: the step runs again."""
    plan = plan_of(
        "description: {name: n, description: d}\nmerlin: {samples: {file: s.csv, column_labels: [S]}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(S)}}]"
    )
    ledger = Ledger(plan)
    _tried(plan, ledger, Outcome.SUCCEEDED, fence=1, attempt=1)
    assert not ledger.finished
    waiting = ledger.due(101.0)
    assert waiting is not None
    assert (waiting.step, waiting.attempt) == (0, 2)


def test_a_loss_spends_nothing_of_the_budget() -> None:
    """The rest of a lost chunk is issued as the same attempt, and names who lost it."""
    plan = plan_of(RESTARTS)
    ledger = Ledger(plan)
    chunk = wire.Chunk(study="u", plan="p", epoch=1, fence=1, step=0, tasks=TaskSet(first=0, width=1), attempt=1)
    ledger.apply(wire.Start(agent="a", chunk=chunk), at=1.0)
    ledger.apply(wire.Lost(fence=1, agent="a"), at=2.0)
    waiting = ledger.due(2.0)
    assert waiting is not None
    assert (waiting.attempt, waiting.lost) == (1, (wire.LostHolder(fence=1, agent="a"),))


def test_a_chunk_that_nobody_can_run_is_not_passed_to_and_fro() -> None:
    """Handed back with a refusal it waits a moment before it is issued again."""
    plan = plan_of(RESTARTS)
    ledger = Ledger(plan)
    chunk = wire.Chunk(study="u", plan="p", epoch=1, fence=1, step=0, tasks=TaskSet(first=0, width=1), attempt=1)
    ledger.apply(wire.Start(agent="a", chunk=chunk), at=1.0)
    report = wire.Report(agent="a", fence=1, serial=1, step=0, attempt=1, refused="another site", final=True)
    ledger.apply(report, at=1.0)
    assert ledger.due(1.5) is None
    assert ledger.due(4.0) is not None


def test_samples_that_can_t_be_made_end_the_study() -> None:
    """What depends on the samples is cancelled or has no tasks; what does not depends on nothing runs."""
    plan = plan_of(
        "description: {name: n, description: d}\nmerlin: {samples: {file: s.csv, column_labels: [S]}}\nstudy:\n"
        "- {name: free, description: d, run: {cmd: echo}}\n"
        "- {name: bound, description: d, run: {cmd: echo $(S)}}\n"
        "- {name: sum, description: d, run: {cmd: echo, depends: [bound_*]}}"
    )
    ledger = Ledger(plan)
    _tried(plan, ledger, Outcome.FAILED, fence=1, attempt=1)
    by_name = {planned.name: step for planned, step in zip(plan.steps, ledger.steps, strict=True)}
    assert by_name["bound"].total == 0
    assert by_name["sum"].outcomes == {Outcome.CANCELLED: 1}
    assert not ledger.finished
    assert by_name["free"].available == 1


def test_an_author_is_told_which_step_is_not_packed_and_which_script_reads_it() -> None:
    """In the message of the condition; the study runs all the same."""
    steps = [
        {"name": "sim", "description": "d", "run": {"cmd": "echo $(MERLIN_SAMPLE_ID)"}},
        {"name": "sum", "description": "d", "run": {"cmd": "cat $(sim.workspace)/x", "depends": ["sim_*"]}},
    ]
    spec = {"description": SPEC["description"], "study": steps, "merlin": {"samples": {"count": 3}}}
    assert judge(_submission({**spec, "outputs": "lean"})).notes == ()
    (note,) = judge(_submission({**spec, "outputs": "packed"})).notes
    assert note.startswith("step 'sum': names $(sim.workspace), so under outputs: packed the tasks of step 'sim'")
