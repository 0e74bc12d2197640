"""Copies of a namespace's log and last values in a directory that outlives this host.

    report stream, control stream ─► PLACE/GENERATION-NUMBER/{reports,control} and, last, head.json ─► PLACE keeps the two newest

A copy counts once its directory has its name, which is when all of it has reached the disk. Who finds a broker without a log puts the
newest copy back that is whole. What happened since is missing there, and a log that was put back is another stream than it was: so
every study is in doubt, and the outcome logs in the workspaces say what is missing, before anything is issued
(`merlin_operator.repair`). Chunks are not copied. One that is put back could run beside the one that was claimed since; what waits is
issued anew.

The *generation* is raised by each start of a server that goes on from a copy. One that was taken for dead and is not may still finish
a copy; that of the later generation counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from merlin_operator.stream import Broker, Outage, copies
from merlin_study import wire

log = logging.getLogger(__name__)

PLACE: Final = "snapshots"
"""What a server calls the directory of its copies."""
HEAD: Final = "head.json"
KEPT: Final = 2
"""Copies that are kept: the newest, and one for where that is damaged."""
SHARE: Final = 20.0
"""A copy is made after so many times as long as the one before took, at least: copying costs a twentieth at most."""
_PIECE: Final = 128 << 10


class Part(wire.Message):
    """A stream's copy: its length in bytes, its SHA-256, and what the broker needs beside it."""

    size: int
    digest: str
    about: dict[str, Any]


class Head(wire.Message):
    """What a copy holds, by role (``reports``, ``control``); ``taken`` in Unix seconds."""

    taken: float
    parts: dict[str, Part]


class DamagedError(ValueError):
    """A copy is not whole."""


@dataclass
class Backup:
    """Takes copies and puts them back; see the module.

    Attributes:
        place: The directory of all copies.
        generation: Of this server.
        every: Seconds between two copies, at least.
        put: Bytes of copies that were read and put back so far; it tells whether that goes on.
    """

    place: Path
    generation: int
    every: float
    put: int = field(default=0, init=False)
    _taken: tuple[Any, ...] = field(default=(), init=False)
    _number: int = field(default=0, init=False)

    async def keep(self, broker: Broker) -> None:
        """Take a copy now and then, where anything has changed; for ever."""
        while True:
            await broker.wait_connected()
            began = time.monotonic()
            try:
                await self.take(broker)
            except (Outage, OSError) as error:
                log.warning("no copy in %s, trying again error=%s", self.place, error)
            await asyncio.sleep(max(self.every, SHARE * (time.monotonic() - began)))

    async def take(self, broker: Broker) -> bool:
        """Take a copy unless nothing was written since the last one; return whether one was taken.

        Raises:
            Outage: the broker did not answer, or not to the end.
            OSError: it can't be written.
        """
        streams = _streams(broker)
        state = tuple([await broker.last_sequence(stream) for stream in streams.values()])
        if state == self._taken:
            return False
        self._number = max(self._number, *(number for _, number in map(_order, _copies(self.place))), 0) + 1
        name = f"{self.generation:06}-{self._number:09}"
        partial = self.place / f".{name}"
        await asyncio.to_thread(_make, partial)
        taken, parts = time.time(), {}
        for role, stream in streams.items():
            with _create(partial / role) as file:
                writer = _Writer(file)
                about = await copies.copy(broker, stream, writer.write)
                await asyncio.to_thread(_settle, file)
            parts[role] = Part(size=writer.size, digest=writer.digest.hexdigest(), about=about)
        await asyncio.to_thread(self._finish, partial, self.place / name, Head(taken=taken, parts=parts))
        self._taken = state
        log.info("log copied to=%s bytes=%d", self.place / name, sum(part.size for part in parts.values()))
        return True

    def _finish(self, partial: Path, whole: Path, head: Head) -> None:
        with _create(partial / HEAD) as file:
            file.write(head.encode())
            _settle(file)
        _settle_directory(partial)
        partial.rename(whole)
        _settle_directory(self.place)
        for old in _copies(self.place)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self.place.glob(".*"):
            if left.name[1:] < whole.name:  # somebody died over it
                shutil.rmtree(left, ignore_errors=True)

    async def put_back(self, broker: Broker) -> Path | None:
        """Give a broker without a log the newest copy that is whole; return which, None where it has a log or there is no copy.

        Raises:
            Outage: the broker did not answer.
        """
        streams, there = _streams(broker), await copies.names(broker)
        if streams["reports"] in there:
            return None
        for copy in reversed(_copies(self.place)):
            for stream in set(streams.values()) & await copies.names(broker):
                await copies.drop(broker, stream)  # of an attempt that failed
            try:
                head = await asyncio.to_thread(_checked, copy, self._counted)
                for role in reversed(streams):  # the log last: it says that all is there
                    await copies.put_back(broker, streams[role], head.parts[role].about, self._counted(copy / role))
            except (Outage, OSError, DamagedError, ValidationError) as error:
                if not broker.connected:
                    raise Outage(str(error)) from error
                log.error("a copy can't be put back, trying the one before copy=%s error=%s", copy, error)  # noqa: TRY400 the cause is said
                continue
            log.warning("log put back copy=%s age=%d", copy, time.time() - head.taken)
            return copy
        return None

    def _counted(self, path: Path) -> Iterator[bytes]:
        for piece in _pieces(path):
            yield piece
            self.put += len(piece)


def newest(place: Path) -> float | None:
    """Return when the newest copy was taken, in Unix seconds; None where there is none.

    Raises:
        OSError: it can't be read.
        pydantic.ValidationError: it is damaged.
    """
    whole = _copies(place)
    return Head.model_validate_json((whole[-1] / HEAD).read_bytes()).taken if whole else None


class _Writer:
    """Writes a file and knows its length and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self.size += len(piece)
        self.digest.update(piece)


def _streams(broker: Broker) -> dict[str, str]:
    """What is copied, by role; the log first, so that no last value speaks of what the log does not have."""
    return {"reports": broker.space.report_stream, "control": broker.space.control_stream}


def _copies(place: Path) -> list[Path]:
    """Return all whole copies, the newest last."""
    return sorted(path.parent for path in place.glob(f"[0-9]*/{HEAD}"))


def _order(copy: Path) -> tuple[int, int]:
    generation, _, number = copy.name.partition("-")
    return int(generation), int(number)


def _make(directory: Path) -> None:
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked(copy: Path, pieces: Callable[[Path], Iterator[bytes]]) -> Head:
    """Return a copy's head, once all of it was read and found to be what was written."""
    head = Head.model_validate_json((copy / HEAD).read_bytes())
    for role, part in head.parts.items():
        digest, size = hashlib.sha256(), 0
        for piece in pieces(copy / role):
            digest.update(piece)
            size += len(piece)
        if (size, digest.hexdigest()) != (part.size, part.digest):
            raise DamagedError(f"{copy / role}: expected {part.size} bytes of digest {part.digest[:12]}, found others")
    return head


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
