"""A ledger as something to keep: a state in strict models, and beside it the blocks of bits, each named by its content.

`freeze` and `thaw` are inverse, but for reports whose claim is not told yet and claims of one fence by several agents
(`Late.fleeting`), so none is kept then: a ledger that is thawed answers everything as the frozen one would, so it may stand for the log
up to the entry that was folded last. Blocks are immutable, because their name is their digest: a new snapshot adds those that
changed, and an old one stays whole until nobody names its blocks any more. Blocks of equal bits are kept once, and a block
whose every bit is set is a number in the state.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import Field

from merlin_study import wire
from merlin_study.backlog import Waiting
from merlin_study.bitmap import Bitmap
from merlin_study.failures import KEPT_FAILURES
from merlin_study.fence import Fence
from merlin_study.late import Late
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.runtimes import Runtimes
from merlin_study.steptasks import StepTasks
from merlin_study.stops import Stops
from merlin_study.taskset import TaskSet

VERSION: Final = 1
"""Raised when an older snapshot could be misread; another version is not read at all."""
_BITMAPS: Final = ("ready", "issued", "out", "final", "succeeded", "blocked", "fresh")
_PLAIN: Final = (
    *(
        "bound",
        "facts",
        "next_fence",
        "redundant",
        "doubled",
        "misplaced",
        "lost",
        "first_at",
        "last_at",
    ),
    *(
        "noted",
        "exhausted",
        "entries",
    ),
)
"""Attributes of a ledger that stand in its state as they are."""
_LATE: Final = ("recalled", "repaired", "returned")
_RUNTIMES: Final = ("seconds", "tried")
_STOPS: Final = ("kill_below", "cancelled", "drop_below", "hard_failed", "stop_asked")


class SnapshotError(ValueError):
    """A state that is none of this plan, or whose blocks are not all there."""


class Bits(wire.Message):
    """A `Bitmap`: ranges (first, count) of blocks whose every bit is set, and the digest of each other block by its number."""

    full: tuple[tuple[int, int], ...] = ()
    blocks: dict[int, str] = Field(default_factory=dict)


class EndedBits(wire.Message):
    """The tasks that ended with one outcome and exit code."""

    outcome: Outcome
    code: int | None
    bits: Bits


class StepState(wire.Message):
    """One step's tasks."""

    total: int | None
    hint: int
    bits: dict[str, Bits]
    ended: tuple[EndedBits, ...]
    outcomes: dict[Outcome, int]
    combination_done: dict[int, int]


class FenceState(wire.Message):
    """A chunk that is out; ``open`` None: all of it is told."""

    chunk: wire.Chunk
    open: TaskSet | None
    holder: str | None
    serial: int
    ahead: tuple[int, ...]
    end: int
    refused: bool
    felled: TaskSet | None = None


class WaitingState(wire.Message):
    """What waits to be issued again."""

    due: float
    number: int
    step: int
    tasks: TaskSet
    attempt: int
    restart: bool
    lost: tuple[wire.LostHolder, ...]


class LostState(wire.Message):
    """A fence that was called lost: its chunk, and the last report that was heard of it."""

    chunk: wire.Chunk
    serial: int


class StepFailure(wire.Message):
    """A failure that is kept in full, and its step."""

    step: int
    failure: wire.Failure


class ScanState(wire.Message):
    """A `merlin_study.scan.Scan`, step by step."""

    left: tuple[Bits, ...]
    missing: tuple[Bits, ...]
    dependants: bool


class State(wire.Message):
    """A ledger without its blocks; fields are named as the attributes of the ledger and of its parts."""

    version: int = VERSION
    samples: int
    steps: tuple[StepState, ...]
    fences: tuple[FenceState, ...]
    waiting: tuple[WaitingState, ...]
    lost_serials: tuple[LostState, ...]
    superseded: dict[int, list[TaskSet]]
    recalled: dict[str, wire.Recalled]
    repaired: int
    returned: dict[int, str] = Field(default_factory=dict)
    entries: int = 0
    closed: Bits
    scan: ScanState
    first_failures: tuple[StepFailure, ...]
    last_failures: tuple[StepFailure, ...]
    honoured: tuple[str, ...]
    dropped_queues: tuple[str, ...]
    bound: wire.Bound | None
    facts: wire.SampleFacts | None
    next_fence: int
    redundant: int
    doubled: int
    misplaced: int
    lost: list[int]
    seconds: list[float]
    tried: list[int]
    first_at: float | None
    last_at: float | None
    noted: bool
    kill_below: int
    cancelled: bool
    drop_below: list[int]
    hard_failed: dict[str, float]
    stop_asked: float | None
    exhausted: int

    def digests(self) -> set[str]:
        """Return the blocks that the state names."""
        found = set(self.closed.blocks.values())
        for bits in (*self.scan.left, *self.scan.missing):
            found.update(bits.blocks.values())
        for step in self.steps:
            for bits in (*step.bits.values(), *(each.bits for each in step.ended)):
                found.update(bits.blocks.values())
        return found


def freeze(ledger: Ledger, *, known: set[str] | frozenset[str] = frozenset()) -> tuple[State, dict[str, bytes]]:
    """Return a ledger's state, and by their digest the blocks that it names and that are not ``known``."""
    blocks: dict[str, bytes] = {}

    def bits(bitmap: Bitmap) -> Bits:
        full, digests = bitmap.digests()
        blocks.update({digest: bitmap.block(at) for at, digest in digests.items() if digest not in known})
        return Bits(full=full, blocks=digests)

    state = State(
        samples=ledger.geometry.samples,
        steps=tuple(_freeze_step(step, bits) for step in ledger.steps),
        fences=tuple(
            FenceState(
                chunk=each.chunk,
                open=each.remaining,
                holder=each.holder,
                serial=each.serial,
                ahead=tuple(sorted(each.ahead)),
                end=each.end,
                refused=each.refused,
                felled=TaskSet.from_bits(each.chunk.tasks.first, each.felled),
            )
            for each in ledger.fences.values()
        ),
        waiting=tuple(
            WaitingState(
                due=each.due,
                number=number,
                step=each.step,
                tasks=each.tasks,
                attempt=each.attempt,
                restart=each.restart,
                lost=each.lost,
            )
            for number, each in enumerate(ledger.waiting())
        ),
        lost_serials=tuple(
            LostState(chunk=chunk, serial=serial) for chunk, serial in ledger.late.lost_serials.values()
        ),
        superseded={fence: list(tasks) for fence, tasks in ledger.late.superseded.items()},
        closed=bits(ledger.closed),
        scan=ScanState(
            left=tuple(map(bits, ledger.scan.left)),
            missing=tuple(map(bits, ledger.scan.missing)),
            dependants=ledger.scan.dependants,
        ),
        first_failures=tuple(StepFailure(step=at, failure=each) for at, each in ledger.failures.first),
        last_failures=tuple(StepFailure(step=at, failure=each) for at, each in ledger.failures.last),
        honoured=tuple(sorted(ledger.honoured)),
        dropped_queues=tuple(sorted(ledger.stops.dropped_queues)),
        **{name: getattr(owner, name) for owner, names in _plain(ledger) for name in names},
    )
    return state, blocks


def _plain(ledger: Ledger) -> tuple[tuple[Ledger | Late | Runtimes | Stops, tuple[str, ...]], ...]:
    """Return who has the attributes that stand in a state as they are."""
    return (ledger, _PLAIN), (ledger.late, _LATE), (ledger.runtimes, _RUNTIMES), (ledger.stops, _STOPS)


def _freeze_step(step: StepTasks, bits: Callable[[Bitmap], Bits]) -> StepState:
    return StepState(
        total=step.total,
        hint=step.hint,
        bits={name: bits(getattr(step, name)) for name in _BITMAPS},
        ended=tuple(
            EndedBits(outcome=outcome, code=code, bits=bits(members)) for (outcome, code), members in step.ended.items()
        ),
        outcomes={outcome: count for outcome, count in step.outcomes.items() if count},
        combination_done={at: count for at, count in step.combination_done.items() if count},
    )


def thaw(plan: Plan, state: State, blocks: Mapping[str, bytes]) -> Ledger:
    """Return the ledger that was frozen.

    Raises:
        SnapshotError: the state is no ledger's of this plan, or a block is missing.
    """
    if state.version != VERSION or len(state.steps) != len(plan.steps):
        raise SnapshotError("a snapshot of another plan or version")
    ledger = Ledger(plan)
    try:
        ledger.dag.measure(state.samples)
        for step, kept in zip(ledger.steps, state.steps, strict=True):
            _thaw_step(step, kept, blocks)
        ledger.closed = Bitmap.of_blocks(state.closed.full, state.closed.blocks, blocks)
        ledger.scan.left = [Bitmap.of_blocks(each.full, each.blocks, blocks) for each in state.scan.left]
        ledger.scan.missing = [Bitmap.of_blocks(each.full, each.blocks, blocks) for each in state.scan.missing]
        ledger.scan.dependants = state.scan.dependants
    except KeyError as missing:
        raise SnapshotError(f"block {missing} is not there") from missing
    for fence in state.fences:
        first = fence.chunk.tasks.first
        left, felled = (
            0 if tasks is None else tasks.bits << (tasks.first - first) for tasks in (fence.open, fence.felled)
        )
        ledger.fences[fence.chunk.fence] = Fence(
            fence.chunk, left, fence.holder, fence.serial, set(fence.ahead), fence.end, fence.refused, felled
        )
    for each in state.waiting:
        ledger.put_back(Waiting(each.due, each.number, each.step, each.tasks, each.attempt, each.restart, each.lost))
    ledger.count_on(len(state.waiting))
    ledger.late.lost_serials = {each.chunk.fence: (each.chunk, each.serial) for each in state.lost_serials}
    ledger.failures.first = [(each.step, each.failure) for each in state.first_failures]
    ledger.failures.last = deque(((each.step, each.failure) for each in state.last_failures), maxlen=KEPT_FAILURES)
    ledger.late.superseded = {fence: list(tasks) for fence, tasks in state.superseded.items()}
    ledger.honoured, ledger.stops.dropped_queues = set(state.honoured), set(state.dropped_queues)
    for owner, names in _plain(ledger):
        for name in names:
            value = getattr(state, name)
            setattr(owner, name, value.copy() if isinstance(value, list | dict) else value)
    return ledger


def _thaw_step(step: StepTasks, kept: StepState, blocks: Mapping[str, bytes]) -> None:
    step.total, step.hint = kept.total, kept.hint
    for name in _BITMAPS:
        setattr(step, name, Bitmap.of_blocks(kept.bits[name].full, kept.bits[name].blocks, blocks))
    step.ended = {
        (each.outcome, each.code): Bitmap.of_blocks(each.bits.full, each.bits.blocks, blocks) for each in kept.ended
    }
    step.outcomes, step.combination_done = Counter(kept.outcomes), Counter(kept.combination_done)
