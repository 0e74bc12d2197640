"""Placing tasks of several hosts: each host's cores once, in turn, and without a gap between tasks of one size."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.resources import Share
from merlin_agent.wide import Wide
from merlin_study import wire
from merlin_study.shape import Shape
from merlin_study.taskset import TaskSet

WORK: Any = object()


def a_chunk(tasks: int) -> ChunkRun:
    held = TaskSet(first=0, width=tasks)
    return ChunkRun(wire.Chunk(study="s", plan="p", step=0, fence=1, epoch=1, tasks=held, attempt=1))


@dataclass(eq=False)
class Host:
    """A host that keeps what it is asked for when told to."""

    host: str
    cores: int
    gpus: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    lent: dict[str, float] = field(default_factory=dict)

    def keep(self, key: str, needs: Shape) -> None:
        self.asked[key] = needs.cores
        self.turns[key] = 0

    def lend(self, key: str, turn: int, seconds: float) -> None:
        if key in self.kept:
            self.asked[key] = self.kept.pop(key)
        self.turns[key], self.lent[key] = turn, seconds

    def release(self, key: str) -> None:
        assert (key in self.asked) != (key in self.kept), "given back once, and only what was asked for"
        self.asked.pop(key, None)
        self.kept.pop(key, None)


class Site:
    """Some hosts, and the tasks that run over them."""

    def __init__(self, *hosts: Host, most: int = 8) -> None:
        self.running: dict[str, tuple[ChunkRun, Share]] = {}
        self.handed_back: list[ChunkRun] = []
        self.now = 0.0
        self.wide = Wide(self.start, self.hand_back, most=most, clock=lambda: self.now)
        for host in hosts:
            self.wide.join(host)

    def start(self, run: ChunkRun, work: object, share: Share) -> bool:
        del work
        if run.take() is None:
            return False
        self.running[share.task] = run, share
        return True

    def hand_back(self, run: ChunkRun) -> None:
        self.handed_back.append(run)
        run.stop(Stop.HANDED_BACK)

    def grant(self, host: Host) -> None:
        for key in list(host.asked):
            host.kept[key] = host.asked.pop(key)
            self.wide.kept(key, host.turns[key])

    def end(self, task: str) -> None:
        run, _ = self.running.pop(task)
        run.ended()
        self.wide.over(task)


def test_a_task_starts_when_all_of_its_hosts_keep_what_it_needs() -> None:
    one, two = Host("n1", 4), Host("n2", 4)
    site = Site(one, two)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=2, cores=3))
    assert (list(one.asked.values()), list(two.asked.values())) == ([3], [3])
    site.grant(one)
    assert site.running == {}
    site.grant(two)
    ((_, share),) = site.running.values()
    assert share.hosts == ("n1", "n2")
    site.end(share.task)
    assert (one.kept, two.kept) == ({}, {})


def test_a_task_knows_on_which_processors_of_each_host_it_is_to_run() -> None:
    one, two = Host("n1", 4), Host("n2", 2)
    site = Site(one, two)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=2, cores=2))
    ((first,), (second,)) = one.asked, two.asked
    site.wide.kept(first, 0, frozenset({1, 3}))
    site.wide.kept(second)
    ((_, share),) = site.running.values()
    assert share.pins == (("n1", frozenset({1, 3})),), "what is kept whole is the launcher's to divide"


def test_the_next_task_of_the_same_size_takes_over_without_a_gap() -> None:
    """Else smaller tasks would take the cores in between, and the next one would wait for their end."""
    one, two = Host("n1", 2), Host("n2", 2)
    site = Site(one, two)
    site.wide.add(a_chunk(3), WORK, Shape(nodes=2, cores=2))
    site.grant(one)
    site.grant(two)
    for left in (2, 1, 0):
        assert (len(site.running), len(one.kept), len(two.kept)) == (1, 1, 1), left
        site.end(next(iter(site.running)))
    assert (one.kept, two.kept) == ({}, {})


def test_a_narrower_task_does_not_overtake() -> None:
    hosts = [Host(f"n{at}", 2) for at in range(4)]
    site = Site(*hosts)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=3, cores=2))
    wide, narrow = a_chunk(1), a_chunk(1)
    site.wide.add(wide, WORK, Shape(nodes=4, cores=2))
    site.wide.add(narrow, WORK, Shape(nodes=1, cores=1))
    for host in hosts:
        site.grant(host)
    assert [run is narrow for run, _ in site.running.values()] == [False]
    site.end(next(iter(site.running)))
    for host in hosts:
        site.grant(host)
    assert [run is wide for run, _ in site.running.values()] == [True]


def test_a_host_that_is_gone_is_replaced_or_its_tasks_are_handed_back() -> None:
    one, two, three = (Host(f"n{at}", 2) for at in (1, 2, 3))
    site = Site(one, two, three)
    run = a_chunk(1)
    site.wide.add(run, WORK, Shape(nodes=2, cores=2))
    site.wide.part(two)
    assert len(three.asked) == 1
    site.wide.part(three)
    assert site.handed_back == [run]
    assert (one.asked, one.kept) == ({}, {}), "nothing is kept for it any more"


def test_what_runs_on_a_host_that_comes_back_still_counts() -> None:
    one, two = Host("n1", 2), Host("n2", 2)
    site = Site(one, two)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=2, cores=2))
    site.grant(one)
    site.grant(two)
    (key,) = two.kept
    site.wide.part(two)
    assert site.wide.knows(key)
    site.wide.join(two)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=2, cores=1))
    assert (one.asked, two.asked) == ({}, {}), "both are full"


def test_a_host_that_is_ready_is_lent_until_the_last_one_will_be_and_called_back_when_that_is() -> None:
    one, two, three = (Host(f"n{at}", 2) for at in (1, 2, 3))
    site = Site(one, two, three)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=3, cores=2))
    site.grant(one)
    (key,) = one.kept
    site.wide.expects(next(iter(two.asked)), 4.0)
    assert not one.lent, "the third has not said when it will be ready"
    site.now = 1.0
    site.wide.expects(next(iter(three.asked)), 10.0)
    assert (list(one.lent.values()), list(two.lent.values()), three.lent) == ([10.0], [10.0], {})
    site.wide.kept(key, 0)
    site.grant(three)
    assert not site.running, "what was said before the lending does not count"
    assert (list(one.lent.values()), list(two.lent.values())) == ([0.0], [0.0]), "called back: the last one is ready"
    site.grant(one)
    site.grant(two)
    assert len(site.running) == 1
    assert one.turns[key] == 2


def test_nothing_is_lent_where_a_host_cannot_tell_when_it_will_be_ready() -> None:
    one, two = Host("n1", 2), Host("n2", 2)
    site = Site(one, two)
    site.wide.add(a_chunk(1), WORK, Shape(nodes=2, cores=2))
    site.grant(one)
    assert not one.lent
    site.grant(two)
    assert len(site.running) == 1


class Machine(RuleBasedStateMachine):
    """Whatever comes in whatever order, no host is asked for more than it has, and all ends."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts = [Host(f"n{at}", 3) for at in range(3)]
        self.site = Site(*self.hosts, most=3)
        self.chunks: list[ChunkRun] = []

    @rule(tasks=st.integers(1, 3), nodes=st.integers(2, 3), cores=st.integers(1, 3))
    def add(self, tasks: int, nodes: int, cores: int) -> None:
        if self.site.wide.can(Shape(nodes=nodes, cores=cores)):
            self.chunks.append(a_chunk(tasks))
            self.site.wide.add(self.chunks[-1], WORK, Shape(nodes=nodes, cores=cores))

    @rule(at=st.integers(0, 2))
    def grant(self, at: int) -> None:
        self.site.grant(self.hosts[at])

    @rule(at=st.integers(0, 2), seconds=st.floats(0, 20))
    def foresee(self, at: int, seconds: float) -> None:
        for key in list(self.hosts[at].asked):
            self.site.wide.expects(key, seconds)

    @rule(at=st.integers(0, 2))
    def say_late(self, at: int) -> None:
        for key, turn in self.hosts[at].turns.items():
            self.site.wide.kept(key, turn - 1)

    @precondition(lambda self: self.site.running)
    @rule(at=st.integers(0, 9))
    def end(self, at: int) -> None:
        names = list(self.site.running)
        self.site.end(names[at % len(names)])

    @precondition(lambda self: self.chunks)
    @rule(at=st.integers(0, 9))
    def stop(self, at: int) -> None:
        self.chunks[at % len(self.chunks)].stop(Stop.CANCELLED)
        self.site.wide.plan()

    @rule(at=st.integers(1, 2))
    def part_and_come_back(self, at: int) -> None:
        host = self.hosts[at]
        self.site.wide.part(host)
        for key in [*host.asked, *host.kept]:
            if not self.site.wide.knows(key):
                host.release(key)
        self.site.wide.join(host)

    @invariant()
    def no_host_gives_more_than_it_has(self) -> None:
        used: Counter[str] = Counter()
        for host in self.hosts:
            assert sum(host.asked.values()) + sum(host.kept.values()) <= host.cores
        for _, share in self.site.running.values():
            assert len(set(share.hosts)) == len(share.hosts)
            used.update(share.hosts)
        assert all(used[host.host] <= len(host.kept) for host in self.hosts)

    def teardown(self) -> None:
        for _ in range(200):
            for host in self.hosts:
                self.site.grant(host)
            for task in list(self.site.running):
                self.site.end(task)
        assert self.site.wide.waiting == 0, "nothing waits for ever"
        assert all(not host.asked and not host.kept for host in self.hosts)


TestMachine = Machine.TestCase
