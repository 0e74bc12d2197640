"""The chunks whose tasks may start on this host, and what of it each of them gets. Slots' threads take tasks here."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.foresight import Durations, Running, free_at, ready_at
from merlin_agent.resources import NOTHING, Pool, Share
from merlin_study.shape import Shape

if TYPE_CHECKING:
    from merlin_agent.slots import Work


class Next(NamedTuple):
    """A task that a slot is to run, and what of the host is its own meanwhile."""

    run: ChunkRun
    work: Work
    task: int
    share: Share


_BATCH: Final = 1.0
"""Seconds before cores are wanted back within which slots take tasks one by one."""
_AT_ONCE: Final = float("-inf")

Kept = Callable[[str, int, frozenset[int]], None]
"""Told of a key and of a turn that its cores are kept (see `Feed.lend`), and which processors they are; none where it makes no difference."""


@dataclass(slots=True)
class _Wanted:
    """Cores and GPUs that are to be kept, and until when others may use them."""

    needs: Shape
    kept: Kept
    turn: int = 0
    until: float = _AT_ONCE


class Feed:
    """The chunks whose tasks may start, urgent ones first, as far as the host's cores and GPUs go.

    Where the first one needs more than is free, what becomes free is kept for it: else small tasks would take each core as it comes, and
    a large one would wait for ever. Only those overtake it that will have ended before it can start; see `foresight`. What is kept for
    tasks that run over several hosts (`keep`) goes before all: other hosts wait with theirs meanwhile. While this host would wait for
    another one, `lend` lets it go on with what will have ended by then.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._condition = threading.Condition()
        self._queues: tuple[deque[tuple[ChunkRun, Work, Shape]], ...] = (deque(), deque())
        self._closed = False
        self._pool = pool
        self._ready: deque[Next] = deque()
        self._wanted: OrderedDict[str, _Wanted] = OrderedDict()
        self._kept: dict[str, tuple[Share, _Wanted]] = {}
        self._clock, self._durations = clock, Durations()
        self._running: dict[int, Running] = {}
        """By the identity of their shares."""
        self.idle = 0

    def add(self, run: ChunkRun, work: Work, needs: Shape) -> None:
        """Let slots take a chunk's tasks, each of which needs so much."""
        with self._condition:
            run.feed()
            self._queues[0 if run.urgent else 1].append((run, work, needs))
            self._condition.notify(min(run.left, self.idle))

    def more(self, run: ChunkRun, count: int) -> list[int]:
        """Return more tasks of a chunk, for the same slot and share, where nothing else waits for what it has.

        No slot takes so many that others would have none.
        """
        if count < 1:
            return []
        with self._condition:
            if self._waits_besides(run):
                return []
            return run.take_more(min(count, run.left // (2 * self._pool.cores)))

    def others_wait(self, run: ChunkRun | None) -> bool:
        """Whether a slot has nothing to do, or something waits for what a slot has that runs tasks of this chunk."""
        with self._condition:
            return self.idle > 0 or run is None or self._waits_besides(run)

    def _waits_besides(self, run: ChunkRun) -> bool:
        waited_for = any(wanted.until < self._clock() + _BATCH for wanted in self._wanted.values())
        return bool(self._ready or waited_for or (self._queues[0] and not run.urgent))

    def back(self, run: ChunkRun, tasks: Sequence[int]) -> bool:
        """Let others run tasks that were taken and not begun; return whether the chunk still runs."""
        with self._condition:
            if run.stopped is not None:
                return False
            run.back(tasks)
            self._condition.notify(min(len(tasks), self.idle))
            return True

    def start(self, run: ChunkRun, work: Work, share: Share) -> bool:
        """Let a slot run the next task of a chunk with a share that is its own already; False where it has none left."""
        with self._condition:
            task = run.take()
            if task is not None:
                self._ready.append(Next(run, work, task, share))
                self._condition.notify()
            return task is not None

    def keep(self, key: str, needs: Shape, kept: Kept) -> float | None:
        """Keep cores and GPUs under a key, as they become free; tell ``kept`` then, from any thread.

        Return in how many seconds that will be, as far as one can tell; None where one can't.
        """
        with self._condition:
            self._wanted[key] = _Wanted(needs, kept)
            if self._keep_what_can():
                return 0.0
            waits = [wanted.needs for wanted in self._wanted.values()]
            all_of_it = Shape(cores=sum(each.cores for each in waits), gpus=sum(each.gpus for each in waits))
            (cores, gpus), now = self._pool.free, self._clock()
            when = ready_at(all_of_it, self._running.values(), cores=cores, gpus=gpus, now=now)
            return None if when is None else when - now

    def lend(self, key: str, turn: int, seconds: float) -> None:
        """Use what is kept under a key, or is to be, for so long; then keep it, and tell ``kept`` with this turn."""
        with self._condition:
            share, wanted = self._kept.pop(key, (NOTHING, self._wanted.get(key)))
            if wanted is None:
                return
            self._pool.give(share)
            wanted.turn, wanted.until = turn, self._clock() + seconds if seconds > 0 else _AT_ONCE
            self._wanted[key] = wanted
            self._keep_what_can()
            self._condition.notify_all()

    def release(self, key: str) -> None:
        """Give back what is kept, or keep it no more."""
        with self._condition:
            self._wanted.pop(key, None)
            self._pool.give(self._kept.pop(key, (NOTHING, None))[0])
            self._keep_what_can()
            self._condition.notify_all()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of what is kept or to be kept."""
        with self._condition:
            return (*self._kept, *self._wanted)

    def _keep_what_can(self) -> bool:
        """Keep in their order what is not lent; return whether nothing is left to be kept."""
        now = self._clock()
        for key, wanted in [item for item in self._wanted.items() if item[1].until <= now]:
            share = self._pool.take(wanted.needs)
            if share is None:
                return False
            del self._wanted[key]
            self._kept[key] = share, wanted
            wanted.kept(key, wanted.turn, share.pins[0][1] if share.pins else frozenset())
        return not self._wanted

    def take(self, back: Share = NOTHING) -> Next | None:
        """Give back what the last task had, and wait for a task to run; None when there will be none."""
        with self._condition:
            self._pool.give(back)
            if (ended := self._running.pop(id(back), None)) is not None:
                self._durations.note(ended.step, self._clock() - ended.began)
            self._condition.notify(max(0, back.cores - 1))
            while not self._closed:
                found = self._first()
                if found is not None:
                    return found
                self.idle += 1
                self._condition.wait(self._lent_for())
                self.idle -= 1
            return None

    def _first(self) -> Next | None:
        if self._ready:
            return self._ready.popleft()
        now, latest = self._clock(), float("inf")
        if not self._keep_what_can():
            latest = min(max(each.until, self._free_at(each.needs, now)) for each in self._wanted.values())
        for queue in self._queues:
            for entry in list(queue):
                run, work, needs = entry
                if run.left == 0:
                    if run.stopped is not None or run.running == 0:  # else a slot may still give some of its tasks back
                        queue.remove(entry)
                    continue
                most = self._durations.most(run.step, needs)
                if latest < float("inf") and (most is None or now + most > latest):
                    continue
                share = self._pool.take(needs)
                if share is None:
                    latest = min(latest, self._free_at(needs, now))
                    continue
                task = run.take()
                assert task is not None, "a chunk with tasks left had none; this is a bug"
                self._running[id(share)] = Running(run.step, now, None if most is None else now + most, share)
                return Next(run, work, task, share)
        return None

    def _lent_for(self) -> float | None:
        """Return in how many seconds cores are wanted that are lent now; None where none are."""
        now = self._clock()
        ends = [wanted.until - now for wanted in self._wanted.values() if wanted.until > now]
        return min(ends, default=None)

    def _free_at(self, needs: Shape, now: float) -> float:
        cores, gpus = self._pool.free
        return free_at(needs, self._running.values(), cores=cores, gpus=gpus, now=now)

    def stop(self, run: ChunkRun, why: Stop) -> None:
        """Start nothing more of a chunk."""
        with self._condition:
            run.stop(why)
            self._condition.notify_all()  # it may have been the first one, for which what became free was kept

    @property
    def ready(self) -> int:
        """How many slots' worth of tasks wait; see `Shape.cost`."""
        cores, gpus = self._pool.cores, len(self._pool.gpus)
        with self._condition:
            return sum(
                run.left * needs.cost(cores=cores, gpus=gpus) for queue in self._queues for run, _, needs in queue
            )

    @property
    def busy(self) -> int:
        """How many cores have a task."""
        with self._condition:
            return self._pool.busy

    def close(self) -> None:
        """Let every slot end once its task has."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
