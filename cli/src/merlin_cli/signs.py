"""A server's signs of life, for whoever starts one on another machine: a file in the directory that both see.

The server writes it every few seconds. Where it could not for `LEASE` seconds it ends its broker, so that nothing is promised by one that counts as
dead; and it counts as dead when its file is `STALE` seconds old, by the file system's own clock. The one is well below the other. Where the file is not there, the server ended in good
order.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

ALIVE: Final = "alive"
EVERY: Final = 5.0
LEASE: Final = 40.0
STALE: Final = 60.0


def give(directory: Path) -> None:
    """Write the sign.

    Raises:
        OSError: it can't be written.
    """
    _write(directory / ALIVE)


def withdraw(directory: Path) -> None:
    """Take it away: this server has ended."""
    with contextlib.suppress(OSError):
        (directory / ALIVE).unlink(missing_ok=True)


def silent_for(directory: Path) -> float:
    """Return the age of the sign in seconds; infinite where there is none. See `age`."""
    return age(directory / ALIVE)


def age(path: Path) -> float:
    """Return how long ago a file was written, by the clock of its file system; infinite where there is none.

    Raises:
        OSError: nothing can be written beside it.
    """
    try:
        with path.open("rb") as sign:  # opened, since NFS may answer from its memory what it has not opened
            given = os.fstat(sign.fileno()).st_mtime
    except FileNotFoundError:
        return float("inf")
    probe = path.with_name(f".now-{secrets.token_hex(4)}")
    try:
        return _write(probe) - given
    finally:
        probe.unlink(missing_ok=True)


def _write(path: Path) -> float:
    """Write a file, so that the file system sets its time, not we; return that."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, f"{time.time():.3f}\n".encode())
        os.fsync(handle)
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
