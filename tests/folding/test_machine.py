"""The pure core as a machine that Hypothesis drives: deliveries, losses, duplicates, crashes, lost logs, steps of the clock.

What must hold at each step is `World`'s to say: nothing starts early, nothing is out twice. Here is what may happen to it.
"""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from merlin_study import wire
from merlin_study.ledger import Ledger
from tests.folding.studies import Shape
from tests.folding.test_unrolling import World, shapes


class Machine(RuleBasedStateMachine):
    """A study, its operator, its agents, and all that befalls them."""

    world: World

    @initialize(shape=shapes(), seed=st.integers(0, 2**32))
    def begin(self, shape: Shape, seed: int) -> None:
        """Draw a study."""
        self.world = World(shape, seed)

    @rule(times=st.integers(1, 12))
    def work(self, times: int) -> None:
        """Agents claim, report, fall silent, come back late; the operator issues what may go out."""
        for _ in range(times):
            self.world.issue()
            self.world.act()

    @rule()
    def crash(self) -> None:
        """A new operator reads cursor, stream and log, as `merlin_operator.logreader` does."""
        self._read_again([entry for entry, _ in self.world.log], [at for _, at in self.world.log])

    @precondition(lambda self: self.world.log)
    @rule(seed=st.integers(0, 2**16), live_first=st.booleans())
    def lose_the_log(self, seed: int, live_first: bool) -> None:  # noqa: FBT001 - Hypothesis names it
        """The broker comes back empty: agents tell what they hold, one tells what all have recorded, by fence; verdicts are gone."""
        world = self.world
        told: dict[int, list[wire.Entry]] = defaultdict(list)
        for entry, _ in world.log:
            if isinstance(entry, wire.Start):
                told[entry.chunk.fence].append(entry)
            elif isinstance(entry, wire.Report):
                told[entry.fence].append(entry)
        held: list[wire.Entry] = [wire.Start(agent=agent, chunk=chunk) for chunk, agent, _ in world.running.values()]
        random.Random(seed).shuffle(held)
        again = [entry for fence in sorted(told) for entry in told[fence]]
        entries = held + again if live_first else again + held
        world.waiting.clear()  # the task stream is empty, too
        world.open = {fence: open_ for fence, open_ in world.open.items() if fence in world.running}
        world.log = []
        self._read_again(entries, [world.now] * len(entries))
        # What the operator calls lost anew: fences whose holders hold them no more.
        for number, fence in list(world.ledger.fences.items()):
            if number not in world.running and fence.holder is not None:
                world.apply(wire.Lost(fence=number, agent=fence.holder))

    def _read_again(self, entries: list[wire.Entry], times: list[float]) -> None:
        world = self.world
        next_fence = world.ledger.next_fence
        ledger = Ledger(world.plan)
        for entry, at in zip(entries, times, strict=True):
            ledger.apply(entry, at=at)
        ledger.next_fence = max(ledger.next_fence, next_fence)
        for fence in list(ledger.fences.values()):
            if fence.chunk.fence not in world.waiting:
                ledger.withdraw(fence.chunk)
        for chunk in world.waiting.values():
            ledger.issue(chunk)
        ledger.settle_waiting()
        world.ledger = ledger
        if not world.log:
            world.log = list(zip(entries, times, strict=True))  # type: ignore[arg-type]

    @rule(seconds=st.sampled_from([-3600.0, -1.0, 3600.0]))
    def step_the_clock(self, seconds: float) -> None:
        """The broker's clock is set."""
        self.world.now += seconds

    @invariant()
    def counts_agree(self) -> None:
        """No task has two outcomes, and none that has one waits or is out."""
        ledger = self.world.ledger
        for step in ledger.steps:
            assert sum(step.outcomes.values()) == len(step.final) <= (step.total or 0)
        assert ledger.misplaced == 0
        assert ledger.doubled == 0

    def teardown(self) -> None:
        """Left alone, the study comes to its end: nothing was lost."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.run()
        for at, tasks in enumerate(world.naive.tasks):
            step = world.ledger.steps[at + world.first]
            assert step.total == len(tasks)
            assert sum(step.outcomes.values()) == len(tasks)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=20)
