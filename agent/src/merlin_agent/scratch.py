"""A directory that a slot lends to one task after the other under ``outputs: lean``, as long as they leave nothing in it.

It looks as a task's own does: script and output lie in it. Both output files are held open and emptied after each
task, so a task that leaves nothing behind makes no file at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from typing import Final

from merlin_agent import files

_MODE: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Scratch:
    """One such directory, with the files of one step in it; used by one thread."""

    def __init__(self, directory: str, stem: str) -> None:
        """Make it, new.

        Raises:
            OSError: it can't be made.
        """
        self.directory = directory
        self.script, self.out, self.err = (f"{directory}/{stem}.{ending}" for ending in ("sh", "out", "err"))
        self._names = {f"{stem}.{ending}" for ending in ("sh", "out", "err")}
        self._holds: tuple[str, str] | None = None
        self._left: tuple[int, ...] = ()
        """What our files were before the task: mode and links of the outputs; number, mode and size of the script.

        No times: on a network file system they change when what was written arrives.
        """
        files.make_directory(directory)
        self.handles = (-1, -1)
        try:
            self.handles = (os.open(self.out, _MODE, 0o666), -1)
            self.handles = (self.handles[0], os.open(self.err, _MODE, 0o666))
        except OSError:
            self.discard()
            raise
        for handle in self.handles:  # what who holds a lease is told when another opens the file; SIGIO would end us
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        self._leases = not any(map(_is_open_elsewhere, self.handles))
        """Whether the file system tells who else has a file open: so far nobody has."""

    def write(self, shell: str, text: str) -> None:
        """Have the script be this one."""
        if self._holds == (shell, text):
            return
        if self._holds is None:
            files.write_script(self.script, shell, text, replace=False)
        else:
            self._holds = None
            files.rewrite_script(self.script, shell, text)
        self._holds = (shell, text)
        self._left = self._seen()

    def _seen(self) -> tuple[int, ...]:
        script = os.stat(self.script)
        outputs = [number for each in map(os.fstat, self.handles) for number in (each.st_mode, each.st_nlink)]
        return (*outputs, script.st_ino, script.st_mode, script.st_size)

    def is_clean(self) -> bool:
        """Whether there is nothing in it but what we put there, as we put it; a task that closed it did something there.

        Nor may a process that the task left behind write to its outputs: they would be the next one's.
        """
        try:
            return (
                set(os.listdir(self.directory)) == self._names
                and os.access(self.directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
                and self._seen() == self._left
                and not (self._leases and any(map(_is_open_elsewhere, self.handles)))
            )
        except OSError:
            return False

    def holds_more(self) -> bool:
        """Whether something lies in it that is not ours."""
        files.open_up(self.directory)
        return not set(os.listdir(self.directory)) <= self._names

    def empty(self, sizes: tuple[int, int]) -> None:
        """Make output files of these sizes empty."""
        for handle, size in zip(self.handles, sizes, strict=True):
            if size:
                os.ftruncate(handle, 0)

    def move_to(self, directory: str, stem: str) -> None:
        """Give it away: it becomes a task's own directory. What lies there already stays, unless the task wrote it anew."""
        for name in (self.script, self.out, self.err):
            new = f"{self.directory}/{stem}{name[name.rindex('.') :]}"
            if new != name:
                with contextlib.suppress(FileNotFoundError):  # the task removed it
                    try:
                        os.rename(name, new)
                    except IsADirectoryError:  # the task's
                        files.make_way(new)
                        os.rename(name, new)
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        try:
            os.rename(self.directory, directory)
        except OSError:
            if not os.path.isdir(directory):
                raise
            for name in os.listdir(self.directory):
                os.rename(f"{self.directory}/{name}", f"{directory}/{name}")
            os.rmdir(self.directory)

    def close(self) -> None:
        """Let go of the output files."""
        handles, self.handles = self.handles, (-1, -1)
        for handle in handles:
            if handle >= 0:
                os.close(handle)

    def discard(self) -> None:
        """Let go, and remove what we made; what else lies there stays."""
        self.close()
        files.open_up(self.directory)
        with contextlib.suppress(OSError):
            for name in (self.script, self.out, self.err):
                files.remove(name)
            os.rmdir(self.directory)


def _is_open_elsewhere(handle: int) -> bool:
    """Whether somebody else may write to an open file, or the file system does not say: a lease is for who has it alone."""
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return True
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
