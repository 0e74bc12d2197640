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
import os
import select
import signal
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from merlin_agent.badges import Badges
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.launch import Launcher, Script
from merlin_agent.resources import NOTHING, Pool, Share, parts
from merlin_agent.scratch import Scratch
from merlin_agent.warm import LONGEST_POLL, ColdError, Warm, WarmShell
from merlin_agent.wide import Wide
from merlin_study.shape import Shape

_log: Final = logging.getLogger(__name__)

GATHER: Final = 0.05
"""How long ended tasks are gathered before the loop hears of them."""
_STACK: Final = 512 * 1024
_ENDS_WITHIN: Final = 3.0
_SWEEPING: Final = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP})
"""Signals by which schedulers end jobs, or warn of their end."""
_SWEPT_WITHIN: Final = 0.5
"""Seconds within which the agent hears of it, too."""
_ALLOWED: Final = frozenset(os.sched_getaffinity(0))


class Work:
    """How the tasks of a chunk are run; called in slots' threads."""

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        """Run a task to its end."""
        raise NotImplementedError

    def sync(self) -> None:
        """Have all be on disk that the tasks which have ended leave behind; success is reported only afterwards.

        Raises:
            OSError: it is not.
        """

    def close(self) -> None:
        """Let go of what is held: nothing of the chunk runs any more."""


class Next(NamedTuple):
    """A task that a slot is to run, and what of the host is its own meanwhile."""

    run: ChunkRun
    work: Work
    task: int
    share: Share


class Feed:
    """The chunks whose tasks may start, urgent ones first, as far as the host's cores and GPUs go.

    Within its queue no task overtakes another: where the first one needs more than is free, what becomes free is kept for it.
    Else small tasks would take each core as it comes, and a large one would wait for ever. What is kept for tasks that run over several
    hosts (`keep`) goes before all: other hosts wait with theirs meanwhile.
    """

    def __init__(self, pool: Pool) -> None:
        self._condition = threading.Condition()
        self._queues: tuple[deque[tuple[ChunkRun, Work, Shape]], ...] = (deque(), deque())
        self._closed = False
        self._pool = pool
        self._ready: deque[Next] = deque()
        self._wanted: OrderedDict[str, tuple[Shape, Callable[[str], None]]] = OrderedDict()
        self._kept: dict[str, Share] = {}
        self.idle = 0

    def add(self, run: ChunkRun, work: Work, needs: Shape) -> None:
        """Let slots take a chunk's tasks, each of which needs so much."""
        with self._condition:
            run.feed()
            self._queues[0 if run.urgent else 1].append((run, work, needs))
            self._condition.notify(min(run.left, self.idle))

    def start(self, run: ChunkRun, work: Work, share: Share) -> bool:
        """Let a slot run the next task of a chunk with a share that is its own already; False where it has none left."""
        with self._condition:
            task = run.take()
            if task is not None:
                self._ready.append(Next(run, work, task, share))
                self._condition.notify()
            return task is not None

    def keep(self, key: str, needs: Shape, kept: Callable[[str], None]) -> None:
        """Keep cores and GPUs under a key, as they become free; tell ``kept`` then, from any thread."""
        with self._condition:
            self._wanted[key] = needs, kept
            self._keep_what_can()

    def release(self, key: str) -> None:
        """Give back what is kept, or keep it no more."""
        with self._condition:
            self._wanted.pop(key, None)
            self._pool.give(self._kept.pop(key, NOTHING))
            self._keep_what_can()
            self._condition.notify_all()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of what is kept or to be kept."""
        with self._condition:
            return (*self._kept, *self._wanted)

    def _keep_what_can(self) -> bool:
        """Keep in their order; return whether nothing is left to be kept."""
        while self._wanted:
            key, (needs, kept) = next(iter(self._wanted.items()))
            share = self._pool.take(needs)
            if share is None:
                return False
            del self._wanted[key]
            self._kept[key] = share
            kept(key)
        return True

    def take(self, back: Share = NOTHING) -> Next | None:
        """Give back what the last task had, and wait for a task to run; None when there will be none."""
        with self._condition:
            self._pool.give(back)
            self._condition.notify(max(0, back.cores - 1))
            while not self._closed:
                found = self._first()
                if found is not None:
                    return found
                self.idle += 1
                self._condition.wait()
                self.idle -= 1
            return None

    def _first(self) -> Next | None:
        if self._ready:
            return self._ready.popleft()
        if not self._keep_what_can():
            return None
        for queue in self._queues:
            while queue:
                run, work, needs = queue[0]
                if run.left == 0:
                    queue.popleft()
                    continue
                share = self._pool.take(needs)
                if share is None:
                    return None
                task = run.take()
                assert task is not None, "a chunk with tasks left had none; this is a bug"
                return Next(run, work, task, share)
        return None

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


class Slot:
    """Runs one task at a time."""

    def __init__(
        self,
        number: int,
        launcher: Launcher,
        watch: Callable[[int, int], None],
        *,
        grace: float,
        badges: Badges,
        warm: Warm | None = None,
        leaving: threading.Event | None = None,
    ) -> None:
        self.number, self.badges = number, badges
        self._leaving = leaving or threading.Event()
        self._launcher, self._watch, self._grace, self._warm = launcher, watch, grace, warm
        self._guard = threading.Lock()
        self._group = 0
        self._shell: WarmShell | None = None
        self.lent: dict[tuple[str, str], Scratch] = {}
        """Directories that its thread lends to tasks, by where they lie and what their script is called."""
        self.borrowed = 0
        """How many of them it has made."""
        self.run: ChunkRun | None = None
        self.share: Share = NOTHING
        self._bound: frozenset[int] = frozenset()
        self.struck: Stop | None = None
        """Why the running task was signalled from outside, if it was."""

    def close(self) -> None:
        """End what was kept warm, and remove what was lent."""
        for scratch in self.lent.values():
            scratch.discard()
        self.lent.clear()
        if self._warm is not None:
            self._warm.close()

    def is_swept(self, code: int, *, launched: bool) -> bool:
        """Whether a task that ended so was ended by what ends the allocation, and so by no fault of its own.

        The scheduler signals all processes of a job at once, or a task's launcher, and a task may die of it before the agent hears.
        """
        if self._leaving.is_set() and launched:
            return True
        signalled = -code if code < 0 else code - 128
        return (launched or signalled in _SWEEPING) and self._leaving.wait(_SWEPT_WITHIN)

    def launch(self, script: Script, walltime: float | None) -> tuple[int, bool]:
        """Run a script to its end; return its exit code (a signal negated) and whether its time was up.

        Raises:
            NotStartedError, OSError: as `Launcher.start`.
        """
        self.struck = None
        if self.share.cpus != self._bound:
            _bind(0, self.share.cpus)  # this thread, and so what it starts
            self._bound = self.share.cpus
        if script.warm is not None and self._warm is not None:
            shell = self._warm.shell(script.warm, script.text)
            if shell is not None:
                with contextlib.suppress(ColdError):  # nothing of it ran
                    return self._launch_warm(shell, script, walltime)
        pid = self._launcher.start(script)
        with self._guard:
            self._group = pid
        try:
            return self._wait(pid, walltime)
        except BaseException:
            self._abandon(pid)  # its task is handed back: it must not run on beside its next run
            raise

    def _launch_warm(self, shell: WarmShell, script: Script, walltime: float | None) -> tuple[int, bool]:
        """Run a script in a warm interpreter, which is kept for the next one unless anything was unusual.

        Raises:
            ColdError: it did not begin, and has to be started.
            OSError: the interpreter ended by itself.
        """
        assert self._warm is not None, "a warm shell came from nowhere; this is a bug"
        kept = False
        if self.share.cpus != shell.cpus:
            _bind(shell.pid, self.share.cpus)
            shell.cpus = self.share.cpus
        with self._guard:
            self._shell = shell
        try:
            self._watch(self.number, -shell.pid)
            shell.begin(script)
            if self.run is not None and self.run.stopped is Stop.CANCELLED:
                self.strike(Stop.CANCELLED, signal.SIGTERM)
            late = walltime is not None and not shell.ended_within(walltime)
            if late:
                self._signal(signal.SIGTERM)
                shell.ended_within(self._grace)
                self._signal(signal.SIGKILL)
            code = shell.end()
            kept = not late and self.struck is None and shell.lives
            return code, late
        finally:
            with self._guard:
                self._shell = None
            if not kept:
                self._warm.drop(shell)
            self._watch(self.number, 0)

    def _wait(self, pid: int, walltime: float | None) -> tuple[int, bool]:
        self._watch(self.number, pid)
        if self.run is not None and self.run.stopped is Stop.CANCELLED:
            self.strike(Stop.CANCELLED, signal.SIGTERM)  # the word came while the process was being made
        late = walltime is not None and not self._ended_within(pid, walltime)
        if late:
            self._signal(signal.SIGTERM)
            self._ended_within(pid, self._grace)
            self._signal(signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with self._guard:
            if self.struck is not None:
                _kill_group(pid, signal.SIGKILL)  # what the leader left behind, while its number is still its own
            self._group = 0
            _, status = os.waitpid(pid, 0)
        self._watch(self.number, 0)
        return os.waitstatus_to_exitcode(status), late

    def _abandon(self, pid: int) -> None:
        """End and reap the running group, where that has not happened yet."""
        if self._group == pid:
            self._signal(signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with self._guard:
                self._group = 0
                os.waitpid(pid, 0)
            self._watch(self.number, 0)

    def strike(self, why: Stop, number: signal.Signals) -> bool:
        """Signal the running task's group, from any thread; return whether there was one."""
        with self._guard:
            if not self._group and self._shell is None:
                return False
            self.struck = why
            self._send(number)
            return True

    def _signal(self, number: signal.Signals) -> None:
        with self._guard:
            self._send(number)

    def _send(self, number: signal.Signals) -> None:
        if self._shell is not None:
            self._shell.strike(number)
        elif self._group:
            _kill_group(self._group, number)

    def _ended_within(self, pid: int, seconds: float) -> bool:
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            end = time.monotonic() + seconds
            left = seconds
            while not poll.poll(min(max(left, 0.0), LONGEST_POLL) * 1000):
                left = end - time.monotonic()
                if left <= 0:
                    return False
            return True
        finally:
            os.close(handle)


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
        """
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
            )
            for number in range(count + wide)
        ]
        self._deliver = deliver
        self._ended: deque[tuple[ChunkRun, Ended]] = deque()
        self._armed = False
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
        if strike and self._strike(run, why, signal.SIGTERM):
            self.loop.call_later(self._grace, self._strike, run, why, signal.SIGKILL)

    def kill(self, run: ChunkRun, why: Stop) -> None:
        """End what runs of a chunk without any grace."""
        self.feed.stop(run, why)
        self.wide.plan()
        self._strike(run, why, signal.SIGKILL)

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
            slot.run = run
            try:
                ended = work.execute(run, task, slot)
            except Exception as error:  # noqa: BLE001 - a task boundary: the outcome is recorded and the slot lives on
                _log.exception("a task could not be run; this is a bug, please report it")
                ended = Ended(task, None, problem=f"task {task}: {type(error).__name__}: {error}; this is a bug")
            slot.run = None
            if slot.share.task:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has left
                    self.loop.call_soon_threadsafe(self.wide.over, slot.share.task)
            self._hand_over(run, ended)
        slot.close()

    def _hand_over(self, run: ChunkRun, ended: Ended) -> None:
        self._ended.append((run, ended))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has left
            if run.left == 0:
                self.loop.call_soon_threadsafe(self._drain)
            elif not self._armed:
                self._armed = True
                self.loop.call_soon_threadsafe(self.loop.call_later, GATHER, self._drain)

    def _drain(self) -> None:
        self._armed = False
        batch: list[tuple[ChunkRun, Ended]] = []
        while self._ended:
            batch.append(self._ended.popleft())
        if batch:
            self._deliver(batch)


def _bind(process: int, cpus: frozenset[int]) -> None:
    """Bind a thread (0: this one) or process to processors; none: to all that are allowed."""
    with contextlib.suppress(OSError):  # what was allowed when we began no longer is; the task runs all the same
        os.sched_setaffinity(process, cpus or _ALLOWED)


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
