"""Running the tasks of a chunk under ``outputs: packed``: see `merlin_study.packed` for what that is.

As under ``lean``, but all of it on this host's own disk: lent directories, tasks' own ones, the log. Before results are told, log and files
go into one archive in the workspace (`merlin_study.archive`), and only what is in it is told. So an agent that is killed loses what it
had not told, and nobody else has heard of it. A task that came before, here or elsewhere, finds what it had left then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import zipfile
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from merlin_agent import files, leftovers
from merlin_agent.chunklog import Outputs, log_name, sync_directory
from merlin_agent.chunkrun import Ended
from merlin_agent.execute import StepWork
from merlin_agent.launch import Script
from merlin_agent.lean import LeanWork, Place
from merlin_agent.slot import Slot
from merlin_study import archive, failpoints
from merlin_study.outcome import Outcome
from merlin_study.tasklog import Opening, Ran
from merlin_study.wire import Chunk

PATIENCE: Final = 30.0
"""Seconds of a chunk's work in one archive: most chunks are shorter, and have one."""
_LOGS: Final = "logs"

_journal: Final = logging.getLogger(__name__)


class _Earlier(NamedTuple):
    """An execution in an archive, or in a log of a time when the step was not packed."""

    path: str
    opening: Opening
    ran: Ran


class PackedWork(LeanWork):
    """`slots.Work` for one chunk of a packed step."""

    patience = PATIENCE

    def __init__(self, step: StepWork, chunk: Chunk, *, agent: str, tells: Callable[[], bool]) -> None:
        super().__init__(step, chunk, agent=agent, tells=tells)
        self._entries = 0
        self._chunk = chunk
        self._name = f"{step.task_logs}/{log_name(chunk, agent)}".removesuffix(".log")
        self._scratch = f"{step.home}/{_LOGS}/{step.name}.{chunk.fence}"
        self._guard = threading.Lock()
        self._part = 0
        self._left: dict[str, archive.Tree] = {}
        self._own: set[str] = set()
        self._earlier: dict[int, list[_Earlier]] | None = None
        self._broken: OSError | None = None
        self._begin_part()

    @property
    def archives(self) -> str:
        """Where the step's archives lie."""
        return self._step.task_logs

    def _begin_part(self) -> None:
        self._part += 1
        self._left = {}
        self._log = self._new_log(self._chunk, f"{self._scratch}.{self._part}.log")
        self._archive = self._name + (f".{self._part}" if self._part > 1 else "") + archive.ENDING

    def sync(self) -> None:
        """Bring what has ended to the workspace; see `slots.Work`. Once that failed it fails always: what was lost runs again."""
        with self._guard:
            if self._broken is not None:
                raise self._broken
            if self._log.empty:
                return
            log, left, path = self._log, self._left, self._archive
            self._begin_part()
        log.close()
        try:
            self._unsynced.sync()
            self._bring(path, log.path, left)
        except (OSError, RuntimeError, ValueError, zipfile.LargeZipFile) as error:
            broken = error if isinstance(error, OSError) else OSError(f"{path}: {error}")
            with self._guard:
                self._broken = broken
            raise broken from error
        finally:
            with contextlib.suppress(OSError):
                files.remove(log.path)
            self._remove(tree.directory for tree in left.values())

    def _bring(self, path: str, log: str, left: dict[str, archive.Tree]) -> None:
        directory = os.path.dirname(path)
        os.makedirs(directory, exist_ok=True)
        beside = leftovers.half(path)
        failpoints.reach("agent.packing")
        within = os.path.relpath(path, self._step.root).removesuffix(archive.ENDING) + ".log"
        for closed in archive.write(beside, (within, log), sorted(left.values())):
            _journal.warning("left out of %s, since this user may not read it: %s", path, closed)
        failpoints.reach("agent.packed")
        with self._guard:
            if self._broken is not None:  # closed meanwhile: files may be gone that are not in it
                files.remove(beside)
                raise self._broken
            os.rename(beside, path)
        sync_directory(directory)

    def _not_theirs(self, task: int) -> frozenset[str]:
        """What we put into the directory of a task, which the log has; named after the task's combination."""
        names = self._step.names(task)
        scripts = (names.cmd, names.restart)
        return frozenset({*scripts, *(name for script in scripts for name in names.outputs(script))})

    def close(self) -> None:
        """See `slots.Work`."""
        with self._guard:
            self._broken = self._broken or OSError("closed")
            log, left = self._log, {*(tree.directory for tree in self._left.values()), *self._own}
        log.close()
        with contextlib.suppress(OSError):
            files.remove(log.path)
        self._remove(left)

    def _remove(self, directories: Iterable[str]) -> None:
        for directory in list(directories):
            files.remove_tree(directory)
            self._own.discard(directory)

    def _before(self, task: int) -> list[_Earlier]:
        with self._guard:
            if self._earlier is None:
                found: dict[int, list[_Earlier]] = {}
                mine = range(self._chunk.tasks.first, self._chunk.tasks.end)
                for each in archive.executions(self._step.task_logs, mine):
                    found.setdefault(each.ran.task, []).append(_Earlier(each.path, each.opening, each.ran))
                self._earlier = found
            return self._earlier.get(task, [])

    def _succeeded(self, task: int) -> bool:
        return any(each.ran.outcome is Outcome.SUCCEEDED for each in self._before(task))

    def _where(self, script: Script, *, kept: bool) -> str:
        del script, kept
        return self._archive

    def _place(self, slot: Slot, task: int, script: Script, lent: int) -> Place:
        if os.path.lexists(script.directory):  # of a chunk that was handed back
            files.remove_tree(script.directory)
            if os.path.lexists(script.directory):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), script.directory)
        if self._step.in_place or self._before(task):
            self._own.add(script.directory)
        if self._before(task):
            self._restore(task, script.directory)
        return super()._place(slot, task, script, lent)

    def _came_before(self, directory: str) -> bool:
        return directory in self._own

    def _restore(self, task: int, directory: str) -> None:
        """Have the directory of a task be as its last execution left it."""
        os.makedirs(directory)
        before = self._before(task)
        if (last := before[-1].path).endswith(archive.ENDING):
            archive.unpack(last, {self._step.below(task): directory})
        for path, opening, ran in before:
            with archive.open_log(path) as file:
                each = archive.Execution(path, opening, ran, file)
                each.lay_out(directory, self._step.names(task), anew=False)

    def _append(self, ended: Ended, text: str, outputs: Outputs, *, kept: bool) -> None:
        below = self._step.below(ended.task)
        directory = f"{self._step.home}/{below}"
        if ended.outcome is None:  # it runs again, perhaps here and before this chunk is closed
            self._remove([directory])
            return
        with self._guard:
            if self._broken is not None:
                raise self._broken
            self._log.append(ended, self._step.logged(ended.task, text), outputs, kept=False)
            if kept:
                self._left[below] = archive.Tree(below, directory, self._not_theirs(ended.task))
