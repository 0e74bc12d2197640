"""What a study's switches and its tasks' exit codes do to its ledger: drops, stops, restarts, and what none of them touch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_operator.conditions import status_of
from merlin_operator.control import Control, Switches, faults, ranges, switches_of
from merlin_operator.doubt import Past
from merlin_operator.study import Study
from merlin_operator.unroll import Candidate, Capacity, next_chunks
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.ledger import MAX_LOSSES, Ledger
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.snapshot import freeze, thaw
from merlin_study.spec import RestartRequest
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of

TEXT = """
description: {name: t, description: d}
global.parameters: {G: {values: [1, 2, 3, 4, 5, 6], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", task_queue: one}}
- {name: b, description: d, run: {cmd: "ls $(a.workspace) $(G)", depends: [a], task_queue: two}}
- {name: c, description: d, run: {cmd: "echo", depends: [b_*], task_queue: one}}
- {name: d, description: d, run: {cmd: "echo $(G)", task_queue: two}}
"""
A, B, C, D = range(4)


@pytest.fixture
def plan() -> Plan:
    made = plan_of(TEXT)
    assert [step.name for step in made.steps] == ["a", "b", "c", "d"]
    return made


def asking(token: str, **which: object) -> RestartRequest:
    """A request as the API server has it."""
    return RestartRequest.model_validate({"id": token, **which})


class Bench:
    """A ledger and its operator, with an agent that does as it is told."""

    def __init__(self, plan: Plan, **switches: object) -> None:
        self.plan, self.ledger, self.now = plan, Ledger(plan), 1000.0
        self.log: list[tuple[wire.Entry, float]] = []
        self.switches = Switches(**switches)  # type: ignore[arg-type]
        self.settle()

    def apply(self, entry: wire.Entry) -> None:
        self.log.append((entry, self.now))
        self.ledger.apply(entry, at=self.now)

    @property
    def control(self) -> Control:
        return Control(self.switches, self.ledger, self.now)

    def settle(self) -> None:
        """Carry out what the switches ask for, as the engine does, until they ask for nothing."""
        for _ in range(100):
            control = self.control
            gone, verdict = control.to_withdraw(), control.verdict()
            for fence in gone:
                self.apply(wire.Withdrawn(fence=fence))
            if not gone and verdict is None:
                return
            if not gone and verdict is not None:
                self.apply(verdict)
        pytest.fail("the switches never come to rest")

    def switch(self, **switches: object) -> None:
        self.switches = Switches(**switches)  # type: ignore[arg-type]
        self.settle()

    def issue(self) -> list[wire.Chunk]:
        """Publish what may go out."""
        if self.control.holds:
            return []
        candidate = Candidate("u", self.plan.hash, 1, self.ledger, "any", most=self.switches.max_in_flight)
        capacity = {("any", *want): Capacity(4) for want in self.plan.wants}
        return [issue.chunk for issue in next_chunks([candidate], capacity, window=1.0, now=self.now)]

    def start(self, chunk: wire.Chunk, agent: str = "host-1") -> None:
        self.apply(wire.Start(agent=agent, chunk=chunk))

    def end(self, chunk: wire.Chunk, code: int = 0, *, tasks: TaskSet | None = None) -> None:
        """Report all tasks of a chunk (or ``tasks``) with one exit code, and hand back the rest."""
        by_code = {0: Outcome.SUCCEEDED, 102: Outcome.FAILED, 105: Outcome.CANCELLED, -15: Outcome.CANCELLED}
        outcome = by_code.get(code, Outcome.SOFT_FAILED)
        result = wire.Result(outcome=outcome, code=code, tasks=tasks or chunk.tasks)
        holder = self.ledger.fences[chunk.fence].holder or "host-1"
        self.apply(
            wire.Report(
                agent=holder, fence=chunk.fence, serial=1, step=chunk.step, attempt=1, results=(result,), final=True
            )
        )
        self.settle()

    def run_all(
        self, codes: dict[tuple[int, int], int] | None = None, *, gone: set[tuple[int, int]] | None = None
    ) -> list[tuple[int, int]]:
        """Run everything that may run; return the tasks that did, in their order. ``gone``: tasks without a mark."""
        ran: list[tuple[int, int]] = []
        for _ in range(1000):
            chunks = self.issue()
            if not chunks:
                return ran
            for chunk in chunks:
                if self.ledger.fences.get(chunk.fence) is None:
                    continue
                self.start(chunk)
                ran += [(chunk.step, index) for index in chunk.tasks.indices()]
                if chunk.scan:
                    ran[-len(chunk.tasks) :] = []
                    self.looked(chunk, gone or set())
                    continue
                by_code: dict[int, list[int]] = {}
                for index in chunk.tasks.indices():
                    by_code.setdefault((codes or {}).get((chunk.step, index), 0), []).append(index)
                self._end_mixed(chunk, by_code)
        pytest.fail("the study never comes to rest")

    def _end_mixed(self, chunk: wire.Chunk, by_code: dict[int, list[int]]) -> None:
        kinds = {0: Outcome.SUCCEEDED, 102: Outcome.FAILED, 105: Outcome.CANCELLED}
        results = tuple(
            wire.Result(outcome=kinds.get(code, Outcome.SOFT_FAILED), code=code, tasks=TaskSet.of(indices))
            for code, indices in by_code.items()
        )
        self.report(chunk, results)
        self.settle()

    def report(
        self, chunk: wire.Chunk, results: tuple[wire.Result, ...], failures: tuple[wire.Failure, ...] = ()
    ) -> None:
        """Tell the end of a first attempt in one report."""
        self.apply(
            wire.Report(
                agent="host-1",
                fence=chunk.fence,
                serial=1,
                step=chunk.step,
                attempt=1,
                results=results,
                failures=failures,
                final=True,
            )
        )

    def looked(self, chunk: wire.Chunk, gone: set[tuple[int, int]]) -> None:
        """Report a look at marks, of which these are gone."""
        results = []
        for index in chunk.tasks.indices():
            outcome = Outcome.LOST if (chunk.step, index) in gone else Outcome.SUCCEEDED
            results.append(wire.Result(outcome=outcome, code=0, tasks=TaskSet(first=index, width=1)))
        self.report(chunk, tuple(results))
        self.settle()

    def outcomes(self, step: int) -> dict[Outcome, int]:
        return {outcome: count for outcome, count in self.ledger.steps[step].outcomes.items() if count}

    def same_in_replay(self) -> None:
        """The ledger is a function of the log: what a new operator folds is what this one knows."""
        again = Ledger(self.plan)
        for entry, at in self.log:
            again.apply(entry, at=at)
        for mine, theirs in zip(self.ledger.steps, again.steps, strict=True):
            assert {k: v for k, v in mine.outcomes.items() if v} == {k: v for k, v in theirs.outcomes.items() if v}
            assert mine.total == theirs.total
            width = mine.total or 1
            assert mine.final.read(0, width) == theirs.final.read(0, width)
            assert mine.issued.read(0, width) == theirs.issued.read(0, width)
            assert mine.blocked.read(0, width) == theirs.blocked.read(0, width)
        assert again.honoured == self.ledger.honoured


def test_a_suspended_study_hands_out_nothing_and_goes_on_where_it_was(plan: Plan) -> None:
    bench = Bench(plan)
    first, *rest = bench.issue()
    bench.start(first)
    bench.switch(suspend=True)
    assert [fence for fence, each in bench.ledger.fences.items() if each.holder is None] == []
    assert bench.issue() == []
    assert bench.control.word("u").drop_below > max(chunk.fence for chunk in rest)
    assert bench.control.word("u").kill_below == 0
    bench.end(first, tasks=TaskSet(first=first.tasks.first, width=1))
    assert bench.issue() == []
    bench.switch()
    bench.run_all()
    assert bench.ledger.finished
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in range(4))
    bench.same_in_replay()


def test_purge_drops_what_waits_and_lets_run_what_runs(plan: Plan) -> None:
    bench = Bench(plan)
    chunks = bench.issue()
    running = next(chunk for chunk in chunks if chunk.step == A)
    bench.start(running)
    bench.switch(purge="now")
    assert not bench.ledger.finished
    assert bench.issue() == []
    bench.end(running, tasks=TaskSet(first=running.tasks.first, width=1))
    assert bench.ledger.finished
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 1, Outcome.CANCELLED: 5}
    assert bench.outcomes(C) == {Outcome.CANCELLED: 1}
    bench.same_in_replay()


def test_a_purge_that_stood_in_the_study_from_the_beginning_asks_for_nothing(plan: Plan) -> None:
    bench = Bench(plan, purge="copied", restart=asking("copied, too"))
    bench.run_all()
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 6}
    bench.switch(purge="again")
    assert bench.ledger.honoured == {"purge:copied", "restart:copied, too", "purge:again"}


@pytest.mark.parametrize(("id_", "again"), [("1", None), ("2", wire.Restarted)])
def test_a_restart_that_was_carried_out_is_not_again_where_its_log_was_lost(
    plan: Plan, id_: str, again: type | None
) -> None:
    """Of a log that had to be made anew from the workspace; one that was asked for after the loss is carried out."""
    bench = Bench(plan)
    bench.run_all()
    request = asking(id_, steps=["a"], exitCodes=[0], dependants=False)
    ledger = Ledger(plan)
    for entry, at in bench.log:
        if not isinstance(entry, wire.Noted):
            ledger.apply(entry, at=at)
    assert ledger.finished
    assert not ledger.noted
    control = Control(Switches(restart=request, purge="p"), ledger, bench.now, restarted="1")
    noted = control.verdict()
    assert noted == wire.Noted(tokens=("restart:1",))
    ledger.apply(noted, at=bench.now)
    dropped = control.verdict()
    assert isinstance(dropped, wire.Dropped), "what a purge dropped is in no workspace, so it is carried out again"
    ledger.apply(dropped, at=bench.now)
    verdict = control.verdict()
    assert verdict is None if again is None else isinstance(verdict, again)


def test_a_restart_is_told_as_carried_out_once_all_is_over_and_outlives_its_log(plan: Plan) -> None:
    """Not before, since what is left of it would be forgotten; and another operator reads it in the status."""

    def status(study: Study, previous: Mapping[str, Any]) -> dict[str, Any]:
        view = study.view(agents=0, waiting_for="", broker_problem="", clock=0.0)
        return status_of(view, previous, datetime.now(UTC))

    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", steps=["a"], exitCodes=[0]))
    study = Study(StudyRef("ns", "u", "u"), 1, plan, ledger=bench.ledger, switches=bench.switches)
    assert not bench.ledger.finished
    assert "restarted" not in status(study, {})
    bench.run_all()
    study.folded += 1
    told = status(study, {})
    assert told["restarted"] == Past.of(told).restarted == "1"
    study.start_over()
    assert study.past.restarted == "1"
    fresh = Study(StudyRef("ns", "u", "u"), 1, plan, ledger=Ledger(plan))
    assert status(fresh, told)["restarted"] == "1", "an operator that does not know leaves it as it stands"


def test_a_purge_before_any_agent_came_drops_everything(plan: Plan) -> None:
    bench = Bench(plan)
    bench.switch(purge="1")
    assert bench.ledger.finished
    assert bench.ledger.first_at is None


def test_cancel_ends_what_runs_and_a_restart_goes_on(plan: Plan) -> None:
    bench = Bench(plan)
    chunks = bench.issue()
    bench.start(chunks[0])
    bench.switch(cancel=True)
    word = bench.control.word("u")
    assert word.kill_below == word.drop_below > chunks[0].fence
    bench.end(chunks[0], -15)
    assert bench.ledger.finished
    assert bench.ledger.stops.cancelled
    bench.switch(cancel=True, restart=asking("1"))
    assert bench.issue() == [], "a cancelled study is not restarted before cancel is taken back"
    bench.switch(restart=asking("1"))
    assert not bench.ledger.stops.cancelled
    bench.run_all()
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in range(4))
    bench.same_in_replay()


def test_a_restart_waits_for_what_a_cancellation_ends(plan: Plan) -> None:
    """Asked for while tasks are still being ended, it runs these again, too."""
    bench = Bench(plan)
    running = bench.issue()
    for chunk in running:
        bench.start(chunk)
    bench.switch(cancel=True)
    bench.switch(restart=asking("1"))
    for chunk in running:
        assert bench.issue() == []
        bench.end(chunk, -15)
    bench.run_all()
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in (A, B, C, D))
    bench.same_in_replay()


def test_a_lost_chunk_of_a_cancelled_study_does_not_come_back(plan: Plan) -> None:
    bench = Bench(plan)
    chunks = bench.issue()
    bench.start(chunks[0])
    bench.switch(cancel=True)
    bench.apply(wire.Lost(fence=chunks[0].fence, agent="host-1"))
    assert bench.ledger.finished
    assert bench.issue() == []


def test_a_hard_failure_drops_its_queue_and_what_depends_on_it_and_nothing_else(plan: Plan) -> None:
    """102 of one task of queue one: its other waiting tasks go, with their dependants; queue two goes on."""
    bench = Bench(plan)
    chunks = bench.issue()
    mine = [chunk for chunk in chunks if chunk.step == A]
    bench.start(mine[0])
    bench.start(mine[1], "host-2")
    bench.end(mine[0], 102)
    bench.end(mine[1])  # it ran: its dependants may
    bench.run_all()
    failed, good = len(mine[0].tasks), len(mine[1].tasks)
    assert bench.outcomes(A) == {Outcome.FAILED: failed, Outcome.SUCCEEDED: good, Outcome.CANCELLED: 6 - failed - good}
    assert bench.outcomes(B) == {Outcome.SUCCEEDED: good, Outcome.CANCELLED: 6 - good}
    assert bench.outcomes(C) == {Outcome.CANCELLED: 1}
    assert bench.outcomes(D) == {Outcome.SUCCEEDED: 6}
    assert bench.ledger.finished
    assert bench.control.word("u").retired_queues == ()
    bench.now += 61
    assert bench.control.word("u").retired_queues == ("one",)
    bench.same_in_replay()


LANES = """
description: {name: n, description: d}
global.parameters:
  Q: {values: [one, two, one, two], label: Q.%%}
  T: {values: [0, 1, 2, 0], label: T.%%}
study:
- {name: a, description: d, run: {cmd: echo $(Q), task_queue: $(Q), max_retries: $(T), retry_delay: 0}}
- {name: b, description: d, run: {cmd: echo, depends: [a]}}
"""


def test_a_hard_failure_drops_the_combinations_of_its_queue_only() -> None:
    bench = Bench(plan_of(LANES))
    first = next(chunk for chunk in bench.issue() if 0 in chunk.tasks.indices())
    bench.start(first)
    bench.end(first, 102)
    bench.run_all()
    assert bench.outcomes(0) == {Outcome.FAILED: 1, Outcome.CANCELLED: 1, Outcome.SUCCEEDED: 2}
    assert [task in bench.ledger.steps[0].succeeded for task in range(4)] == [False, True, False, True]
    assert bench.outcomes(1) == {Outcome.CANCELLED: 2, Outcome.SUCCEEDED: 2}
    bench.same_in_replay()


def test_every_combination_spends_its_own_retries() -> None:
    """A retry is asked for each time; a task is tried once more than its retries say."""
    bench, tried = Bench(plan_of(LANES)), [0] * 4
    while chunks := [chunk for chunk in bench.issue() if chunk.step == 0]:
        for chunk in chunks:
            bench.start(chunk)
            for task in chunk.tasks.indices():
                tried[task] += 1
            result = wire.Result(outcome=Outcome.RETRY, code=104, tasks=chunk.tasks)
            bench.apply(
                wire.Report(
                    agent="host-1",
                    fence=chunk.fence,
                    serial=1,
                    step=0,
                    attempt=chunk.attempt,
                    results=(result,),
                    final=True,
                )
            )
    assert tried == [1, 2, 3, 1]
    assert bench.outcomes(0) == {Outcome.SOFT_FAILED: 4}


def test_stop_workers_stops_after_a_minute_and_a_restart_goes_on(plan: Plan) -> None:
    bench = Bench(plan)
    chunks = bench.issue()
    bench.start(chunks[0])
    bench.end(chunks[0], 105)
    assert bench.issue() != [], "for a minute all goes on"
    bench.now += 61
    bench.settle()
    assert bench.issue() == []
    assert bench.control.word("u").retired
    assert not bench.ledger.finished
    bench.switch(restart=asking("go on"))
    assert not bench.control.word("u").retired
    bench.run_all()
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in range(4))
    bench.same_in_replay()


def test_what_depends_on_a_task_that_stopped_the_agents_may_run(plan: Plan) -> None:
    bench = Bench(plan)
    bench.run_all({(A, 0): 105})
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 5, Outcome.CANCELLED: 1}
    assert bench.outcomes(B) == {Outcome.SUCCEEDED: 6}


@pytest.mark.parametrize(("fail_fast", "dependants"), [(False, Outcome.SUCCEEDED), (True, Outcome.CANCELLED)])
def test_a_soft_failure_blocks_its_dependants_only_where_the_study_fails_fast(
    plan: Plan,
    fail_fast: bool,  # noqa: FBT001
    dependants: Outcome,
) -> None:
    bench = Bench(plan.model_copy(update={"fail_fast": fail_fast}))
    bench.run_all({(A, 0): 1})
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 5, Outcome.SOFT_FAILED: 1}
    assert bench.outcomes(B)[dependants] == (1 if fail_fast else 6)
    assert bench.outcomes(C) == {dependants: 1}
    assert bench.ledger.finished


def test_a_restart_runs_what_failed_and_brings_back_what_was_cancelled_with_it(plan: Plan) -> None:
    bench = Bench(plan.model_copy(update={"fail_fast": True}))
    bench.run_all({(A, 0): 1, (A, 3): 7})
    bench.switch(restart=asking("1", exitCodes=(7,)))
    assert bench.run_all() == [(A, 3), (B, 3)]
    assert bench.outcomes(C) == {Outcome.CANCELLED: 1}
    bench.switch(restart=asking("2"))
    assert bench.run_all() == [(A, 0), (B, 0), (C, 0)]
    bench.switch(restart=asking("1", exitCodes=(0,)))
    assert bench.run_all() == [], "an older request that comes back was honoured already"
    bench.same_in_replay()


def test_a_restart_of_successes_says_that_their_marks_say_nothing(plan: Plan) -> None:
    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", steps=("a",), tasks="1,3-4", exitCodes=(0,), dependants=True))
    chunks = bench.issue()
    assert all(chunk.fresh and chunk.attempt == 1 for chunk in chunks)
    for chunk in chunks:
        bench.start(chunk)
        bench.end(chunk)
    ran = [(chunk.step, index) for chunk in chunks for index in chunk.tasks.indices()] + bench.run_all()
    assert sorted(ran) == sorted([(step, index) for step in (A, B) for index in (1, 3, 4)] + [(C, 0)])
    assert bench.ledger.doubled == 0
    assert not bench.ledger.is_fresh(A, TaskSet(first=0, width=6))
    bench.same_in_replay()


def test_indices_beyond_the_last_task_cost_nothing(plan: Plan) -> None:
    """Whoever means "to the end" may write any number; as bits such a range would be a petabyte."""
    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", steps=("a",), tasks=f"4-{2**53}", exitCodes=(0,)))
    assert sorted(bench.run_all()) == [(A, 4), (A, 5)]
    assert bench.ledger.finished
    bench.same_in_replay()


def test_a_zombie_of_an_earlier_generation_says_nothing_of_this_one(plan: Plan) -> None:
    bench = Bench(plan)
    first = next(chunk for chunk in bench.issue() if chunk.step == A)
    bench.start(first, "zombie")
    bench.apply(wire.Lost(fence=first.fence, agent="zombie"))
    bench.run_all({(A, 0): 1})
    bench.switch(restart=asking("1"))
    late = wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=first.tasks)
    bench.apply(
        wire.Report(agent="zombie", fence=first.fence, serial=1, step=A, attempt=1, results=(late,), final=True)
    )
    assert (A, 0) in bench.run_all()


def test_samples_that_could_not_be_made_are_made_by_a_restart() -> None:
    made = plan_of(
        "description: {name: n, description: d}\nmerlin: {samples: {file: s.csv, column_labels: [S]}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(S)}},"
        " {name: z, description: d, run: {cmd: ls, depends: [a_*]}}]"
    )
    bench = Bench(made)
    (chunk,) = bench.issue()
    bench.start(chunk)
    bench.end(chunk, 1)
    assert bench.ledger.finished
    bench.switch(restart=asking("1"))
    assert not bench.ledger.finished
    (again,) = bench.issue()
    assert again.step == 0
    bench.start(again)
    facts = wire.SampleFacts(count=3, columns=1, digest="d")
    result = wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=again.tasks)
    bench.apply(
        wire.Report(
            agent="host-1", fence=again.fence, serial=1, step=0, attempt=1, results=(result,), samples=facts, final=True
        )
    )
    bench.run_all()
    assert [bench.outcomes(step) for step in range(3)] == [
        {Outcome.SUCCEEDED: 1},
        {Outcome.SUCCEEDED: 3},
        {Outcome.SUCCEEDED: 1},
    ]


def test_a_task_that_kills_each_agent_is_stopped_and_its_neighbours_are_not() -> None:
    """Each loss cuts the chunk; after `MAX_LOSSES` the task is failed and shown with who was lost last."""
    values = list(range(300))
    made = plan_of(
        f"description: {{name: n, description: d}}\nglobal.parameters: {{G: {{values: {values}, label: G.%%}}}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(G)}}]"
    )
    bench = Bench(made)
    killer, deaths = 17, 0
    for _ in range(2000):
        chunks = bench.issue()
        if not chunks:
            break
        for chunk in chunks:
            agent = f"host-{deaths}"
            bench.start(chunk, agent)
            if killer in chunk.tasks:
                deaths += 1
                bench.apply(wire.Lost(fence=chunk.fence, agent=agent))
            else:
                bench.end(chunk)
    assert deaths == MAX_LOSSES
    assert bench.outcomes(0) == {Outcome.SUCCEEDED: 299, Outcome.SOFT_FAILED: 1}
    ((_, failure),) = bench.ledger.failures.first
    assert (failure.task, failure.host) == (killer, f"host-{MAX_LOSSES - 1}")
    assert "host-0, host-1" in failure.tail


def test_a_task_that_takes_a_host_of_its_agent_with_it_each_time_is_stopped_and_its_neighbours_are_not(
    plan: Plan,
) -> None:
    """Its holder lives and hands it back, with the rest of the chunk: of that nothing is counted, however often it comes."""
    bench = Bench(plan)
    killer, losses, attempts = 2, 0, set()
    for _ in range(2 * MAX_LOSSES):
        bench.issue()
        for chunk in [fence.chunk for fence in bench.ledger.fences.values() if fence.chunk.step == A]:
            bench.start(chunk)
            report = wire.Report(agent="host-1", fence=chunk.fence, serial=1, step=A, attempt=chunk.attempt)
            if killer in chunk.tasks:
                losses += 1
                attempts.add(chunk.attempt)
                lost = wire.Failure(task=killer, outcome=Outcome.LOST, code=-9, host="n1", directory="")
                for _ in range(2):  # the second is a duplicate
                    bench.apply(report.model_copy(update={"failures": (lost,)}))
                bench.ledger = thaw(plan, *freeze(bench.ledger))
                report = report.model_copy(update={"serial": 2})
            bench.apply(report.model_copy(update={"final": True}))
    assert (losses, attempts) == (MAX_LOSSES, {1})
    assert (bench.ledger.exhausted, bench.ledger.lost[A]) == (1, MAX_LOSSES)
    assert bench.outcomes(A) == {Outcome.SOFT_FAILED: 1}
    bench.run_all()
    assert bench.outcomes(A) == {Outcome.SOFT_FAILED: 1, Outcome.SUCCEEDED: 5}
    bench.same_in_replay()


def test_long_tasks_that_run_beside_one_that_kills_the_only_agent_are_not_failed_with_it() -> None:
    """An agent of four slots comes back each time, and takes what there is: the same tasks as before, each in a chunk of its own."""
    made = plan_of(
        "description: {name: n, description: d}\nglobal.parameters: {G: {values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], label: G.%%}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(G)}}]"
    )
    bench, killer, deaths = Bench(made), 1, 0
    for _ in range(100):
        bench.issue()
        out = [fence.chunk for fence in bench.ledger.fences.values()]
        running = sorted(out, key=lambda chunk: (-len(chunk.lost), chunk.fence))[:4]  # rests go first, in their band
        for chunk in running:
            bench.start(chunk, f"agent-{deaths}")
        if not any(killer in chunk.tasks for chunk in running):
            for chunk in running:
                bench.end(chunk)
            continue
        for chunk in running:
            bench.apply(wire.Lost(fence=chunk.fence, agent=f"agent-{deaths}"))
        deaths += 1
    assert deaths == MAX_LOSSES
    assert bench.outcomes(0) == {Outcome.SUCCEEDED: 9, Outcome.SOFT_FAILED: 1}
    assert bench.ledger.exhausted == 1
    bench.same_in_replay()


def test_no_more_tasks_are_out_than_max_in_flight(plan: Plan) -> None:
    bench = Bench(plan, max_in_flight=3)
    chunks = bench.issue()
    assert sum(len(chunk.tasks) for chunk in chunks) == 3
    bench.switch(max_in_flight=1)
    assert sum(fence.open.bit_count() for fence in bench.ledger.fences.values()) == 1
    bench.switch()
    bench.run_all()


def test_a_study_of_higher_priority_goes_first_though_another_has_filled_the_window(plan: Plan) -> None:
    common, urgent = Bench(plan), Bench(plan)
    capacity = {("any", *want): Capacity(1) for want in plan.wants}
    low = Candidate("low", plan.hash, 1, common.ledger, "any")
    assert list(next_chunks([low], capacity, window=1.0, now=0.0))
    high = Candidate("high", plan.hash, 1, urgent.ledger, "any", priority=5)
    issued = list(next_chunks([low, high], capacity, window=1.0, now=0.0))
    assert {issue.chunk.study for issue in issued} == {"high"}
    assert {issue.route.band for issue in issued} == {"urgent"}


def test_a_request_that_names_what_is_not_there_is_told_and_not_carried_out(plan: Plan) -> None:
    switches = switches_of({"restart": {"id": "1", "steps": ["A", "nope"], "tasks": "3-1"}, "priority": True})
    assert switches.priority == 0
    assert [str(fault) for fault in faults(switches, plan)] == [
        "spec.restart.steps[0]: expected the name of a step, found 'A'; there are a, b, c, d",
        "spec.restart.steps[1]: expected the name of a step, found 'nope'; there are a, b, c, d",
        "spec.restart.tasks: expected task indices such as 0-99,512, found '3-1'",
    ]
    bench = Bench(plan)
    bench.run_all({(A, 0): 1})
    bench.switch(restart=switches.restart)
    assert bench.run_all() == []


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1,,2", "5-4", "1.5"])
def test_what_is_no_list_of_tasks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected task indices"):
        ranges(text)


class Fate:
    """Draws what happens next to a bench."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.bench = data, Bench(plan_of(TEXT))
        self.out: dict[int, wire.Chunk] = {}
        self.tokens = 0
        self.acts = [
            self.issue,
            self.start,
            self.end,
            self.end,
            self.lose,
            self.suspend,
            self.purge,
            self.cancel,
            self.again,
        ]

    def act(self) -> None:
        self.data.draw(st.sampled_from(self.acts))()

    def some(self, *, started: bool) -> list[wire.Chunk]:
        """One chunk that is out, as a list; empty where there is none."""
        fences = [fence for fence, each in self.bench.ledger.fences.items() if (each.holder is not None) is started]
        return [self.out[self.data.draw(st.sampled_from(fences))]] if fences else []

    def token(self) -> str:
        self.tokens += 1
        return str(self.tokens)

    def issue(self) -> None:
        self.out |= {chunk.fence: chunk for chunk in self.bench.issue()}

    def start(self) -> None:
        for chunk in self.some(started=False):
            self.bench.start(chunk)

    def end(self) -> None:
        for chunk in self.some(started=True):
            self.bench.end(chunk, self.data.draw(st.sampled_from([0, 0, 0, 1, 102])))

    def lose(self) -> None:
        for chunk in self.some(started=True):
            self.bench.apply(wire.Lost(fence=chunk.fence, agent="host-1"))

    def suspend(self) -> None:
        self.bench.switch(suspend=not self.bench.switches.suspend)

    def purge(self) -> None:
        self.bench.switch(purge=self.token())

    def cancel(self) -> None:
        self.bench.switch(cancel=not self.bench.switches.cancel)

    def again(self) -> None:
        codes = self.data.draw(st.sampled_from([(), (0,), (1, 102)]))
        dependants = self.data.draw(st.booleans())
        self.bench.switch(restart=asking(self.token(), exitCodes=codes, dependants=dependants))

    def check(self) -> None:
        for at, step in enumerate(self.bench.ledger.steps):
            assert sum(step.outcomes.values()) == len(step.final)
            opens = [fence for fence in self.bench.ledger.fences.values() if fence.chunk.step == at]
            every = sum(fence.open << fence.chunk.tasks.first for fence in opens)
            assert every.bit_count() == sum(fence.open.bit_count() for fence in opens), "out twice"
        self.bench.same_in_replay()

    def conclude(self) -> None:
        self.bench.switch(restart=asking("last"))
        for fence in list(self.bench.ledger.fences.values()):
            if fence.holder is None:
                self.bench.start(fence.chunk)
            if (left := fence.remaining) is not None:
                self.bench.end(fence.chunk, tasks=left)
        self.bench.run_all()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_is_switched_in_whatever_order_the_ledger_is_a_function_of_the_log(data: st.DataObject) -> None:
    """Random runs, failures and switches: nothing is out twice, each task that is over has one outcome, a replay agrees."""
    fate = Fate(data)
    for _ in range(data.draw(st.integers(1, 25))):
        fate.act()
        fate.check()
    fate.conclude()
    assert fate.bench.ledger.finished


def test_what_a_host_failed_runs_again_with_what_depends_on_it_and_with_its_attempts(plan: Plan) -> None:
    """Of what the verdict names, what succeeded stays; no failure of it is told any more."""
    bench = Bench(plan)
    bench.run_all({(A, 1): 127, (A, 2): 127})
    failure = wire.Failure(task=1, outcome=Outcome.SOFT_FAILED, code=127, host="n0", directory="d")
    bench.ledger.failures.first.append((A, failure))
    failed = (wire.Excuse(step=A, attempt=1, tasks=TaskSet(first=0, width=3), seconds=0.0),)
    verdict = wire.Excused(token="excused:n0:1", host="n0", failed=failed, below=bench.ledger.next_fence)
    bench.apply(verdict)
    bench.apply(verdict)
    assert not bench.ledger.failures.first
    assert sorted(bench.run_all()) == [(A, 1), (A, 2), (B, 1), (B, 2), (C, 0)]
    assert bench.ledger.finished
    assert bench.outcomes(A) == {Outcome.SUCCEEDED: 6}
    assert bench.ledger.lost[A] == 2
    assert bench.ledger.doubled == 0
    bench.same_in_replay()


def test_a_retry_that_a_host_burnt_is_given_back() -> None:
    """A task that waits for its second attempt makes its first one again."""
    made = plan_of(
        "description: {name: t, description: d}\nstudy:\n"
        "- {name: a, description: d, run: {cmd: 'exit $(MERLIN_RETRY)', max_retries: 1, retry_delay: 0}}\n"
    )
    bench = Bench(made)
    retry = (wire.Result(outcome=Outcome.RETRY, code=104, tasks=TaskSet(first=0, width=1)),)
    attempts = []
    for excused in (True, False, False):
        (chunk,) = bench.issue()
        attempts.append(chunk.attempt)
        bench.start(chunk)
        report = wire.Report(
            agent="host-1", fence=chunk.fence, serial=1, step=0, attempt=chunk.attempt, results=retry, final=True
        )
        bench.apply(report)
        if excused:
            failed = (wire.Excuse(step=0, attempt=chunk.attempt, tasks=chunk.tasks),)
            bench.apply(wire.Excused(token="excused:n0:1", host="n0", failed=failed, below=bench.ledger.next_fence))
    assert attempts == [1, 1, 2]
    assert bench.ledger.finished
    bench.same_in_replay()


def test_nothing_is_issued_until_a_host_s_failures_are_judged(plan: Plan) -> None:
    bench = Bench(plan)
    bench.issue()
    failed = (wire.Excuse(step=A, attempt=1, tasks=TaskSet(first=0, width=1)),)
    asked = wire.Excused(token="excused:n0:1", host="n0", failed=failed, below=bench.ledger.next_fence)
    control = Control(bench.switches, bench.ledger, bench.now, excuse=asked)
    assert control.holds
    assert control.verdict() is None
    for fence in control.to_withdraw():
        bench.apply(wire.Withdrawn(fence=fence))
    assert control.verdict() == asked
    bench.apply(asked)
    assert not control.holds


@pytest.mark.parametrize(
    ("which", "again"),
    [
        ({}, [(A, 2), (B, 4)]),
        ({"dependants": True}, [(A, 2), (B, 2), (B, 4), (C, 0)]),
        ({"steps": ["b"]}, [(B, 4)]),
        ({"tasks": "4-5"}, [(B, 4)]),
        ({"steps": ["d"]}, []),
    ],
)
def test_a_scan_runs_again_what_has_no_mark_and_nothing_else(
    plan: Plan, which: dict[str, object], again: list[tuple[int, int]]
) -> None:
    """Within the steps and tasks that the restart names; what depends on them as it says."""
    gone = {(A, 2), (B, 4)}
    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", scan=True, **which))
    assert not bench.ledger.finished, "it is to be looked at"
    assert sorted(bench.run_all(gone=gone)) == again
    assert bench.ledger.finished
    assert bench.ledger.doubled == bench.ledger.redundant == 0
    assert all(set(bench.outcomes(step)) == {Outcome.SUCCEEDED} for step in (A, B, C, D))
    bench.same_in_replay()
    assert bench.run_all() == []


def test_a_scan_that_is_cut_off_goes_on(plan: Plan) -> None:
    """Lost with its agent, handed back, withdrawn, or in a new operator: what was not looked at is looked at."""
    bench = Bench(plan)
    bench.run_all()
    bench.switch(restart=asking("1", scan=True))
    first, second, *others = bench.issue()
    assert first.scan
    bench.start(first)
    bench.apply(wire.Lost(fence=first.fence, agent="host-1"))
    bench.start(second)
    bench.apply(
        wire.Report(agent="host-1", fence=second.fence, serial=1, step=second.step, attempt=1, final=True, refused="?")
    )
    for chunk in others:
        bench.ledger.withdraw(chunk)
    again = Ledger(plan)
    for entry, at in bench.log:
        again.apply(entry, at=at)
    bench.ledger = again
    assert bench.ledger.lost == [0, 0, 0, 0]
    assert bench.run_all(gone={(first.step, first.tasks.first)}) == [(first.step, first.tasks.first)]
    assert bench.ledger.finished


@pytest.mark.parametrize("gone", [False, True])
def test_a_cancelled_study_is_looked_at_no_more(plan: Plan, *, gone: bool) -> None:
    """Nor does anything come of a mark that was found missing after that."""
    bench = Bench(plan)
    bench.run_all({(D, 1): 1})
    bench.switch(restart=asking("1", scan=True))
    running = bench.issue()
    assert any(chunk.scan for chunk in running)
    for chunk in running:
        bench.start(chunk)
    bench.switch(cancel=True, restart=asking("1", scan=True))
    for chunk in running:
        if chunk.fence not in bench.ledger.fences:
            continue
        if chunk.scan:
            bench.looked(chunk, {(chunk.step, chunk.tasks.first)} if gone else set())
        else:
            bench.end(chunk, tasks=TaskSet(first=chunk.tasks.first, width=1))
    assert bench.ledger.finished
    bench.same_in_replay()
