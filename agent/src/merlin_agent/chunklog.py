"""A chunk's log under ``outputs: lean``, as it is written: one write a task, one sync before success is reported."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from merlin_agent.chunkrun import Ended
from merlin_study import tasklog
from merlin_study.archive import executions
from merlin_study.outcome import Outcome
from merlin_study.tasklog import Opening, Text
from merlin_study.wire import Chunk

_PIECE: Final = 1 << 20
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Outputs(NamedTuple):
    """Standard output and error of a task: open files, from where they are its own, and how long they are."""

    handles: tuple[int, int]
    since: tuple[int, int]
    sizes: tuple[int, int]

    def pieces(self) -> Iterator[bytes]:
        """Yield both; what was cut off meanwhile is zeros, so that lengths stay as they were told."""
        for handle, at, size in zip(*self, strict=True):
            left = size
            while left:
                piece = os.pread(handle, min(left, _PIECE), at + size - left) or bytes(min(left, _PIECE))
                left -= len(piece)
                yield piece


def log_name(chunk: Chunk, agent: str) -> str:
    """Return the name of a chunk's log below the logs of its step."""
    tasks = chunk.tasks
    return tasklog.file_name(first=tasks.first, last=tasks.end - 1, fence=chunk.fence, agent=agent)


class ChunkLog:
    """The log of one claimed chunk; any slot's thread appends to it. The file is made with its first record."""

    def __init__(
        self, logs: str, chunk: Chunk, *, agent: str, step: str, host: str, restart: bool, path: str = ""
    ) -> None:
        self._logs, self._chunk = logs, chunk
        self.path = path or f"{logs}/{log_name(chunk, agent)}"
        """Where it lies or will."""
        self._opening = Opening(
            version=tasklog.VERSION,
            study=chunk.study,
            plan=chunk.plan,
            step=step,
            fence=chunk.fence,
            attempt=chunk.attempt,
            restart=restart,
            samples=chunk.samples,
            agent=agent,
            host=host,
            began=time.time(),
        )
        self._guard = threading.Lock()
        self._handle = -1
        self._end = 0
        self._synced = 0
        self._scripts: dict[Text, int] = {}
        self._earlier: frozenset[int] | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was appended."""
        return not self._end

    def succeeded(self, task: int) -> bool:
        """Whether an earlier log of the step says that a task succeeded.

        Raises:
            OSError: the logs can't be read.
        """
        with self._guard:
            if self._earlier is None:
                mine = range(self._chunk.tasks.first, self._chunk.tasks.end)
                self._earlier = frozenset(successes(self._logs, mine, self.path))
            return task in self._earlier

    def append(self, ended: Ended, script: tuple[Text, Mapping[str, str]], outputs: Outputs, *, kept: bool) -> None:
        """Append what became of a task, with its output.

        Args:
            ended: What did.
            script: What it ran, and what in that was its own.
            outputs: Where its output can be read.
            kept: Whether its directory stays, with these files in it.

        Raises:
            OSError: it can't be written; then the log ends where it did before.
        """
        assert ended.outcome is not None, "a task without an outcome runs again and has no record; this is a bug"
        text, values = script
        small = sum(outputs.sizes) <= _PIECE
        body = b"".join(outputs.pieces()) if small and any(outputs.sizes) else b""
        crc = zlib.crc32(body)
        if not small:
            for piece in outputs.pieces():
                crc = zlib.crc32(piece, crc)
        with self._guard:
            if self._handle < 0:
                self._open()
            end = self._end
            try:
                before = b""
                number = self._scripts.get(text)
                if number is None:
                    number = len(self._scripts)
                    before = tasklog.script_entry(number, text)
                head = before + tasklog.ran_header(
                    ended.task,
                    script=number,
                    outcome=ended.outcome,
                    code=ended.code,
                    seconds=ended.seconds,
                    sizes=outputs.sizes,
                    crc=crc,
                    values=values,
                    kept=kept,
                )
                if small:
                    self._write(head + body + b"\n")
                else:
                    self._write(head)
                    for piece in outputs.pieces():
                        self._write(piece)
                    self._write(b"\n")
                self._scripts[text] = number
            except OSError:
                self._end = end
                os.ftruncate(self._handle, end)
                raise

    def sync(self) -> None:
        """Have all that was appended be on disk.

        Raises:
            OSError: it is not.
        """
        with self._guard:
            end, handle = self._end, self._handle
        if handle < 0 or end == self._synced:
            return
        os.fsync(handle)
        if not self._synced:
            sync_directory(os.path.dirname(self.path))
        self._synced = end

    def close(self) -> None:
        """Let go of the file; nothing is appended any more."""
        with self._guard:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _open(self) -> None:
        try:
            self._handle = os.open(self.path, _NEW, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._handle = os.open(self.path, _NEW, 0o666)
        try:
            self._write(tasklog.opening(self._opening))
        except OSError:  # what followed half a first line nobody could read
            os.close(self._handle)
            self._handle, self._end = -1, 0
            os.unlink(self.path)
            raise

    def _write(self, data: bytes) -> None:
        while data:
            done = os.pwrite(self._handle, data, self._end)
            self._end += done
            data = data[done:]


def successes(logs: str, tasks: range, but: str = "") -> Iterator[int]:
    """Yield the tasks of a range whose success stands in a log of their step; the file ``but`` is left out.

    Raises:
        OSError: a log can't be read.
    """
    return (each.ran.task for each in executions(logs, tasks, but=but) if each.ran.outcome is Outcome.SUCCEEDED)


def sync_directory(path: str) -> None:
    """Have the names in a directory be on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
