"""Slots: one thread each, which takes a task, runs it, hands over what became of it, and takes the next at once.

Nothing of a task's run waits for the event loop: a slot makes directory and script, starts the process and waits for its end
itself. The loop hears of ended tasks in batches, at most some 20 times a second, but at once where a chunk's last
tasks end, because then there is something to decide.

A process group is signalled only under its slot's guard and only until its leader is reaped: until then the kernel gives the
number to nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final, Protocol

from merlin_agent.allowance import Allowance
from merlin_agent.badges import Badges
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.feed import Feed
from merlin_agent.launch import Launcher
from merlin_agent.resources import Pool, parts
from merlin_agent.slot import Slot
from merlin_agent.warm import Warm
from merlin_agent.wide import Wide

_log: Final = logging.getLogger(__name__)

GATHER: Final = 0.05
"""How long ended tasks are gathered before the loop hears of them."""
_STACK: Final = 512 * 1024
_ENDS_WITHIN: Final = 3.0
_VERDICT_WITHIN: Final = 60.0
"""Seconds within which it is known whether a host of a task has died; longer than the silence that tells."""


class Work:
    """How the tasks of a chunk are run; called in slots' threads."""

    patience: float = 0.0
    """For how many seconds results are gathered before `sync`, where that is dear; without any they are told as usual."""

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        """Run a task to its end."""
        raise NotImplementedError

    def execute_all(self, run: ChunkRun, tasks: Sequence[int], slot: Slot, telling: Telling) -> None:
        """Run tasks one after the other, and tell of each what became of it, or that it was not begun."""
        for task in tasks:
            telling.ended(self.execute(run, task, slot))

    @property
    def appetite(self) -> int:
        """How many tasks a slot should take at once."""
        return 1

    def sync(self) -> None:
        """Have all be on disk that the tasks which have ended leave behind; success is reported only afterwards.

        Raises:
            OSError: it is not.
        """

    def close(self) -> None:
        """Let go of what is held: nothing of the chunk runs any more."""


class Telling(Protocol):
    """Who hears what becomes of the tasks that a slot took."""

    def ended(self, ended: Ended) -> None:
        """Tell what became of one."""

    def back(self, tasks: Sequence[int]) -> None:
        """Give back those that were not begun: another slot may run them."""


class Slots:
    """All slots of the agent, and the way from their threads to the event loop."""

    def __init__(  # noqa: PLR0913 - what a host has, and whom to tell
        self,
        count: int,
        *,
        gpus: tuple[str, ...] = (),
        wide: int = 0,
        cpus: tuple[int, ...] = (),
        impossible: Callable[[ChunkRun], None] = lambda _: None,
        launcher: Launcher,
        watch: Callable[[int, int], None],
        deliver: Callable[[list[tuple[ChunkRun, Ended]]], None],
        grace: float,
        warm: Callable[[], Warm] | None = None,
        creates: Allowance | None = None,
        loss: Callable[[tuple[str, ...], float], Coroutine[Any, Any, Stop | None]] | None = None,
    ) -> None:
        """Make them.

        Args:
            count: Tasks of one core at once.
            gpus: Names of those that tasks may have.
            wide: How many tasks of several hosts may run besides; each has a slot that has no core.
            cpus: The processors that tasks are bound to; empty: none in particular.
            impossible: Told of a chunk for which the allocation has too few hosts by now.
            launcher: What starts scripts.
            watch: Told of each slot's process group.
            deliver: Told, in the loop, what became of tasks.
            grace: Seconds between TERM and KILL.
            warm: Makes a slot's warm interpreters.
            creates: How many files may be made a second.
            loss: Tells, in the loop, whether one of some hosts has lost its agent since a time; see `Leader.loss`.
        """
        self._tell_loss = loss
        self.feed = Feed(Pool(count, gpus, parts(cpus, count)))
        self.count = count
        self.wide = Wide(self.feed.start, impossible, most=wide)
        self._grace = grace
        self.leaving = threading.Event()
        """Set when the agent was told to leave."""
        self.badges = Badges()
        """Which task speaks, of those that run."""
        self._slots = [
            Slot(
                number,
                launcher,
                watch,
                grace=grace,
                badges=self.badges,
                warm=None if warm is None else warm(),
                leaving=self.leaving,
                creates=creates,
                loss=self._loss,
                others_wait=self.feed.others_wait,
            )
            for number in range(count + wide)
        ]
        self._deliver = deliver
        self._ended: deque[tuple[ChunkRun, Ended]] = deque()
        self._armed = self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; call from the event loop."""
        self._loop = asyncio.get_running_loop()
        before = threading.stack_size(_STACK)
        try:
            for slot in self._slots:
                thread = threading.Thread(target=self._serve, args=(slot,), name=f"slot-{slot.number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        finally:
            threading.stack_size(before)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that ended tasks are handed to."""
        assert self._loop is not None, "slots that were not started; this is a bug"
        return self._loop

    @property
    def busy(self) -> int:
        """How many cores have a task."""
        return self.feed.busy

    def stop(self, run: ChunkRun, why: Stop, *, strike: bool) -> None:
        """Start nothing more of a chunk; ``strike`` ends what runs of it too: TERM, and KILL after the grace."""
        self.feed.stop(run, why)
        self.wide.plan()
        for slot in self._slots:
            if slot.run is run:
                slot.take_back()
        if strike and self._strike(run, why, signal.SIGTERM):
            self.loop.call_later(self._grace, self._strike, run, why, signal.SIGKILL)

    def kill(self, run: ChunkRun, why: Stop) -> None:
        """End what runs of a chunk without any grace."""
        self.feed.stop(run, why)
        self.wide.plan()
        self._strike(run, why, signal.SIGKILL)

    def end_over(self, host: str) -> bool:
        """End what runs over a host that is dead, and hand it back: its launcher may wait for that host for ever; return whether any did."""
        doomed = self.wide.over_host(host)
        if doomed:
            self._strike_tasks(doomed, signal.SIGTERM)
            # Also where none was struck: a slot may just be about to begin.
            self.loop.call_later(self._grace, self._strike_tasks, doomed, signal.SIGKILL)
        return bool(doomed)

    def _strike_tasks(self, tasks: frozenset[str], number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.share.task in tasks:
                slot.strike(Stop.HOST_LOST, number)

    def _loss(self, hosts: tuple[str, ...], began: float) -> Stop | None:
        if self._tell_loss is None:
            return None
        asking = self._tell_loss(hosts, began)
        try:
            verdict = asyncio.run_coroutine_threadsafe(asking, self.loop)
        except RuntimeError:  # the loop is closed: the agent has left
            asking.close()
            return None
        try:
            return verdict.result(_VERDICT_WITHIN)
        except (TimeoutError, CancelledError):  # the loop is closing
            verdict.cancel()
            return None

    def _strike(self, run: ChunkRun, why: Stop, number: signal.Signals) -> bool:
        struck = [slot.strike(why, number) for slot in self._slots if slot.run is run]
        return any(struck)

    def close(self) -> None:
        """Have the threads end; blocks until they have, but not for ever."""
        self.feed.close()
        deadline = time.monotonic() + _ENDS_WITHIN
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, slot: Slot) -> None:
        while (item := self.feed.take(slot.share)) is not None:
            run, work, task, slot.share = item
            tasks = [task] if slot.share.task else [task, *self.feed.more(run, work.appetite - 1)]
            slot.run = run
            telling = _Taken(self, run, tasks)
            try:
                work.execute_all(run, tasks, slot, telling)
            except Exception as error:  # noqa: BLE001 - a task boundary: the outcome is recorded and the slot lives on
                _log.exception("tasks could not be run; this is a bug, please report it")
                telling.broke(f"{type(error).__name__}: {error}; this is a bug")
            slot.run = None
            if slot.share.task:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has left
                    self.loop.call_soon_threadsafe(self.wide.over, slot.share.task)
        slot.close()

    def hand_over(self, run: ChunkRun, ended: Ended) -> None:
        """Have the loop hear of a task that ended; called by slots' threads."""
        self._ended.append((run, ended))
        if self._draining or (self._armed and run.left):
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has left
            if run.left == 0:
                self._draining = True
                self.loop.call_soon_threadsafe(self._drain)
            else:
                self._armed = True
                self.loop.call_soon_threadsafe(self.loop.call_later, GATHER, self._drain)

    def _drain(self) -> None:
        self._armed = self._draining = False
        batch: list[tuple[ChunkRun, Ended]] = []
        while self._ended:
            batch.append(self._ended.popleft())
        if batch:
            self._deliver(batch)


class _Taken:
    """The tasks that a slot took at once, on their way to the loop."""

    def __init__(self, slots: Slots, run: ChunkRun, tasks: Sequence[int]) -> None:
        self._slots, self._run = slots, run
        self._left = dict.fromkeys(tasks)

    def ended(self, ended: Ended) -> None:
        """See `Telling`."""
        del self._left[ended.task]
        self._slots.hand_over(self._run, ended)

    def back(self, tasks: Sequence[int]) -> None:
        """See `Telling`."""
        if tasks and self._slots.feed.back(self._run, tasks):
            for task in tasks:
                del self._left[task]
        else:
            for task in tasks:
                self.ended(Ended(task, None))  # the chunk is stopped: handed back with the rest of it

    def broke(self, why: str) -> None:
        """Hand back what is left."""
        for task in list(self._left):
            self.ended(Ended(task, None, problem=f"task {task}: {why}"))
