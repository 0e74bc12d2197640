"""Running the tasks of a chunk under ``outputs: lean``: see `merlin_study.lean` for what that is.

A record in the log is what ``MERLIN_FINISHED`` is in Merlin's layout: it is written as soon as the task has ended, and a task whose
success stands in a log is not run again.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from merlin_agent import files
from merlin_agent.chunklog import ChunkLog, Outputs
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.durable import Unsynced
from merlin_agent.execute import HOST, StepWork, Taking, unwritable
from merlin_agent.launch import Script
from merlin_agent.scratch import Scratch
from merlin_agent.slot import Slot
from merlin_agent.slots import Telling, Work
from merlin_study.outcome import Outcome
from merlin_study.wire import Chunk

_LENT: Final = 8
"""For how many steps a slot keeps directories."""
_AT_ONCE: Final = 16
"""How many it keeps for each."""
_ENTRIES: Final = 4
"""What a task that runs in its own directory makes: that, its script, two outputs."""
_LINGERS: Final = re.compile(
    r"(?<![&>|<])&(?![&>])|\b(?:nohup|setsid|disown|coproc|daemon\w*|screen|tmux|at|batch|ssh-agent)\b"
)
"""What may leave a process behind, which would write into the next task's files."""


class Place(NamedTuple):
    """Where a task runs; ``lent`` is the slot's directory, None in its own. ``since``: how long its outputs were before."""

    script: Script
    lent: Scratch | None
    since: tuple[int, int] = (0, 0)


class LeanWork(Work):
    """`slots.Work` for one chunk of an ordinary step."""

    def __init__(self, step: StepWork, chunk: Chunk, *, agent: str, tells: Callable[[], bool]) -> None:
        self._step, self._agent, self._tells = step, agent, tells
        self._log = self._new_log(chunk)
        self._unsynced = Unsynced(step.root)
        self._entries = _ENTRIES if step.in_place else 0
        self._key = (step.slots, step.stem)
        self._absent: set[str] = set()

    def _new_log(self, chunk: Chunk, path: str = "") -> ChunkLog:
        step = self._step
        return ChunkLog(
            step.task_logs, chunk, agent=self._agent, step=step.name, host=HOST, restart=step.restarts, path=path
        )

    def sync(self) -> None:
        """See `slots.Work`."""
        self._unsynced.sync()
        self._log.sync()

    def close(self) -> None:
        """See `slots.Work`."""
        self._log.close()

    @property
    def appetite(self) -> int:
        """See `slots.Work`."""
        return min(self._step.appetite, _AT_ONCE)

    def execute_all(self, run: ChunkRun, tasks: Sequence[int], slot: Slot, telling: Telling) -> None:
        """See `slots.Work`."""
        ready: list[tuple[int, Script]] = []
        places: list[tuple[Script, Place]] = []
        lent = 0
        for at, task in enumerate(tasks):
            if not slot.creates.take(self._entries, patient=not ready, given_up=lambda: run.stopped is not None):
                telling.back(tasks[at:])
                break
            found = self._ready(run, task, slot, lent)
            if isinstance(found, Ended):
                telling.ended(found)
            else:
                script, place = found
                lent += place.lent is not None
                ready.append((task, place.script))
                places.append((script, place))

        def ended(at: int, how: Ended) -> None:
            script, place = places[at]
            noted = self._noted(slot, script, place, how)
            self._unsynced.note()
            telling.ended(noted)

        self._step.execute_all(run, slot, ready, Taking(ended, telling.back, self._tells, marker=""))

    def _ready(self, run: ChunkRun, task: int, slot: Slot, lent: int) -> Ended | tuple[Script, Place]:
        """Make what a task needs; return what it came to where it is not to run. ``lent``: how many directories are lent already."""
        try:
            if not run.chunk.fresh and self._succeeded(task):
                return Ended(task, Outcome.SUCCEEDED)
        except OSError as error:
            return unwritable(task, error.filename or self._log.path, error)
        script = self._step.made(task, slot.share.hosts)
        if isinstance(script, Ended):
            return script
        try:
            return script, self._place(slot, task, script, lent)
        except OSError as error:
            return unwritable(task, error.filename or script.directory, error)

    def _noted(self, slot: Slot, script: Script, place: Place, ended: Ended) -> Ended:
        """Write the task's record, and leave its directory to it where it left files there."""
        try:
            if place.lent is None:
                self._note_in_place(place, ended)
                return _pointing_to(ended, self._where(script, kept=True))
            kept = self._note_lent(slot, script, place.lent, ended)
        except OSError as error:
            if place.lent is not None:
                self._lend_no_more(slot, place.lent)
            return unwritable(ended.task, error.filename or self._log.path, error)
        return _pointing_to(ended, self._where(script, kept=kept))

    def _succeeded(self, task: int) -> bool:
        """Whether an earlier log says so."""
        return self._log.succeeded(task)

    def _where(self, script: Script, *, kept: bool) -> str:
        """Return where a task's output is found."""
        return script.directory if kept else self._log.path

    def _place(self, slot: Slot, task: int, script: Script, lent: int) -> Place:
        """Make the directory that a task runs in, and its script."""
        own = self._step.in_place
        if own:
            fresh = files.make_directory(script.directory)
        else:
            self._step.make_shared(task)
            own, fresh = self._came_before(script.directory), False
        if own:
            if not fresh:
                files.open_up(script.directory)  # what an earlier attempt closed
                for path in (script.path, script.out, script.err):
                    files.make_way(path)
            files.write_script(script.path, script.shell, script.text, replace=not fresh)
            return Place(script, None, (0, 0) if fresh else (_size(script.out), _size(script.err)))
        found = self._lent(slot, lent)
        try:
            found.write(script.shell, script.text)
        except OSError:
            self._lend_no_more(slot, found)
            raise
        there = script._replace(directory=found.directory, path=found.script, out=found.out, err=found.err)
        return Place(there, found)

    def _came_before(self, directory: str) -> bool:
        """Whether an earlier attempt of a task left files in its directory.

        Only attempts of the task itself make it, and ours is the only one: where the directory that it lies in was not there at
        the chunk's first look, no earlier one did. So thousands of neighbours cost one look.
        """
        parent = os.path.dirname(directory)
        if parent not in self._absent:
            if os.path.isdir(parent):
                return os.path.isdir(directory)
            self._absent.add(parent)
        return False

    def _lent(self, slot: Slot, at: int) -> Scratch:
        """Return a slot's directory for one of the tasks that run one after the other."""
        if self._key not in slot.lent:
            while len(slot.lent) >= _LENT:
                for scratch in slot.lent.pop(next(iter(slot.lent))):
                    scratch.discard()
            slot.lent[self._key] = []
        lent = slot.lent[self._key]
        if at == len(lent):
            slot.borrowed += 1
            lent.append(Scratch(f"{self._step.slots}/{self._agent}-{slot.number}-{slot.borrowed}", self._step.stem))
        return lent[at]

    def _lend_no_more(self, slot: Slot, lent: Scratch) -> None:
        """Let go of a directory."""
        lent.discard()
        kept = slot.lent.get(self._key, [])
        if lent in kept:
            kept.remove(lent)

    def _note_lent(self, slot: Slot, script: Script, lent: Scratch, ended: Ended) -> bool:
        """Write the record of a task; return whether the directory became its own, because it left files there."""
        clean = lent.is_clean() and not _lingers(script.checked) and ended.outcome is not None
        kept = not clean and lent.holds_more()
        if kept:
            lent.move_to(script.directory, os.path.basename(script.path).removesuffix(".sh"))
        sizes = (os.fstat(lent.handles[0]).st_size, os.fstat(lent.handles[1]).st_size)
        self._append(ended, script.text, Outputs(lent.handles, (0, 0), sizes), kept=kept)
        if clean:
            lent.empty(sizes)
        else:
            self._lend_no_more(slot, lent)
        return kept

    def _note_in_place(self, place: Place, ended: Ended) -> None:
        out = files.open_or_nothing(place.script.out)
        try:
            err = files.open_or_nothing(place.script.err)
            try:
                before, now = place.since, (os.fstat(out).st_size, os.fstat(err).st_size)
                sizes = (max(0, now[0] - before[0]), max(0, now[1] - before[1]))
                self._append(ended, place.script.text, Outputs((out, err), before, sizes), kept=True)
            finally:
                os.close(err)
        finally:
            os.close(out)

    def _append(self, ended: Ended, text: str, outputs: Outputs, *, kept: bool) -> None:
        if ended.outcome is not None:
            self._log.append(ended, self._step.logged(ended.task, text), outputs, kept=kept)


def _pointing_to(ended: Ended, where: str) -> Ended:
    """Have a failure that is told in full name where to look."""
    if ended.failure is None:
        return ended
    return ended._replace(failure=ended.failure.model_copy(update={"directory": where}))


@functools.lru_cache(maxsize=1024)
def _lingers(text: str) -> bool:
    return _LINGERS.search(text) is not None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
