"""The pure core under random deliveries: whatever happens on the way, every task ends once and nothing starts too early."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_agent.retell import Line, together
from merlin_operator.doubt import Past, sites_to_ask
from merlin_operator.shares import Clocks, Share
from merlin_operator.unroll import Candidate, Capacity, next_chunks
from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.snapshot import State
from merlin_study.taskset import TaskSet
from tests.folding.studies import Expansion, Shape, Task, offset, plan_of


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    rows = draw(st.integers(1, 4))
    keys: tuple[str, ...] = draw(st.sampled_from([(), ("A",), ("A", "B")]))
    labels = {key: tuple(draw(st.lists(st.integers(1, 3), min_size=rows, max_size=rows))) for key in keys}
    steps = []
    for at in range(draw(st.integers(1, 4))):
        used = tuple(key for key in keys if draw(st.booleans()))
        parents = [(parent, draw(st.booleans())) for parent in range(at) if draw(st.booleans())]
        steps.append((draw(st.booleans()), used, tuple(parents)))
    queues = {at: key for at in range(len(steps)) if keys and (key := draw(st.sampled_from(["", *keys]))) != ""}
    return Shape(tuple(steps), labels, draw(st.integers(1, 7)), queues)


class World:
    """A ledger, an unroller, and agents that behave as badly as the seed says; checks every promise on the way."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.naive = shape, Expansion(shape)
        self.plan = plan_of(shape.yaml())
        self.first = offset(self.plan)
        self.ledger = Ledger(self.plan)
        self.random = random.Random(seed)
        self.log: list[tuple[wire.Entry, float]] = []
        self.recorded: list[wire.Start | wire.Report] = []
        """What agents wrote into the workspace, whatever becomes of the log."""
        self.epoch = self.readings = 1
        self.hands: list[wire.Chunk] = []
        """Chunks of earlier epochs that agents still have."""
        self.now = 1000.0
        self.waiting: dict[int, wire.Chunk] = {}
        self.running: dict[int, tuple[wire.Chunk, str, int]] = {}
        self.open: dict[int, set[int]] = {}
        self.over: set[Task] = set()
        self.share = Share()
        self.zombies: list[wire.Report] = []
        self.ended: set[Task] = set()
        """Tasks that ended with a report since a restart or an excuse named them, if one did."""
        self.begun: set[Task] = set()
        """Tasks that were issued, since then."""
        self.failed: list[wire.Excuse] = []
        self.reopened = 0
        self.dropped = False
        self.kept: tuple[State, dict[str, bytes], int] | None = None
        """A snapshot of the ledger, and how many entries of the log it stands for."""

    def spelled(self, step: int, index: int) -> Task | None:
        at = step - self.first
        return self.naive.tasks[at][index] if at >= 0 else None

    def apply(self, entry: wire.Entry) -> None:
        self.log.append((entry, self.now))
        if isinstance(entry, wire.Start | wire.Report) and entry not in self.recorded:
            self.recorded.append(entry)
        self.ledger.apply(entry, at=self.now)
        if self.random.random() < 0.2:  # everything may come twice
            self.ledger.apply(entry, at=self.now)

    def issue(self) -> None:
        candidate = Candidate("u", self.plan.hash, self.epoch, self.ledger, "any", self.share)
        # Queues have no agents for a while.
        served = [want for want in sorted(self.plan.wants) if self.random.random() < 0.8]
        capacity = {("any", *want): Capacity(self.random.randint(1, 3)) for want in served}
        for issue in next_chunks([candidate], capacity, window=1.0, now=self.now):
            chunk = issue.chunk
            for index in chunk.tasks.indices():
                task = self.spelled(chunk.step, index)
                if task is not None:
                    assert task in self.begun or self.naive.parents(task) <= self.over, "issued before its parents"
                    self.begun.add(task)
                    assert self.naive.queue(task) == issue.route.queue, "sent to the agents of another queue"
                    assert task not in self.over, "issued again after it was over"
                out = {**self.waiting, **{fence: run[0] for fence, run in self.running.items()}}
                twice = any(other.step == chunk.step and index in self.open[fence] for fence, other in out.items())
                assert not twice, "out twice"
            self.waiting[chunk.fence] = chunk
            self.open[chunk.fence] = set(chunk.tasks.indices())

    def act(self) -> None:
        self.now += self.random.random()
        choice = self.random.random()
        if self.hands and self.random.random() < 0.2:
            self.claim_in_vain(self.hands.pop())
        if self.waiting and (choice < 0.4 or not self.running):
            chunk = self.waiting.pop(self.random.choice(list(self.waiting)))
            agent = f"a{self.random.randint(0, 2)}"
            self.running[chunk.fence] = (chunk, agent, 0)
            self.apply(wire.Start(agent=agent, chunk=chunk))
        elif self.running:
            fence = self.random.choice(list(self.running))
            if choice > 0.9 and self.open[fence]:
                chunk, agent, serial = self.running.pop(fence)
                self.zombies.append(
                    self.report(chunk, agent, serial + 1, TaskSet.of(self.open[fence]), Outcome.SUCCEEDED)
                )
                self.apply(wire.Lost(fence=fence, agent=agent))
            else:
                self.progress(fence)
        if self.zombies and self.random.random() < 0.3:
            self.wake()

    def wake(self) -> None:
        """Somebody tells late."""
        late = self.zombies.pop()
        self.apply(late)
        over = self.finals()
        for index in late.results[0].tasks.indices() if late.results else ():
            if not self.reopened or self.spelled(late.step, index) in over:  # else of what runs again since
                self.finish(late.step, index)

    def lose_the_log(self, kept: float) -> None:
        """The broker forgets all but a beginning of the log, and every verdict after it; agents tell what the workspace records.

        Chunks that nobody has claimed may still be in agents' hands: claims of them come late, and nothing of them runs.
        """
        self.hands += self.waiting.values()
        self.waiting = {}
        self.epoch += 1
        self.forget(kept)
        # A broker that was put back hands chunks out again whose claims it has forgotten.
        known = self.claimed()
        again = (run[0] for fence, run in self.running.items() if fence not in known)
        self.hands += [chunk for chunk in again if self.random.random() < 0.3]
        while sites_to_ask(
            self.ledger, self.epoch, Past(1.0, site="s"), reading=str(self.readings), site="s", live=["s"]
        ):
            self.recall(str(self.readings))
        self.apply(wire.Repaired(epoch=self.epoch, entries=len(self.log)))
        self.over = self.finals()
        assert self.ended <= self.over, "what ended is forgotten"
        for number, fence in list(self.ledger.fences.items()):
            if number not in self.running and fence.holder is not None:
                self.apply(wire.Lost(fence=number, agent=fence.holder))

    def claimed(self) -> set[int]:
        """Return the fences of which the log has a first word: nobody else gets them."""
        words = (entry for entry, _ in self.log)
        return {
            each.fence if isinstance(each, wire.Withdrawn) else each.chunk.fence
            for each in words
            if isinstance(each, wire.Start | wire.Withdrawn)
        }

    def forget(self, kept: float) -> None:
        """The broker forgets all but a beginning of the log, and the operator is another one, that has never seen the rest."""
        self.log = self.log[: int(len(self.log) * kept)]
        self.ledger = Ledger(self.plan)
        for entry, at in self.log:
            self.ledger.apply(entry, at=at)
        self.ledger.next_fence = wire.first_fence(self.epoch)
        self.readings += 1
        self.kept = None

    def recall(self, reading: str) -> None:
        """An agent tells what the workspace records, whatever befalls log and operator meanwhile."""
        for entry in self.told():
            self.apply(entry)
            if self.running and self.random.random() < 0.2:
                self.progress(self.random.choice(list(self.running)))
            if self.hands and self.random.random() < 0.1:
                self.claim_in_vain(self.hands.pop())
            if self.zombies and self.random.random() < 0.2:
                self.wake()
            if self.random.random() < 0.01:
                self.forget(self.random.random())
        self.apply(wire.Recalled(agent="a0", site="s", epoch=self.epoch, found=True, reading=reading))

    def finals(self) -> set[Task]:
        """Return the tasks that are over as the ledger has it."""
        found: set[Task] = set()
        for at, tasks in enumerate(self.naive.tasks):
            bits = self.ledger.steps[at + self.first].final.read(0, len(tasks))
            found.update(task for index, task in enumerate(tasks) if bits >> index & 1)
        return found

    def judge(self, verdict: wire.Dropped | wire.Restarted | wire.Excused) -> None:
        """Carry out what somebody asks for, once what nobody has started is withdrawn."""
        for fence in list(self.waiting):
            del self.waiting[fence]
            self.apply(wire.Withdrawn(fence=fence))
        before = self.finals()
        assert self.ended <= before
        self.apply(verdict)
        self.over = self.finals()
        again = before - self.over
        self.reopened += bool(again)
        self.dropped |= isinstance(verdict, wire.Dropped)
        self.ended -= again
        running = {
            self.spelled(chunk.step, index) for chunk, *_ in self.running.values() for index in self.open[chunk.fence]
        }
        self.begun -= again - running
        assert self.ended <= self.over

    def told(self) -> Iterator[wire.Start | wire.Report]:
        """Yield what is recorded in an order in which an agent may tell it: of what it tells side by side, any comes first."""
        lines = []
        for at, entry in enumerate(self.recorded):
            if isinstance(entry, wire.Start):
                tasks = entry.chunk.tasks
                lines.append(Line(entry.chunk.fence, 0, "", at, 0, entry.chunk.step, tasks.first, tasks.end))
            else:
                lines.append(Line(entry.fence, entry.serial, "", at, 0))
        recorded = list(self.recorded)
        for group in together(sorted(lines)):
            while left := [fence for fence in group if fence]:
                yield recorded[self.random.choice(left).pop(0).offset]

    def claim_in_vain(self, chunk: wire.Chunk) -> None:
        """An agent claims a chunk of an earlier epoch, and hands it back once it has found that out."""
        if chunk.fence in self.claimed():
            return
        entry = wire.Start(agent="late", chunk=chunk)
        self.log.append((entry, self.now))
        self.ledger.apply(entry, at=self.now)
        self.zombies.append(self.report(chunk, "late", 1, None, Outcome.LOST))

    def progress(self, fence: int) -> None:
        chunk, agent, serial = self.running[fence]
        some = [index for index in sorted(self.open[fence]) if self.random.random() < 0.7]
        self.open[fence] -= set(some)
        final = self.random.random() < 0.6
        if final:
            del self.running[fence]
        else:
            self.running[fence] = (chunk, agent, serial + 1)
        outcome = Outcome.SUCCEEDED
        if fence < self.ledger.stops.kill_below:
            outcome = Outcome.CANCELLED
        elif chunk.step >= self.first and self.random.random() < 0.3:
            outcome = self.random.choice([Outcome.RETRY, Outcome.RESTART, Outcome.SOFT_FAILED])
        tasks = TaskSet.of(some) if some else None
        self.apply(self.report(chunk, agent, serial + 1, tasks, outcome, final=final))
        if tasks is not None and outcome is not Outcome.SUCCEEDED:
            self.failed.append(wire.Excuse(step=chunk.step, attempt=chunk.attempt, tasks=tasks))
        if some and (outcome is not Outcome.RETRY and outcome is not Outcome.RESTART):
            for index in some:
                self.finish(chunk.step, index)

    def report(
        self, chunk: wire.Chunk, agent: str, serial: int, tasks: TaskSet | None, outcome: Outcome, *, final: bool = True
    ) -> wire.Report:
        facts = wire.SampleFacts(count=self.shape.samples, columns=1, digest="d") if chunk.step < self.first else None
        results = (wire.Result(outcome=outcome, code=0, tasks=tasks),) if tasks is not None else ()
        return wire.Report(
            agent=agent,
            fence=chunk.fence,
            serial=serial,
            step=chunk.step,
            attempt=chunk.attempt,
            results=results,
            samples=facts if results else None,
            final=final,
        )

    def finish(self, step: int, index: int) -> None:
        task = self.spelled(step, index)
        if task is not None:
            self.over.add(task)
            self.ended.add(task)

    def run(self) -> None:
        for _ in range(20_000):
            if self.ledger.finished:
                return
            self.issue()
            self.act()
        pytest.fail("the study never ended")


@settings(max_examples=150)
@given(shape=shapes(), seed=st.integers(0, 2**32))
def test_every_task_ends_once_whatever_happens(shape: Shape, seed: int) -> None:
    """Chunks lost, reported in parts, reported twice, retried or handed back: each task gets one outcome, none starts early."""
    world = World(shape, seed)
    world.run()
    for at, tasks in enumerate(world.naive.tasks):
        step = world.ledger.steps[at + world.first]
        assert step.total == len(tasks)
        assert sum(step.outcomes.values()) == len(tasks)
    assert world.ledger.misplaced == 0


@settings(max_examples=60)
@given(shape=shapes(), seed=st.integers(0, 2**32))
def test_the_ledger_is_a_function_of_the_log(shape: Shape, seed: int) -> None:
    """An operator that starts in the middle, folding the same entries, knows what the first one knew."""
    world = World(shape, seed)
    world.run()
    again = Ledger(world.plan)
    for entry, at in world.log:
        again.apply(entry, at=at)
    assert [step.outcomes for step in again.steps] == [step.outcomes for step in world.ledger.steps]
    assert again.finished
    assert again.lost == world.ledger.lost


def test_nothing_is_issued_where_no_agent_serves() -> None:
    """Without capacity for its queue a study waits; nothing is published ahead of agents that may never come."""
    ledger = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    assert list(next_chunks([Candidate("u", "h", 1, ledger, "any")], {}, window=60, now=0)) == []


def test_a_queue_without_agents_holds_up_its_own_combinations_only() -> None:
    """Ten thousand combinations that alternate between two queues: those with agents go on past the others."""
    rows = 10_000
    shape = Shape(((False, (), ()),), {"A": tuple(range(rows)), "Q": (1, 2) * (rows // 2)}, 1, {0: "Q"})
    text = shape.yaml().replace("'echo '", "'echo $(A)'")
    plan = plan_of(text)
    ledger, capacity = Ledger(plan), {("any", "q2", plan.steps[-1].lanes[1].shape): Capacity(4, rate=1e6)}
    ledger.runtimes.seconds[-1], ledger.runtimes.tried[-1] = 1.0, 100_000
    issues = list(next_chunks([Candidate("u", plan.hash, 1, ledger, "any")], capacity, window=60, now=0))
    taken = {index for issue in issues for index in issue.chunk.tasks.indices()}
    assert {issue.route.queue for issue in issues} == {"q2"}
    assert {index % 2 for index in taken} == {1}
    assert len(taken) == rows // 2


def test_studies_take_turns_by_task_seconds() -> None:
    """Two studies on one queue: the one that was served less goes first, so both get half of what is issued."""
    yaml = Shape(((True, (), ()),), {}, 100_000).yaml()
    ledgers = [Ledger(plan_of(yaml)) for _ in range(2)]
    for ledger in ledgers:
        ledger.apply(
            wire.Start(
                agent="a",
                chunk=wire.Chunk(
                    study="u", plan="h", epoch=1, fence=1, step=0, tasks=TaskSet(first=0, width=1), attempt=1
                ),
            ),
            at=0,
        )
        ledger.apply(
            wire.Report(
                agent="a",
                fence=1,
                serial=1,
                step=0,
                attempt=1,
                final=True,
                results=(wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=TaskSet(first=0, width=1)),),
                samples=wire.SampleFacts(count=100_000, columns=1, digest="d"),
            ),
            at=0,
        )
    candidates = [Candidate(f"u{at}", "h", 1, ledger, "any") for at, ledger in enumerate(ledgers)]
    step = ledgers[0].plan.steps[1]
    issued = list(
        next_chunks(candidates, {("any", step.lanes[0].queue, step.lanes[0].shape): Capacity(8)}, window=0, now=0)
    )
    shares = [sum(len(issue.chunk.tasks) for issue in issued if issue.chunk.study == each.uid) for each in candidates]
    assert shares[0] == shares[1] > 0


class Rivals:
    """Studies of one shape on one agent that takes what is published at once; names are told where each round goes."""

    def __init__(self) -> None:
        yaml = (
            Shape(((True, (), ()),), {}, 1).yaml().replace("file: s.csv, column_labels: [SAMPLE]", "count: 100000000")
        )
        self.plan = plan_of(yaml.replace("$(SAMPLE)", "$(MERLIN_SAMPLE_ID)"))
        lane = self.plan.steps[0].lanes[0]
        self.routes = [(site, lane.queue, lane.shape) for site in ("any", "here")]
        self.clocks, self.capacity = Clocks(), dict.fromkeys(self.routes, Capacity(1))
        self.studies: dict[str, Candidate] = {}

    def add(self, uid: str, *, priority: int = 0) -> None:
        self.studies[uid] = Candidate(uid, "h", 1, Ledger(self.plan), "any", priority=priority)

    def run(self, rounds: int, *uids: str) -> dict[str, int]:
        """Return how many tasks each of these got, where no other one wants anything."""
        got = dict.fromkeys(uids, 0)
        for _ in range(rounds):
            candidates = [self.studies[uid] for uid in uids]
            for issue in list(next_chunks(candidates, self.capacity, window=0, now=0, clocks=self.clocks)):
                got[issue.chunk.study] += len(issue.chunk.tasks)
                self.studies[issue.chunk.study].ledger.apply(wire.Start(agent="a", chunk=issue.chunk), at=0)
        return got


def test_one_that_comes_later_gets_no_more_than_those_that_are_there() -> None:
    """What an old study was served while it was alone is no debt: from the new one's coming on both get the same."""
    rivals = Rivals()
    rivals.add("old")
    rivals.run(3, "old")
    rivals.studies["old"].share.served += 1e6
    rivals.run(2, "old")
    rivals.add("new")
    assert rivals.run(20, "old", "new") == {"old": 20, "new": 20}


def test_no_credit_builds_up_while_a_study_wants_nothing_and_no_debt_while_it_was_alone() -> None:
    """One that waits at a barrier or is suspended comes back as an equal, whoever was served more meanwhile."""
    rivals = Rivals()
    rivals.add("old")
    rivals.run(50, "old")
    rivals.add("new")
    assert rivals.run(10, "new") == {"new": 20}
    assert rivals.run(10, "old", "new") == pytest.approx({"old": 10, "new": 10}, abs=10)
    assert rivals.run(20, "old", "new") == {"old": 20, "new": 20}
    rivals.run(50, "new")
    assert rivals.run(20, "old", "new") == pytest.approx({"old": 20, "new": 20}, abs=2)


def test_one_whose_site_had_no_agents_comes_as_an_equal() -> None:
    """Nor does it count among the studies of a site what one got before it was bound to that."""
    rivals = Rivals()
    rivals.add("old")
    rivals.add("bound")
    rivals.studies["bound"].site = "here"
    del rivals.capacity[rivals.routes[1]]
    assert rivals.run(50, "old", "bound") == {"old": 100, "bound": 0}
    rivals.studies["old"].site = "here"
    rivals.capacity[rivals.routes[1]] = Capacity(1)
    assert rivals.run(20, "old", "bound") == pytest.approx({"old": 20, "bound": 20}, abs=2)


def test_another_priority_is_a_class_of_its_own() -> None:
    """A study that was served much among urgent ones comes among the others as an equal of theirs."""
    rivals = Rivals()
    rivals.add("usual")
    rivals.run(5, "usual")
    rivals.add("urgent", priority=5)
    assert rivals.run(50, "usual", "urgent") == {"usual": 0, "urgent": 100}
    rivals.studies["urgent"].priority = 0
    assert rivals.run(20, "usual", "urgent") == pytest.approx({"usual": 20, "urgent": 20}, abs=2)


@pytest.mark.parametrize(("seconds", "size"), [(60.0, 1), (6.0, 1), (1.0, 10), (0.001, 10_000), (0.0, 65_536)])
def test_chunks_follow_measured_times(seconds: float, size: int) -> None:
    """Long tasks travel one by one, short ones by thousands up to the most that a report tells; the first ones alone."""
    yaml = Shape(((True, (), ()),), {}, 1).yaml().replace("file: s.csv, column_labels: [SAMPLE]", "count: 100000000")
    ledger = Ledger(plan_of(yaml.replace("$(SAMPLE)", "$(MERLIN_SAMPLE_ID)")))
    step = ledger.plan.steps[0]
    capacity = {("any", step.lanes[0].queue, step.lanes[0].shape): Capacity(1)}
    issued = list(next_chunks([Candidate("u", "h", 1, ledger, "any")], capacity, window=1, now=0))
    assert [len(issue.chunk.tasks) for issue in issued] == [1, 1]
    for issue in issued:
        chunk = issue.chunk
        ledger.apply(wire.Start(agent="a", chunk=chunk), at=0)
        results = (wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=chunk.tasks),)
        ledger.apply(
            wire.Report(
                agent="a",
                fence=chunk.fence,
                serial=1,
                step=0,
                attempt=1,
                results=results,
                seconds=seconds,
                final=True,
            ),
            at=0,
        )
    issued = list(next_chunks([Candidate("u", "h", 1, ledger, "any")], capacity, window=1, now=0))
    assert {len(issue.chunk.tasks) for issue in issued} == {size}


TWO_STEPS = """
description: {name: two, description: d}
study:
- {name: short, description: d, run: {cmd: "echo $(MERLIN_SAMPLE_ID)"}}
- {name: long, description: d, run: {cmd: "sim $(MERLIN_SAMPLE_ID)"}}
merlin: {samples: {count: 10000}}
"""


@pytest.mark.parametrize(
    ("tried", "seconds", "most"),
    [(0, 0.0, 2 * 4), (5, 5 * 600.0, 2 * 4), (5, 5 * 2.0, 4 * 60 // 2)],
    ids=["none has ended", "ten minutes each", "two seconds each"],
)
def test_a_rate_of_short_tasks_lets_out_no_more_long_ones_than_a_window_drains(
    tried: int, seconds: float, most: int
) -> None:
    """Or they would fill the queue for days, and whoever came later would wait behind them."""
    ledger = Ledger(plan_of(TWO_STEPS))
    ledger.runtimes.seconds[:], ledger.runtimes.tried[:] = [10.0, seconds], [10_000, tried]
    ledger.dag.finish(0, TaskSet(first=0, width=10_000), Outcome.SUCCEEDED, code=0)
    lane = ledger.plan.steps[1].lanes[0]
    capacity = {("any", lane.queue, lane.shape): Capacity(4, rate=1000.0)}
    candidate, out = Candidate("u", "h", 1, ledger, "any"), 0
    while issued := list(next_chunks([candidate], capacity, window=60, now=0)):
        out += sum(len(issue.chunk.tasks) for issue in issued)
    assert most <= out <= most + 5  # the last chunk may reach beyond the window


def test_chunks_of_a_step_that_nobody_has_tried_take_no_room_from_others() -> None:
    ledger = Ledger(plan_of(TWO_STEPS))
    ledger.runtimes.seconds[:], ledger.runtimes.tried[:] = [1.0, 0.0], [1000, 0]
    lane = ledger.plan.steps[1].lanes[0]
    capacity = {("any", lane.queue, lane.shape): Capacity(4, rate=1000.0)}
    for at in range(8):
        ledger.issue(
            wire.Chunk(study="u", plan="h", epoch=1, fence=1 + at, step=1, tasks=TaskSet(first=at, width=1), attempt=1)
        )
    issued = list(next_chunks([Candidate("u", "h", 1, ledger, "any")], capacity, window=60, now=0))
    assert {issue.chunk.step for issue in issued} == {0}
    assert sum(len(issue.chunk.tasks) for issue in issued) == 10_000


def test_the_end_of_a_step_comes_in_small_pieces() -> None:
    """Each chunk is a quarter of a slot's share of what is left, down to what is worth a chunk of its own."""
    yaml = Shape(((True, (), ()),), {}, 1).yaml().replace("file: s.csv, column_labels: [SAMPLE]", "count: 400")
    ledger = Ledger(plan_of(yaml.replace("$(SAMPLE)", "$(MERLIN_SAMPLE_ID)")))
    ledger.runtimes.seconds[0], ledger.runtimes.tried[0] = 1.0, 1
    step = ledger.plan.steps[0]
    capacity = {("any", step.lanes[0].queue, step.lanes[0].shape): Capacity(4, rate=1000.0)}
    issued = list(next_chunks([Candidate("u", "h", 1, ledger, "any")], capacity, window=100, now=0))
    sizes = [len(issue.chunk.tasks) for issue in issued]
    assert sum(sizes) == 400
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (10, 1)


MILLIONS = """
description: {name: millions, description: d}
global.parameters: {P: {values: [1, 2], label: P.%%}}
study:
- {name: prepare, description: d, run: {cmd: "echo $(P)"}}
- {name: simulate, description: d, run: {cmd: "echo $(P) $(MERLIN_SAMPLE_ID)", depends: [prepare]}}
- {name: collect, description: d, run: {cmd: "echo $(P)", depends: [simulate]}}
merlin: {samples: {count: 3000000}}
"""


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED])
def test_millions_of_samples_follow_a_step_without_any(outcome: Outcome) -> None:
    """A combination's samples are more than a mask may be wide: they become ready, or are cancelled, and come back, all of them."""
    samples = 3_000_000
    ledger = Ledger(plan_of(MILLIONS))
    prepare, simulate, collect = ledger.steps
    ledger.dag.finish(0, TaskSet(first=0, width=1), outcome, code=0 if outcome is Outcome.SUCCEEDED else 102)
    cancelled = 0 if outcome is Outcome.SUCCEEDED else samples
    assert (simulate.available, simulate.outcomes[Outcome.CANCELLED]) == (samples - cancelled, cancelled)
    assert len(collect.final) == (cancelled > 0)
    ledger.apply(wire.Restarted(token="restart:1", steps=(0,), codes=(0, 102), dependants=True, below=1), at=0)
    assert (simulate.available, len(simulate.final), len(collect.final)) == (0, 0, 0)
    ledger.dag.finish(0, TaskSet(first=0, width=2), Outcome.SUCCEEDED, code=0)
    assert prepare.complete
    assert simulate.available == 2 * samples
