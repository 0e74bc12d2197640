"""The pure core as a machine that Hypothesis drives: deliveries, losses, duplicates, crashes, lost logs, steps of the clock.

What must hold at each step is `World`'s to say: nothing starts early, nothing is out twice. Here is what may happen to it.
"""

from __future__ import annotations

import os
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.snapshot import freeze, thaw
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
        self._read_again()

    def _read_again(self) -> None:
        world = self.world
        next_fence = world.ledger.next_fence
        ledger, after = Ledger(world.plan), 0
        if world.kept is not None and world.random.random() < 0.5:
            state, blocks, after = world.kept
            ledger = thaw(world.plan, state, blocks)
        for entry, at in world.log[after:]:
            ledger.apply(entry, at=at)
        ledger.next_fence = max(ledger.next_fence, next_fence)
        for fence in list(ledger.fences.values()):
            if fence.chunk.fence not in world.waiting:
                ledger.withdraw(fence.chunk)
        for chunk in world.waiting.values():
            ledger.issue(chunk)
        ledger.settle_waiting()
        world.ledger = ledger

    @precondition(lambda self: not self.world.ledger.late.fleeting)
    @rule()
    def keep(self) -> None:
        """The ledger is kept; who reads again may begin there."""
        self.world.kept = (*freeze(self.world.ledger), len(self.world.log))

    @precondition(lambda self: self.world.epoch < 4)
    @rule(kept=st.floats(0, 1))
    def lose_the_log(self, kept: float) -> None:
        """The stream is emptied or rewound, and completed from the workspace, as `merlin_operator.repair` has it."""
        self.world.lose_the_log(kept)

    @rule(
        codes=st.sampled_from([None, (0,)]),
        step=st.integers(0, 3),
        dependants=st.booleans(),
    )
    def restart(self, codes: tuple[int, ...] | None, step: int, dependants: bool) -> None:  # noqa: FBT001
        """Somebody restarts a step: what failed of it, or what succeeded."""
        world = self.world
        steps = (world.first + step % len(world.naive.tasks),)
        below = world.ledger.next_fence
        token = f"restart:{below}:{len(world.log)}"
        kill_below = world.ledger.stops.kill_below
        if any(fence < kill_below for fence in world.running):
            return  # it waits for what a cancellation ends
        world.judge(wire.Restarted(token=token, steps=steps, codes=codes, dependants=dependants, below=below))

    @precondition(lambda self: self.world.failed)
    @rule(data=st.data())
    def excuse(self, data: st.DataObject) -> None:
        """Failures turn out to be their host's."""
        world = self.world
        failed = data.draw(st.lists(st.sampled_from(world.failed), min_size=1, max_size=4))
        below = world.ledger.next_fence
        token = f"excused:{below}:{len(world.log)}"
        world.failed = [each for each in world.failed if each not in failed]
        world.judge(wire.Excused(token=token, host="h", failed=tuple(failed), below=below))

    @rule(cause=st.sampled_from(["purge", "cancel"]))
    def drop(self, cause: Literal["purge", "cancel"]) -> None:
        """Somebody drops what waits, or ends what runs, too."""
        world = self.world
        below = world.ledger.next_fence
        world.judge(wire.Dropped(cause=cause, token=f"purge:{below}:{len(world.log)}", below=below))

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
        # A restart that a lost log forgot is known of no more, so what ran again for it counts as doubled.
        assert ledger.doubled == 0 or (self.world.reopened and self.world.epoch > 1)

    def teardown(self) -> None:
        """Left alone, the study comes to its end: nothing was lost."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.now += 1e6  # past all that was put off by a clock that was set back
        world.run()
        for at, tasks in enumerate(world.naive.tasks):
            step = world.ledger.steps[at + world.first]
            assert step.total == len(tasks) or (step.total == 0 and world.dropped), "a purge came before the samples"
            assert sum(step.outcomes.values()) == step.total


TestMachine = Machine.TestCase
HISTORIES = int(os.environ.get("MERLIN_HISTORIES", "0"))
"""How many random histories to try; 0: the same sixty each time."""
TestMachine.settings = settings(max_examples=HISTORIES or 60, stateful_step_count=20, derandomize=not HISTORIES)
