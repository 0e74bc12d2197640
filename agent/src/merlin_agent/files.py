"""Directories and scripts of tasks: few system calls each, because on a parallel file system they are what a task costs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import secrets
import shutil
import stat
import time
import weakref
from collections.abc import Iterator
from typing import Final

_WRITE_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_TOUCH: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_FILE_MODE: Final = 0o666
_SCRIPT_MODE: Final = 0o766
"""What the umask leaves of it is what ``chmod u+x`` makes of a new file, as upstream."""


class Reading:
    """A file that is read by position, from any thread; closed with its last user."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)

    @property
    def size(self) -> int:
        """How long the file is now."""
        return os.fstat(self._handle).st_size

    def at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, or fewer at the file's end."""
        return os.pread(self._handle, length, offset)


def make_directory(path: str) -> bool:
    """Make a directory and what it lies in; return whether it is new. One that a task of this user's closed is opened again."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        open_up(path)
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return make_directory(path)
    return True


def write_script(path: str, shell: str, text: str, *, replace: bool) -> None:
    """Write an executable script; ``replace`` says that one may be there (its reader may still run: a new file, not its text)."""
    if replace:
        remove(path)
    handle = os.open(path, _WRITE_NEW, _SCRIPT_MODE)
    try:
        _write(handle, f"#!{shell}\n\n{text}\n".encode("utf-8", "surrogateescape"))
    finally:
        os.close(handle)


def rewrite_script(path: str, shell: str, text: str) -> None:
    """Give a script that is there, and that nothing runs, another text."""
    data = f"#!{shell}\n\n{text}\n".encode("utf-8", "surrogateescape")
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write(handle, data)
        os.ftruncate(handle, len(data))  # cut to nothing first, ext4 would write it to the disk as it is closed
    finally:
        os.close(handle)


def open_or_nothing(path: str) -> int:
    """Open what a task wrote for reading; where there is no file that this user can read, it is empty.

    A task may have closed or replaced it, with a pipe even: that is its own affair and keeps it from nothing, least from ending.
    """
    try:
        handle = _open_to_read(path)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        handle = -1
    if handle >= 0 and stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    if handle >= 0:
        os.close(handle)
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _open_to_read(path: str) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except PermissionError:
        with opened(os.path.dirname(path)), opened(path):
            return os.open(path, flags)


_UNREADABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""Errors of a path at which there is nothing for us to read."""


FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk or a quota that is full."""
_ROOM: Final = 1 << 16
"""Bytes that there has to be room for. Where a quota refuses a program's write as a whole, up to so many are left."""
_SPARE: Final = 1 << 20
"""The same where a program said that there was none: others may have freed some since, such as one that writes its output anew."""
_SAID: Final = tuple(os.strerror(each) for each in FULL)
_SCARCE: Final = 5.0
"""Seconds after which a disk that was full counts as one that is not."""
_FULL_AT: Final[dict[int, float]] = {}
"""When there was last no room, by file system; its number."""
_TAIL: Final = 4096
"""Characters at the end of what a program said, in which it would say so."""


def touch(path: str) -> None:
    """Make an empty file, or set its time to now by the file system's own clock."""
    handle = os.open(path, _TOUCH, _FILE_MODE)
    try:
        os.utime(handle)
    finally:
        os.close(handle)


def mark(path: str) -> None:
    """Make an empty file."""
    os.close(os.open(path, _TOUCH, _FILE_MODE))


def room(directory: str, *, said: str = "") -> OSError | None:
    """Return why nothing more can be written to a directory: its disk or its quota is full. None where there is room.

    ``said``: the file that has what a program said who may have met that.
    """
    tail = read_tail(said, _TAIL) if said else ""
    least = _SPARE if any(each in tail for each in _SAID) else _ROOM
    path = f"{directory}/.merlin_room"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write(handle, bytes(least))  # all of it: where a part fits, a write says so and does not fail
            finally:
                os.close(handle)  # NFS tells a full quota here
        finally:
            os.unlink(path)
    except OSError as error:
        return error if error.errno in FULL else None
    return None


def note_full(directory: str) -> None:
    """Remember that there is no room now on the file system of a directory."""
    with contextlib.suppress(OSError):
        _FULL_AT[os.stat(directory).st_dev] = time.monotonic()


def was_full(directory: str) -> bool:
    """Whether somebody found no room on the file system of a directory in the last seconds."""
    try:
        return time.monotonic() - _FULL_AT.get(os.stat(directory).st_dev, -math.inf) <= _SCARCE
    except OSError:
        return False


def remove(path: str) -> None:
    """Remove a file that may not be there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, as far as this user may: what tasks closed against writing is opened first."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.isdir(path) and not os.path.islink(path):
        open_up(path)
        for directory, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(f"{directory}/{name}"):
                    open_up(f"{directory}/{name}")  # before it is looked into
        shutil.rmtree(path, ignore_errors=True)


def open_up(path: str) -> None:
    """Give this user all rights to a directory or file of their own, whatever a task made of them; a link is left alone."""
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        wanted = stat.S_IRWXU if stat.S_ISDIR(mode) else stat.S_IRUSR | stat.S_IWUSR
        if mode & wanted != wanted and not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode) | wanted)


def make_way(path: str) -> None:
    """Have what an earlier attempt of a task left where a file of ours goes be no obstacle to the next one.

    A file that it closed is opened again. What can't be appended to (a directory, a pipe, a link to nowhere) may be what the task was run
    for: it is moved aside, to ``path.1`` and so on.

    Raises:
        OSError: it can't be moved.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno not in _UNREADABLE or not os.path.islink(path):
            return
    else:
        if stat.S_ISREG(mode):
            open_up(path)
            return
        if stat.S_ISCHR(mode):  # a link to /dev/null, say
            return
    free = next(each for number in itertools.count(1) if not os.path.lexists(each := f"{path}.{number}"))
    os.rename(path, free)


@contextlib.contextmanager
def opened(path: str) -> Iterator[None]:
    """Have a directory or file of this user's be open to them meanwhile, and then be as a task left it."""
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    open_up(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if stat.S_IMODE(os.lstat(path).st_mode) != mode:
                os.chmod(path, mode)


def write_whole(path: str, data: bytes, *, mode: int = _FILE_MODE) -> None:
    """Write a file so that every reader sees all of it or what was there before."""
    beside = _beside(path, data, mode)
    os.replace(beside, path)


def write_once(path: str, data: bytes) -> bool:
    """Write a file that nobody else may have written; return whether we were first."""
    beside = _beside(path, data)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        remove(beside)
    return True


def read_tail(path: str, characters: int) -> str:
    """Return the end of a text file; empty where there is none."""
    try:
        handle = open_or_nothing(path)
    except OSError:
        return ""
    try:
        size = os.fstat(handle).st_size
        data = os.pread(handle, 4 * characters, max(0, size - 4 * characters))
    except OSError:
        return ""
    finally:
        os.close(handle)
    return data.decode("utf-8", "replace")[-characters:]


def append(path: str, text: str) -> None:
    """Append to a text file."""
    handle = os.open(path, _TOUCH | os.O_APPEND, _FILE_MODE)
    try:
        _write(handle, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(handle)


def _beside(path: str, data: bytes, mode: int = _FILE_MODE) -> str:
    beside = f"{path}.{secrets.token_hex(6)}"
    handle = os.open(beside, _WRITE_NEW, mode)
    try:
        _write(handle, data)
        os.fsync(handle)
    except OSError:
        remove(beside)
        raise
    finally:
        os.close(handle)
    return beside


def _write(handle: int, data: bytes) -> None:
    done = os.write(handle, data)
    while done < len(data):
        done += os.write(handle, data[done:])
