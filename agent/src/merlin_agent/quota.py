"""How many files and bytes may still be made in a directory: what its file system says, and the user's quota where a command tells it.

``lfs quota`` and ``quota`` are asked once a study, and given up after a few seconds, also where they can't be killed (a metadata server that
does not answer keeps whoever asks it in the kernel): a slow one must not hold up what it is asked about.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from merlin_study.footprint import BYTES, FILES, Room

_WITHIN: Final = 5.0
_COLUMNS: Final = 9
"""File system, blocks, quota, limit, grace, files, quota, limit, grace."""
_BLOCK: Final = 1024
"""Bytes of a block, as both commands count them."""
_PLACES: Final = {FILES: (slice(-4, -1), 1), BYTES: (slice(-8, -5), _BLOCK)}
"""Where the columns stand, from the end, and what one is of."""


def rooms(directory: str, environ: Mapping[str, str]) -> Iterator[Room]:
    """Yield how many files and bytes may be made there, by each who limits them and can be asked; it may be a directory that is yet to be made."""
    while directory != "/" and not os.path.isdir(directory):
        directory = os.path.dirname(directory) or "."
    try:
        state = os.statvfs(directory)
    except OSError:
        return
    if state.f_files:  # some file systems make inodes as they need them
        yield Room(state.f_favail, "free inodes of the file system")
    yield Room(state.f_bavail * state.f_frsize, "free space of the file system", BYTES)
    lustre = _said(["lfs", "quota", "-q", "-u", str(os.getuid()), directory], environ)
    yield from _of_quota("lfs quota", lustre.split())
    source = _source(directory)
    for line in _said(["quota", "-w", "-p"], environ).splitlines():
        if line.split()[:1] == [source]:
            yield from _of_quota("quota", line.split())


def _of_quota(source: str, columns: Sequence[str]) -> Iterator[Room]:
    for of in (FILES, BYTES):
        if (left := left_of(columns, of)) is not None:
            yield Room(left, source, of)


def left_of(columns: Sequence[str], of: str = FILES) -> int | None:
    """Return how many files or bytes are left of a quota, by the columns that both commands print; None where there is no limit, or no quota.

    The lower of the soft and the hard limit counts: what is above the soft one is not to be had for long.
    """
    if len(columns) < _COLUMNS:
        return None
    where, each = _PLACES[of]
    try:  # from the end: a path may have spaces in it
        used, soft, hard = (int(text.strip("*[]")) * each for text in columns[where])
    except ValueError:
        return None
    limits = [limit for limit in (soft, hard) if limit > 0]
    return min(limits) - used if limits else None


def _said(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what a command prints; nothing where it can't be started or is not over in time, and then it is waited for by nobody."""
    program = shutil.which(command[0], path=environ.get("PATH"))
    if program is None:
        return ""
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return ""
    said: list[str] = []
    # It fails where a quota is exceeded, and says by how much all the same; so its exit code says nothing.
    listening = threading.Thread(target=lambda: said.append(process.communicate()[0]), name="quota", daemon=True)
    listening.start()
    listening.join(_WITHIN)
    if listening.is_alive():
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    return said[0] if said else ""


def _source(directory: str) -> str:
    """Return what is mounted where a directory lies, as `quota` names it."""
    real, found = os.path.realpath(directory), ("", "")
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                source, point = line.split(" ")[:2]
                if len(point) >= len(found[0]) and (real + "/").startswith(point.rstrip("/") + "/"):
                    found = point, source
    except (OSError, ValueError):
        return ""
    return found[1]
