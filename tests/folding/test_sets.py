"""Sets of tasks as ranges and bits, against Python's own sets."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from merlin_study.bitmap import BLOCK_BITS, Bitmap
from merlin_study.steptasks import lowest
from merlin_study.taskset import TaskSet

INDICES = st.sets(st.integers(0, 300), min_size=1, max_size=60)
NEAR_EDGES = st.sets(
    st.integers(0, 40).map(lambda i: i + BLOCK_BITS - 20) | st.integers(0, 40), min_size=1, max_size=30
)


@given(indices=INDICES)
def test_a_set_holds_what_was_put_in_and_survives_the_wire(indices: set[int]) -> None:
    tasks = TaskSet.of(indices)
    assert list(tasks.indices()) == sorted(indices)
    assert len(tasks) == len(indices)
    assert all((index in tasks) == (index in indices) for index in range(301))
    assert TaskSet.model_validate_json(tasks.model_dump_json()) == tasks


@given(bits=st.integers(0, 2**70), first=st.integers(0, 10**9))
def test_bits_are_trimmed_to_the_tasks_they_name(bits: int, first: int) -> None:
    tasks = TaskSet.from_bits(first, bits)
    named = [first + at for at in range(71) if bits >> at & 1]
    assert ([] if tasks is None else list(tasks.indices())) == named


@pytest.mark.parametrize(
    "raw",
    [
        '{"first":-1,"width":1}',
        '{"first":0,"width":0}',
        '{"first":0,"width":2,"mask":"Bw=="}',
        '{"first":0,"width":2,"mask":"?"}',
    ],
)
def test_impossible_sets_are_refused(raw: str) -> None:
    with pytest.raises(ValidationError):
        TaskSet.model_validate_json(raw)


@given(steps=st.lists(st.tuples(st.booleans(), NEAR_EDGES), max_size=8))
def test_a_bitmap_is_a_set(steps: list[tuple[bool, set[int]]]) -> None:
    """Adding and removing near the edges of blocks leaves what a set would hold, and reports the same differences."""
    bitmap, truth = Bitmap(), set[int]()
    for adds, indices in steps:
        tasks = TaskSet.of(indices)
        if adds:
            assert bitmap.add(tasks) == len(indices - truth)
            truth |= indices
        else:
            assert bitmap.remove(tasks) == len(indices & truth)
            truth -= indices
    assert len(bitmap) == len(truth)
    assert [index for found in bitmap.sets() for index in found.indices()] == sorted(truth)


def test_a_hundred_million_tasks_cost_blocks_only_where_they_are_touched() -> None:
    """10^8 bits set in one range hold no memory; a hole costs one block of 64 KiB."""
    bitmap = Bitmap()
    bitmap.add_range(0, 10**8)
    bitmap.remove(TaskSet(first=5 * 10**7, width=1))
    assert len(bitmap) == 10**8 - 1
    assert bitmap.read(5 * 10**7 - 2, 5) == 0b11011
    assert sum(sys.getsizeof(block) for block in bitmap._blocks.values() if block is not None) < 2 * 65536 + 200


def test_a_range_far_wider_than_a_bitmap_clears_what_is_there() -> None:
    bitmap = Bitmap()
    bitmap.add_range(3, BLOCK_BITS)
    assert bitmap.remove(TaskSet(first=5, width=2**53)) == BLOCK_BITS - 2
    assert list(bitmap.sets()) == [TaskSet(first=3, width=2)]


@given(bits=st.integers(0, 2**90), most=st.integers(1, 90))
def test_the_lowest_tasks_are_taken_first(bits: int, most: int) -> None:
    taken = lowest(bits, most)
    wanted = [at for at in range(91) if bits >> at & 1][:most]
    assert [at for at in range(91) if taken >> at & 1] == wanted


def test_whole_blocks_come_and_go_with_their_counts() -> None:
    bits = Bitmap()
    bits.add_range(0, 2 * BLOCK_BITS + 5)
    bits.remove(TaskSet(first=3, width=1))
    assert bits.remove(TaskSet(first=0, width=2 * BLOCK_BITS)) == 2 * BLOCK_BITS - 1
    assert len(bits) == 5
    assert list(bits.sets()) == [TaskSet(first=2 * BLOCK_BITS, width=5)]
