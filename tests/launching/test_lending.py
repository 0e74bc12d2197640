"""Hosts of one allocation with serial tasks of their own beside a task of all of them, in simulated time.

Each host has a real `Feed`, all of them a real `Wide`; what is simulated is time, the tasks, and how long words travel.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_agent.chunkrun import ChunkRun
from merlin_agent.feed import Feed, Next
from merlin_agent.resources import Pool, Share
from merlin_agent.wide import Wide
from merlin_study import wire
from merlin_study.shape import Shape
from merlin_study.taskset import TaskSet

WORK: Any = object()
MANY: Final = 1000
WIDE: Final = 7
"""The step of the task of all hosts."""


def a_chunk(tasks: int, step: int) -> ChunkRun:
    held = TaskSet(first=0, width=tasks)
    return ChunkRun(wire.Chunk(study="s", plan="p", step=step, fence=1, epoch=1, tasks=held, attempt=1))


@dataclass(frozen=True)
class Serial:
    """A step of serial tasks on one host: how long each takes that is known of, and in truth, in turn."""

    foreseen: float
    truth: tuple[float, ...]


class Site:
    """Some hosts, and a time that passes from event to event."""

    def __init__(self, steps: list[list[Serial]], *, cores: int, travel: float) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.travel, self.steps = travel, steps
        self.wide = Wide(self._start, lambda _: None, most=1, clock=lambda: self.now)
        self.hosts = [Simulated(self, f"n{at}", at, cores) for at in range(len(steps))]
        self.started: float | None = None
        self.slept: list[list[int]] = []
        for host in self.hosts:
            self.wide.join(host)

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until and self.started is None:
            self.now, _, what = heapq.heappop(self._events)
            what()
            for host in self.hosts:
                host.fill()
        self.now = max(self.now, until)

    def _start(self, run: ChunkRun, work: object, share: Share) -> bool:
        del work
        self.started = self.now
        for host in self.hosts:
            assert host.host in share.hosts
            assert host.feed.keys, "what it uses is kept"
            assert not host.running, "all cores are its own: nothing else runs on any of them"
        return run.take() is not None


class Simulated:
    """A host: its feed, and what runs there."""

    def __init__(self, site: Site, name: str, at: int, cores: int) -> None:
        self.site, self.host, self.cores, self.gpus, self._at = site, name, cores, 0, at
        self.feed = Feed(Pool(cores), lambda: site.now)
        self.running: list[Next] = []
        self.begun: list[int] = []
        for step, serial in enumerate(site.steps[at]):
            for _ in range(3):
                self.feed._durations.note(("s", step), serial.foreseen / 1.1)
            self.feed.add(a_chunk(MANY, step), WORK, Shape())

    def fill(self) -> None:
        """Have each free core take what it may."""
        with self.feed._condition:
            while (found := self.feed._first()) is not None:
                self.running.append(found)
                assert sum(each.share.cores for each in self.running) <= self.cores
                step = found.run.chunk.step
                truth = self.site.steps[self._at][step].truth
                self.begun.append(step)
                self.site.later(truth[len(self.begun) % len(truth)], lambda found=found: self._end(found))  # type: ignore[misc]
            if (seconds := self.feed._lent_for()) is not None:
                self.site.later(seconds, lambda: None)

    def _end(self, found: Next) -> None:
        self.running.remove(found)
        with self.feed._condition:
            self.feed._pool.give(found.share)
            del self.feed._running[id(found.share)]

    def keep(self, key: str, needs: Shape) -> None:
        self.site.later(self.site.travel, lambda: self._keep(key, needs))

    def _keep(self, key: str, needs: Shape) -> None:
        site = self.site
        seconds = self.feed.keep(
            key, needs, lambda key, turn, _: site.later(site.travel, lambda: site.wide.kept(key, turn))
        )
        if seconds:
            site.later(site.travel, lambda: site.wide.expects(key, seconds))

    def lend(self, key: str, turn: int, seconds: float) -> None:
        self.site.later(self.site.travel, lambda: self.feed.lend(key, turn, seconds))

    def release(self, key: str) -> None:
        self.feed.release(key)


def test_a_host_that_is_ready_goes_on_with_what_ends_before_the_others_are() -> None:
    """One host has ten seconds to go, the other two: it runs four more of its own, and the task of both starts when it would have."""
    site = Site([[Serial(10.0, (10.0,))], [Serial(2.0, (2.0,))]], cores=1, travel=0.0)
    site.later(0.0, lambda: site.wide.add(a_chunk(1, WIDE), WORK, Shape(nodes=2, cores=1)))
    for host in site.hosts:
        host.fill()
    site.run(60.0)
    assert site.started == 10.0
    assert len(site.hosts[1].begun) == 5, "ten seconds of work in ten seconds"


SERIAL = st.builds(
    Serial, foreseen=st.floats(0.5, 30.0), truth=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4).map(tuple)
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.lists(SERIAL, min_size=1, max_size=2), min_size=2, max_size=3),
    cores=st.integers(1, 3),
    travel=st.sampled_from((0.0, 0.01, 0.3)),
    wrong=st.sampled_from((1.0, 1.0, 3.0)),
    asked=st.floats(0.0, 20.0),
)
def test_lending_never_takes_a_core_twice_and_delays_nothing_beyond_what_was_foreseen(
    steps: list[list[Serial]], cores: int, travel: float, wrong: float, asked: float
) -> None:
    """A task of all cores of all hosts starts within the longest task that is foreseen, times how wrong that is, and the way of some words."""
    scaled = [
        [Serial(each.foreseen, tuple(part * each.foreseen * wrong for part in each.truth)) for each in on_host]
        for on_host in steps
    ]
    site = Site(scaled, cores=cores, travel=travel)
    for host in site.hosts:
        host.fill()
    site.run(asked)
    site.later(0.0, lambda: site.wide.add(a_chunk(1, WIDE), WORK, Shape(nodes=len(steps), cores=cores)))
    site.run(asked + 1000.0)
    assert site.started is not None
    longest = max(each.foreseen for on_host in steps for each in on_host)
    overdue = max(0.0, wrong - 1) * longest * 2
    assert site.started <= asked + longest + overdue + 6 * travel + 1e-6
