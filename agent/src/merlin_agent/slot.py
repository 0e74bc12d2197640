"""A slot: starts tasks' scripts, or has a warm interpreter run them, and ends them where it has to.

A process group is signalled only under its slot's guard and only until its leader is reaped: until then the kernel gives the
number to nobody else.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from merlin_agent.allowance import Allowance, unlimited
from merlin_agent.badges import Badges
from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.launch import Launcher, NotStartedError, Script
from merlin_agent.resources import NOTHING, Share
from merlin_agent.scratch import Scratch
from merlin_agent.warm import Warm
from merlin_agent.warmshell import LONGEST_POLL, ColdError, WarmShell

_SWEEPING: Final = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP})
"""Signals by which schedulers end jobs, or warn of their end."""
_SWEPT_WITHIN: Final = 0.5
"""Seconds within which the agent hears of it, too."""
_ALLOWED: Final = frozenset(os.sched_getaffinity(0))
_STALLED: Final = 0.1
"""How long a task runs at most while others stand behind it that another slot could run."""
_LOOKS: Final = 10
"""After how many times that long it is given back in any case: a slot should not look round for hours."""


class Job(NamedTuple):
    """A script that is written, and how many seconds it may run."""

    script: Script
    walltime: float | None


class Launched(NamedTuple):
    """How a script ended: its exit code (a signal negated), whether its time was up, and why it was signalled from outside."""

    code: int
    late: bool
    seconds: float
    struck: Stop | None


Fate = Launched | NotStartedError | OSError
"""What became of a script: errors as `Launcher.start` raises them."""
NEVER: Final = Launched(-signal.SIGTERM, late=False, seconds=0.0, struck=Stop.HANDED_BACK)
"""What a script comes to that was stopped before it began."""


class Slot:
    """Runs one task at a time; it may have taken more."""

    def __init__(  # noqa: PLR0913 - what a host has, and whom to ask
        self,
        number: int,
        launcher: Launcher,
        watch: Callable[[int, int], None],
        *,
        grace: float,
        badges: Badges,
        warm: Warm | None = None,
        creates: Allowance | None = None,
        leaving: threading.Event | None = None,
        loss: Callable[[tuple[str, ...], float], Stop | None] = lambda _, __: None,
        others_wait: Callable[[ChunkRun | None], bool] = lambda _: True,
    ) -> None:
        self.number, self.badges, self._loss, self._others_wait = number, badges, loss, others_wait
        self.creates = creates or unlimited()
        """How many files may be made."""
        self._leaving = leaving or threading.Event()
        self._launcher, self._watch, self._warm = launcher, watch, warm
        self.grace = grace
        """Seconds between TERM and KILL."""
        self._guard = threading.Lock()
        self._group = 0
        self._shell: WarmShell | None = None
        self._starting = False
        """Whether a process is being made, whose number is not known yet."""
        self._unsent: signal.Signals | None = None
        """What it is to be sent once that is known."""
        self.lent: dict[tuple[str, str], list[Scratch]] = {}
        """Directories that its thread lends to tasks, by where they lie and what their script is called."""
        self.borrowed = 0
        """How many of them it has made."""
        self.run: ChunkRun | None = None
        self.share: Share = NOTHING
        self._bound: frozenset[int] = frozenset()
        self.struck: Stop | None = None
        """Why the running task was signalled from outside, if it was."""
        self._struck_at = math.inf

    def close(self) -> None:
        """End what was kept warm, and remove what was lent."""
        for scratches in self.lent.values():
            for scratch in scratches:
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

    def loss(self, began: float) -> Stop | None:
        """Return what a task is handed back for that began then (monotonic) and ended badly: one of its several hosts has lost its agent.

        At the allocation's end, which takes the hosts one before the other, none of them counts as lost.
        """
        found = self._loss(self.share.hosts, began) if len(self.share.hosts) > 1 else None
        return self.blamed(found)

    def blamed(self, struck: Stop | None) -> Stop | None:
        """Return why a task was ended, where the end of the allocation may have come in the guise of a lost host."""
        return Stop.HANDED_BACK if struck is Stop.HOST_LOST and self._leaving.wait(_SWEPT_WITHIN) else struck

    def launch(self, script: Script, walltime: float | None) -> tuple[int, bool]:
        """Run a script to its end; return its exit code (a signal negated) and whether its time was up.

        Raises:
            NotStartedError, OSError: as `Launcher.start`.
        """
        found: list[Fate] = []
        self.launch_all([Job(script, walltime)], lambda _, fate: found.append(fate), lambda _: None)
        fate = found[0] if found else NEVER
        if isinstance(fate, Exception):
            raise fate
        return fate.code, fate.late

    def launch_all(
        self, jobs: Sequence[Job], ended: Callable[[int, Fate], None], back: Callable[[range], None]
    ) -> None:
        """Run scripts one after the other.

        Args:
            jobs: What to run.
            ended: Told, of each one that was begun, what became of it, by its position.
            back: Told which ones will not be begun here: the chunk is stopped, or what runs takes long.
        """
        self.struck, self._struck_at = None, math.inf
        if self.share.cpus != self._bound:
            _bind(0, self.share.cpus)  # this thread, and so what it starts
            self._bound = self.share.cpus
        at = 0
        while at < len(jobs):
            shell, until = self._fit(jobs, at)
            if shell is None:
                if not self._is_stopped:
                    ended(at, self._launch_cold(jobs[at]))
                    at += 1
                back(range(at, len(jobs)))  # how long a started one takes nobody knows; other slots may be free
                return
            at = self._launch_warm(shell, jobs[:until], at, ended, back)

    @property
    def _is_stopped(self) -> bool:
        return self.run is not None and self.run.stopped is not None

    def _fit(self, jobs: Sequence[Job], at: int) -> tuple[WarmShell | None, int]:
        """Return the warm interpreter that may run the next script, None for none, and up to which one it may run them all."""
        if self._warm is None:
            return None, at
        found: WarmShell | None = None
        for until in range(at, len(jobs)):
            script = jobs[until].script
            shell = self._warm.shell(script)
            if shell is None or shell is not (found or shell):
                return found, until
            found = shell
        return found, len(jobs)

    def _launch_cold(self, job: Job) -> Fate:
        began = time.monotonic()
        with self._guard:
            self._starting, self._unsent = True, None
        pid = 0
        try:
            pid = self._launcher.start(job.script)
        except (NotStartedError, OSError) as error:
            return error
        finally:
            with self._guard:
                self._starting, self._group = False, pid
                if self._unsent is not None:
                    self._send(self._unsent)
        try:
            code, late = self._wait(pid, job.walltime)
        except OSError as error:
            self._abandon(pid)
            return error
        except BaseException:
            self._abandon(pid)  # its task is handed back: it must not run on beside its next run
            raise
        return Launched(code, late, time.monotonic() - began, self.struck)

    def _launch_warm(
        self,
        shell: WarmShell,
        jobs: Sequence[Job],
        at: int,
        ended: Callable[[int, Fate], None],
        back: Callable[[range], None],
    ) -> int:
        """Run scripts in a warm interpreter, which is kept for the next ones unless anything was unusual.

        Return the position after the last one that was told to it.
        """
        assert self._warm is not None, "a warm shell came from nowhere; this is a bug"
        if self.share.cpus != shell.cpus:
            _bind(shell.pid, self.share.cpus)
            shell.cpus = self.share.cpus
        batch = _Batch(shell, jobs, at, ended, back, self)
        cold: list[int] = []
        kept = False
        try:
            with self._guard:  # whoever stops the chunk now finds either that nothing has begun, or the shell
                if self._is_stopped:
                    kept = True
                else:
                    self._shell = shell
                    self._watch(self.number, -shell.pid)
                    batch.begin()
            cold = batch.wait()
            kept = kept or batch.usual
        except ColdError:  # nothing of it ran
            cold, batch.end = [at], at + 1
        finally:
            with self._guard:
                self._shell = None
            if not kept:
                self._warm.drop(shell)
            self._watch(self.number, 0)
        for each in cold:
            ended(each, self._launch_cold(jobs[each]))
        if batch.end == at:
            back(range(at, len(jobs)))
            return len(jobs)
        return batch.end

    def _wait(self, pid: int, walltime: float | None) -> tuple[int, bool]:
        self._watch(self.number, pid)
        if self.run is not None and self.run.stopped is Stop.CANCELLED:
            self.strike(Stop.CANCELLED, signal.SIGTERM)  # the word came while the process was being made
        late = walltime is not None and not self._ended_within(pid, walltime)
        if late:
            self._signal(signal.SIGTERM)
            self._ended_within(pid, self.grace)
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
        """Signal the running task's group, from any thread, or the one that is being made; return whether there was one."""
        with self._guard:
            if not self._group and self._shell is None and not self._starting:
                return False
            self.struck = why
            self._struck_at = min(self._struck_at, time.time())
            if self._starting:
                self._unsent = number
            self._send(number)
            return True

    def take_back(self) -> None:
        """Begin none of the tasks that are taken and have not begun, from any thread."""
        with self._guard:
            if self._shell is not None:
                self._shell.take_back()

    @property
    def is_waited_for(self) -> bool:
        """Whether others could run what stands behind the running task, or want what this slot has."""
        return self._others_wait(self.run)

    def take_back_own(self, shell: WarmShell) -> int:
        """Take back what a shell of this slot's thread has not begun; return how many."""
        with self._guard:
            return shell.take_back()

    def strike_first(self, shell: WarmShell, number: signal.Signals) -> None:
        """Signal the script whose end is to be known next, if it has not ended; called by the slot's thread."""
        with self._guard:
            shell.strike(number, first=True)

    def struck_before(self, at: float | None) -> Stop | None:
        """Return why a task that ended then had been signalled from outside, None where it had not."""
        return self.struck if at is None or at >= self._struck_at else None

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


class _Batch:
    """Scripts that one warm interpreter runs one after the other."""

    def __init__(
        self,
        shell: WarmShell,
        jobs: Sequence[Job],
        at: int,
        ended: Callable[[int, Fate], None],
        back: Callable[[range], None],
        slot: Slot,
    ) -> None:
        self._shell, self._jobs, self._ended, self._back, self._slot = shell, jobs, ended, back, slot
        self._at = self.end = at
        """Which one ends next, and the position after the last one that the shell will run."""
        self._clocks = (0.0, 0.0)
        self.usual = True
        """Whether nothing happened for which the interpreter should not be used again."""

    def begin(self) -> None:
        """Tell the shell.

        Raises:
            ColdError: nothing was told.
        """
        self._clocks = time.monotonic(), time.time()
        self.end = self._at + self._shell.begin([job.script for job in self._jobs[self._at :]])

    def wait(self) -> list[int]:
        """Wait until none of them runs or will; return which ones have to be started."""
        end, cold = self.end, []
        since = self._clocks[1]
        while self._shell.busy:
            late = not self._shell.heard and not self._ends_in_time(since)
            try:
                told = self._shell.end()
            except ColdError:
                cold.append(self._at)
                self._at += 1
                continue
            except OSError as error:
                self._ended(self._at, error)
                self._at += 1
                self.usual = False
                continue
            if told is None:
                break
            at = self._now if told.at is None else told.at
            self.usual = self.usual and not late and self._shell.lives
            self._ended(self._at, Launched(told.code, late, max(0.0, at - since), self._slot.struck_before(told.at)))
            since = at
            self._at += 1
        self.usual = self.usual and self._slot.struck is None
        if self._at < self.end:
            self._back(range(self._at, self.end))
        self.end = end
        return cold

    @property
    def _now(self) -> float:
        return self._clocks[1] + time.monotonic() - self._clocks[0]

    def _ends_in_time(self, since: float) -> bool:
        """Wait for the end of the first one; end it where its time is up."""
        shell, slot = self._shell, self._slot
        left = math.inf
        if self._at < self.end and (walltime := self._jobs[self._at].walltime) is not None:
            left = since + walltime - self._now
        looks = 0
        while self._at + 1 < self.end and not shell.ended_within(min(left, _STALLED)) and left > _STALLED:
            left -= _STALLED
            looks += 1
            if looks == _LOOKS or slot.is_waited_for:
                count = slot.take_back_own(shell)
                self.end -= count
                self._back(range(self.end, self.end + count))
                break
        if left == math.inf or shell.ended_within(max(0.0, left)):
            return True
        slot.strike_first(shell, signal.SIGTERM)
        shell.ended_within(slot.grace)
        slot.strike_first(shell, signal.SIGKILL)
        return False


def _bind(process: int, cpus: frozenset[int]) -> None:
    """Bind a thread (0: this one) or process to processors; none: to all that are allowed."""
    with contextlib.suppress(OSError):  # what was allowed when we began no longer is; the task runs all the same
        os.sched_setaffinity(process, cpus or _ALLOWED)


def _kill_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
