"""The right to start a server for a directory: one start at a time has it, on whichever machine.

A file that only one can make (``O_EXCL``, which network file systems keep, too) is held from the last look at ``server.json`` until
the new server's process has its lock. It is held for seconds: one that is older than `STALE` by the file system's own clock is of a start that
died, and is set aside. Where that judgement was wrong, `Held.check` finds out before ``server.json`` is written, and the server that was not the
last one to be written there leaves by itself (`merlin_cli.serverd`).
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merlin_cli import signs
from merlin_cli.exits import CliError, Exit

NAME: Final = "starting"
STALE: Final = 120.0
"""Seconds; twice what a start waits for its process."""


@dataclass(frozen=True)
class Held:
    """The file, and what we wrote there."""

    path: Path
    said: str

    def check(self) -> None:
        """Make sure that it is still ours.

        Raises:
            CliError: it was taken for that of a dead start.
        """
        with contextlib.suppress(OSError):
            if self.path.read_text() == self.said:
                return
        raise CliError(Exit.CANNOT_RUN, f"{self.path}: another start has set it aside; this one took too long")


@contextlib.contextmanager
def of(directory: Path, own: str) -> Iterator[Held]:
    """Hold the right to start a server; ``own`` names this start.

    Raises:
        CliError: another start holds it.
        OSError: the directory can't be written.
    """
    held = Held(directory / NAME, f"{own} on {socket.gethostname()}, pid {os.getpid()}\n")
    if not _made(held):
        _set_aside(held.path)
        if not _made(held):
            raise _refusal(held.path)
    try:
        yield held
    finally:
        with contextlib.suppress(CliError, OSError):
            held.check()
            held.path.unlink()


def _made(held: Held) -> bool:
    try:
        handle = os.open(held.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(held.said)
        file.flush()
        os.fsync(file.fileno())
    return True


def _set_aside(path: Path) -> None:
    """Remove the file of a start that died. Whoever may, of several at once, says a second file that only one can make.

    Raises:
        CliError: the start that holds it is young, or another one sets it aside.
    """
    judged = _identity(path)
    if judged is None:
        return
    if signs.age(path) < STALE:
        raise _refusal(path)
    claim = path.with_name(f"{path.name}.{judged[1]}")
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise _refusal(claim) from None
    try:
        if _identity(path) != judged:
            raise _refusal(path)
        path.unlink(missing_ok=True)
    finally:
        claim.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that takes its place: inode and time; None where there is none."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _refusal(path: Path) -> CliError:
    holder = ""
    with contextlib.suppress(OSError):
        holder = path.read_text().strip().partition(" ")[2]
    return CliError(
        Exit.CANNOT_RUN,
        f"{path}: another start of this server is under way{f' ({holder})' if holder else ''}; "
        "wait for it, then see: merlin server status; where it has died and this stays, remove the file",
    )
