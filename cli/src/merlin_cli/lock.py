"""One run at a time in a workspace: a lock that lasts as long as the command, and a look for agents that outlived theirs.

The lock is the kernel's (``flock``), so a command that is killed leaves none behind. Its agent may live on for a moment, and a
workspace may be bound to a cluster: that is told by the agents' presence files, whose times are compared with the file
system's own clock, as agents do it. Where a file system knows no locks, only that look is left.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from merlin_cli.exits import CliError, Exit
from merlin_study import workspace

LOCK_FILE: Final = "run.lock"
"""In ``merlin_info``, while a command works there; it holds the command's pid."""
YOUNG: Final = 10.0
"""Seconds since an agent's last sign of life in which it counts as being there; a local run's agent gives one each second."""
_NO_LOCKS: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL})


@contextlib.contextmanager
def held(directory: Path, *, resume: bool) -> Iterator[None]:
    """Be the only command that works in a study's directory, which is made where it is missing.

    What was made only for the lock is removed again at the end; ``resume`` looks for agents too.

    Raises:
        CliError: another command works there, or an agent; or the lock can't be written.
    """
    file = directory / workspace.INFO / LOCK_FILE
    try:
        handle = _locked(file, directory)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"{file}: can't be written: {error.strerror}") from error
    try:
        try:
            if resume:
                _check_nobody_works(file.parent, handle, directory)
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(handle)
    finally:
        if not (file.parent / workspace.PLAN_FILE).exists():  # nothing ran: the same command may be given again
            with contextlib.suppress(OSError):
                file.parent.rmdir()
                directory.rmdir()


def _locked(file: Path, directory: Path) -> int:
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another command has just left, and taken the directory with it
            continue
        try:
            _lock(handle, directory)
            if _is_still(handle, file):
                os.ftruncate(handle, 0)
                os.pwrite(handle, b"%d\n" % os.getpid(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between our opening and our locking


def _lock(handle: int, directory: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        message = f"another merlin run works in {directory} (pid {pid}); wait for its end, or stop it first"
        raise CliError(Exit.CANNOT_RUN, message) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_still(handle: int, file: Path) -> bool:
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(handle))


def _check_nobody_works(info: Path, handle: int, directory: Path) -> None:
    os.utime(handle)
    now = os.fstat(handle).st_mtime
    for present in sorted((info / workspace.PRESENCE).glob("*")):
        try:
            age = now - present.stat().st_mtime
        except FileNotFoundError:
            continue
        if abs(age) < YOUNG:
            raise CliError(
                Exit.CANNOT_RUN,
                f"an agent is still at work in {directory} ({present.name}, seen {max(age, 0):.0f} s ago); "
                f"try again once it has left, or in {YOUNG:.0f} s where it is gone",
            )
