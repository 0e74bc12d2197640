"""A ledger that was kept and read again is the ledger that was kept, at any point of any history."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_study import snapshot
from merlin_study.bitmap import BLOCK_BITS, Bitmap
from merlin_study.ledger import Ledger
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet
from tests.folding.studies import Shape, plan_of
from tests.folding.test_unrolling import World, shapes


class Forgetful(World):
    """A world whose ledger is kept and read again now and then; blocks are kept as a store would, those that changed."""

    store: dict[str, bytes]

    def act(self) -> None:
        super().act()
        if self.random.random() < 0.3:
            self.store = getattr(self, "store", {})
            state, blocks = snapshot.freeze(self.ledger, known=set(self.store))
            self.store.update(blocks)
            assert state.digests() <= set(self.store)
            told = snapshot.State.model_validate_json(state.encode())
            again = snapshot.thaw(self.plan, told, self.store)
            assert snapshot.freeze(again)[0] == state
            self.ledger = again


@settings(max_examples=80)
@given(shape=shapes(), seed=st.integers(0, 2**32))
def test_a_study_goes_on_from_a_snapshot_as_if_nothing_had_happened(shape: Shape, seed: int) -> None:
    """Every promise that a random history checks holds where the ledger is read from a snapshot at random points."""
    world = Forgetful(shape, seed)
    world.run()
    for at, tasks in enumerate(world.naive.tasks):
        assert sum(world.ledger.steps[at + world.first].outcomes.values()) == len(tasks)
    assert world.ledger.misplaced == 0


def test_a_snapshot_knows_all_that_a_ledger_does() -> None:
    """Who gives a ledger another attribute has to say here that its snapshot has it."""
    ledger = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    kept = set(snapshot.State.model_fields) - {"version", "samples", "steps", "waiting"}
    parts = {"failures", "late", "runtimes", "stops"}
    assert set(vars(ledger.failures)) == {"first", "last"}
    kept -= {"first_failures", "last_failures"}
    for part in (ledger.late, ledger.runtimes, ledger.stops):
        assert set(vars(part)) - {"_plan", "early", "rivals"} <= kept
        kept -= set(vars(part))
    assert set(vars(ledger)) == kept | parts | {"plan", "dag", "_backlog", "_fold_now"}
    bitmaps = {"ready", "issued", "out", "final", "succeeded", "blocked", "fresh"}
    assert set(StepTasks.__slots__) == bitmaps | {"total", "hint", "hints", "ended", "outcomes", "combination_done"}


def test_a_snapshot_costs_the_blocks_that_changed() -> None:
    """A hundred million tasks, one of them touched since: one block of bits a map, whatever there was before."""
    bits = Bitmap()
    bits.add_range(0, 100 * BLOCK_BITS)
    bits.add(TaskSet.of([200 * BLOCK_BITS + 7]))
    bits.add(TaskSet.of([300 * BLOCK_BITS + 9]))
    full, before = bits.digests()
    assert full == ((0, 100),)
    bits.add(TaskSet.of([300 * BLOCK_BITS + 10]))
    _, after = bits.digests()
    assert {at for at in after if after[at] != before[at]} == {300}
    again = Bitmap.of_blocks(full, after, {digest: bits.block(at) for at, digest in after.items()})
    assert (len(again), again.digests()) == (len(bits), (full, after))


def test_a_snapshot_without_a_block_is_none() -> None:
    plan = plan_of(Shape(((True, (), ()),), {}, 1).yaml())
    ledger = Ledger(plan)
    state, blocks = snapshot.freeze(ledger)
    assert snapshot.thaw(plan, state, blocks).next_fence == 1
    with pytest.raises(snapshot.SnapshotError):
        snapshot.thaw(plan, state, {})
