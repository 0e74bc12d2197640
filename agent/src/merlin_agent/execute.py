"""Running one task: directory, script, process, marker, outcome. Called in slots' threads, so all of it may block."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from merlin_agent import allocation, files, surroundings
from merlin_agent.badges import Speaker
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.durable import Unsynced
from merlin_agent.launch import NotStartedError, Script
from merlin_agent.making import Making
from merlin_agent.npy import NpyError
from merlin_agent.pace import Pace
from merlin_agent.rows import RowError, Rows
from merlin_agent.slot import Fate, Job, Launched, Slot
from merlin_agent.slots import Telling, Work
from merlin_study import failpoints, history, lean, outcome, wire
from merlin_study.launchers import LaunchError
from merlin_study.outcome import Outcome
from merlin_study.workspace import FINISHED, SLOTS, Layout, UnfillableError, safe_name

HOST: Final = surroundings.host()
SCRIPT_FAULTS: Final = (RowError, NpyError, UnfillableError, LaunchError)
"""Why a task's script can't be made."""
_ENTRIES: Final = 5
"""What a task of Merlin's layout makes: directory, script, two outputs, mark."""


class Taking(NamedTuple):
    """How tasks that run one after the other are told of; ``marker`` is left behind by success."""

    ended: Callable[[int, Ended], None]
    back: Callable[[Sequence[int]], None]
    tells: Callable[[], bool]
    marker: str = FINISHED


class StepWork(Making):
    """The tasks of one step of one study, with everything that they share worked out once."""

    def __init__(self, layout: Layout, step: int, *, rows: Rows | None, restart: bool, home: str = "") -> None:
        super().__init__(layout, step, rows=rows, restart=restart, home=home)
        self._made: set[int] = set()
        self.pace = Pace()
        """How long its tasks take here."""

    def speaker(self, run: ChunkRun, task: int) -> Speaker:
        """Return who speaks where a task of this step does."""
        return Speaker(
            run.chunk.study, self._planned.name, task, run.chunk.attempt if self._restart else 0, self._layout.info
        )

    def made(self, task: int, hosts: tuple[str, ...]) -> Script | Ended:
        """Return a task's script with its text, for these hosts; what the task came to where there can be none.

        It would fail everywhere and every time, so it is no fault of this host.
        """
        try:
            script = self.script(task)
            return script._replace(text=self.launched(script.text, task, hosts)) if self.has_launches else script
        except SCRIPT_FAULTS as error:
            return Ended(task, Outcome.FAILED, 1, failure=told(task, Outcome.FAILED, 1, "", str(error)))

    def execute_all(
        self,
        run: ChunkRun,
        slot: Slot,
        ready: Sequence[tuple[int, Script]],
        taking: Taking,
    ) -> None:
        """Run tasks whose scripts are written, one after the other; tell what became of each, by its position in ``ready``."""
        tokens = slot.badges.issue_all([self.speaker(run, task) for task, _ in ready])
        try:
            more = slot.share.variables() | allocation.clock().variables(time.time())
            owns = [self.own_variables(script, task, slot.share) for task, script in ready]
            jobs = [
                Job(
                    script._replace(own={**own, **more} if more else own, token=token),
                    self.walltime(task),
                )
                for own, (task, script), token in zip(owns, ready, tokens, strict=True)
            ]

            def ended(at: int, fate: Fate) -> None:
                task, script = ready[at]
                slot.badges.revoke(tokens[at])
                found = concluded(
                    slot, task, script, fate, tells=taking.tells, marker=taking.marker, launched=self.is_launched
                )
                self.pace.note(found.seconds, warm=jobs[at].script.warm is not None)
                if history.ON:
                    _note(run, task, "ended", outcome=found.outcome, code=found.code)
                taking.ended(at, found)

            def back(which: range) -> None:
                tasks = [ready[at][0] for at in which]
                if history.ON:
                    for task in tasks:
                        _note(run, task, "ended", outcome=None, code=0)  # before another slot or agent has it
                taking.back(tasks)

            failpoints.reach("agent.start")
            if history.ON:
                for task, _ in ready:
                    _note(run, task, "began")
            slot.launch_all(jobs, ended, back)
        finally:
            for token in tokens:
                slot.badges.revoke(token)

    @property
    def appetite(self) -> int:
        """How many tasks a slot should take at once."""
        return 1 if history.ON or failpoints.ARMED or self.is_launched else self.pace.appetite

    # What a task leaves under `outputs: lean` and `packed`

    @property
    def root(self) -> str:
        """The study's directory."""
        return self._layout.root

    @cached_property
    def is_lean(self) -> bool:
        """Whether the tasks leave a log instead of files."""
        return lean.applies(self._layout.plan, self._step)

    @property
    def is_packed(self) -> bool:
        """Whether they run on this host's own disk."""
        return bool(self.home)

    @cached_property
    def in_place(self) -> bool:
        """Whether each task runs in its own directory of Merlin's layout from the beginning."""
        return lean.in_place(self._layout.plan, self._step)

    @cached_property
    def task_logs(self) -> str:
        """Where the step's logs lie."""
        return self._layout.task_logs(self._step)

    @cached_property
    def slots(self) -> str:
        """Where the directories lie that slots lend."""
        return f"{self._places.info}/{SLOTS}"

    @cached_property
    def stem(self) -> str:
        """What script and outputs are called in such a directory, without their endings: it knows no combination."""
        return f"{safe_name(self._planned.name)}{self._planned.suffix}"

    @cached_property
    def _needs_shared(self) -> bool:
        return lean.needs_shared(self._layout.plan, self._step)

    def make_shared(self, task: int) -> None:
        """Make the directory that the samples of a task's combination share, where a script names it.

        Raises:
            OSError: it can't be made.
        """
        if self._needs_shared:
            combination, _ = self._layout.geometry.split(self._step, task)
            if combination not in self._made:
                files.make_directory(self._places.step_dir(self._step, combination))
                self._made.add(combination)


class ChunkWork(Work):
    """`slots.Work` for one chunk of an ordinary step."""

    def __init__(self, step: StepWork, tells: Callable[[], bool]) -> None:
        self._step, self._tells = step, tells
        self._unsynced = Unsynced(step.root)

    @property
    def appetite(self) -> int:
        """See `slots.Work`."""
        return self._step.appetite

    def sync(self) -> None:
        """See `slots.Work`."""
        self._unsynced.sync()

    def execute_all(self, run: ChunkRun, tasks: Sequence[int], slot: Slot, telling: Telling) -> None:
        """See `slots.Work`."""

        def ended(how: Ended) -> None:
            self._unsynced.note()
            telling.ended(how)

        ready: list[tuple[int, Script]] = []
        for at, task in enumerate(tasks):
            if not slot.creates.take(_ENTRIES, patient=not ready, given_up=lambda: run.stopped is not None):
                telling.back(tasks[at:])
                break
            found = self._ready(run, task, slot)
            if isinstance(found, Ended):
                ended(found)
            else:
                ready.append((task, found))
        taking = Taking(lambda _, how: ended(how), telling.back, self._tells)
        self._step.execute_all(run, slot, ready, taking)

    def _ready(self, run: ChunkRun, task: int, slot: Slot) -> Ended | Script:
        """Make a task's directory and its script; return what it came to where it is not to run."""
        script = self._step.made(task, slot.share.hosts)
        if isinstance(script, Ended):
            return script
        try:
            fresh = files.make_directory(script.directory)
            mark = f"{script.directory}/{FINISHED}"
            if not fresh and run.chunk.fresh:
                files.make_way(mark)
                files.remove(mark)
            elif not fresh and os.path.exists(mark):
                return Ended(task, Outcome.SUCCEEDED)
            for path in () if fresh else (script.path, script.out, script.err):
                files.make_way(path)
            files.write_script(script.path, script.shell, script.text, replace=not fresh)
        except OSError as error:
            return unwritable(task, script.directory, error)
        return script


def _note(run: ChunkRun, task: int, what: str, **more: object) -> None:
    history.note(what, study=run.chunk.study, fence=run.chunk.fence, step=run.chunk.step, task=task, **more)


def run_script(
    slot: Slot, task: int, script: Script, *, walltime: float | None, tells: Callable[[], bool], marker: str = FINISHED
) -> Ended:
    """Run a script that is written, and return what became of it; ``marker`` is left behind by success."""
    found: list[Fate] = []
    slot.launch_all([Job(script, walltime)], lambda _, fate: found.append(fate), lambda _: None)
    if not found:
        return Ended(task, None)
    return concluded(slot, task, script, found[0], tells=tells, marker=marker)


def concluded(
    slot: Slot, task: int, script: Script, fate: Fate, *, tells: Callable[[], bool], marker: str, launched: bool = False
) -> Ended:
    """Return what became of a task whose script ended so; ``launched``: a launcher starts its processes."""
    if isinstance(fate, NotStartedError):
        with contextlib.suppress(PermissionError):  # the task's own earlier attempt gave the file away
            files.append(script.err, f"{fate}\n")
        fate = Launched(fate.code, late=False, seconds=0.0, struck=None)
    if isinstance(fate, OSError):
        return Ended(task, None, problem=f"{script.path}: can't be started: {fate.strerror}")
    code, late, seconds, struck = fate
    failpoints.reach("agent.exited")
    if code == 0 and not late:
        return _succeeded(task, script, seconds, marker)
    if not struck and not late:
        swept = slot.is_swept(code, launched=launched)
        struck = Stop.HANDED_BACK if swept else slot.loss(time.monotonic() - seconds)
    else:
        struck = slot.blamed(struck)
    if struck is Stop.HANDED_BACK:
        return Ended(task, None, seconds=seconds)
    if struck is Stop.HOST_LOST:  # handed back, too: the host died, not the step; unless it takes one with it each time
        lost = told(task, Outcome.LOST, code, script.directory, f"lost a host of {', '.join(slot.share.hosts)}")
        return Ended(task, None, seconds=seconds, failure=lost)
    if not struck and (handed_back := _without_room(task, script, code)) is not None:
        return handed_back
    ends = Outcome.TIMED_OUT if late else Outcome.CANCELLED if struck else outcome.of_exit(code)
    failure = None
    if tells():
        failure = told(task, ends, code, script.directory, files.read_tail(script.err, wire.MAX_TAIL))
    return Ended(task, ends, code, seconds, failure)


def _without_room(task: int, script: Script, code: int) -> Ended | None:
    """Return what a task comes to that failed where it could not write: nobody's failure, whatever it says. None where it could."""
    if (full := files.room(script.directory, said=script.err)) is not None:
        return unwritable(task, script.directory, full)
    if files.was_full(script.directory):
        # Room came between its write and our look, and what it had to say of that found none.
        return Ended(task, None, problem=f"{script.directory}: ended with {code} as its disk was full; it runs again")
    return None


def _succeeded(task: int, script: Script, seconds: float, marker: str) -> Ended:
    """Leave the mark of a success."""
    problem = ""
    try:
        if marker:
            _mark(script.directory, marker)
    except OSError as error:
        if error.errno in files.FULL:
            return unwritable(task, script.directory, error)  # what it wrote may be cut short: nothing may build on it
        # It did succeed, and its outcome is recorded; only a later restart from the files alone would run it again.
        problem = f"{script.directory}: no {marker}: {error.strerror}"
    return Ended(task, Outcome.SUCCEEDED, 0, seconds, problem=problem)


def _mark(directory: str, marker: str) -> None:
    try:
        files.mark(f"{directory}/{marker}")
    except PermissionError:  # the task closed its directory, to keep what it made, say
        with files.opened(directory):
            files.mark(f"{directory}/{marker}")


def told(task: int, ends: Outcome, code: int, directory: str, tail: str) -> wire.Failure:
    """Return a failure in full."""
    return wire.Failure(task=task, outcome=ends, code=code, host=HOST, directory=directory, tail=tail[-wire.MAX_TAIL :])


def unwritable(task: int, directory: str, error: OSError) -> Ended:
    """Return what a task comes to whose directory or script can't be written: nobody's failure, handed back."""
    cure = {
        errno.EDQUOT: "free some of the quota",
        errno.ENOSPC: "free some space",
        errno.EACCES: "give this user the right to write there",
    }.get(error.errno or 0, "see to the file system")
    problem = f"{directory}: can't be written: {error.strerror}; {cure}"
    if error.errno in files.FULL:
        files.note_full(directory)
    return Ended(task, None, problem=problem, full=error.errno in files.FULL)
