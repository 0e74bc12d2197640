"""The agent's outcome log in each workspace: what ended is on disk before the broker hears of it.

One thread writes for all chunks. What gathers while a batch is synced goes with the next one, so the number of syncs follows the
disk, not the tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from merlin_study import outcomelog
from merlin_study.wire import Result
from merlin_study.workspace import OUTCOMES

_log: Final = logging.getLogger(__name__)
_MAX_LOG: Final = 1 << 30
_KEPT_READERS: Final = 8


def log_path(info: str, agent: str) -> str:
    """Return an agent's outcome log in a study's ``merlin_info``."""
    return f"{info}/{OUTCOMES}/{agent}.jsonl"


class Recorder:
    """Appends lines to files and returns when they are synced."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recorder")
        self._waiting: list[tuple[str, bytes, asyncio.Future[OSError | None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, path: str, line: bytes) -> OSError | None:
        """Append a line, and return once it is on disk; or return why it is not, which is a problem told, too.

        That is no reason to keep a result from the broker; only what is not claimed here does not run.
        """
        written: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((path, line, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await written

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            by_path: dict[str, list[bytes]] = {}
            for path, line, _ in batch:
                by_path.setdefault(path, []).append(line)
            failed: dict[str, OSError] = {}
            for path, lines in by_path.items():
                try:
                    await loop.run_in_executor(self._thread, _append, path, b"".join(lines))
                except OSError as error:
                    failed[path] = error
                    self._complain(f"{path}: the outcome log can't be written: {error.strerror}")
            for path, _, written in batch:
                if not written.done():
                    written.set_result(failed.get(path))

    def close(self) -> None:
        """End the thread once it has written."""
        self._thread.shutdown(wait=True)


def _append(path: str, data: bytes) -> None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data  # a full disk tore our last line
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


class _Reader:
    """An agent's log, read on from where it was by whoever asks: its chunks are many, and most of it is not theirs."""

    def __init__(self, path: str, study: str) -> None:
        self._path, self._study = path, study
        self._offset = 0
        self._guard = threading.Lock()
        self._results: dict[int, list[Result]] = {}
        self._closed: set[int] = set()

    def of(self, fence: int, known: int) -> tuple[list[Result], bool]:
        """Return a fence's results but for the first ``known``, and whether its last report came."""
        with self._guard:
            self._read_on()
            return self._results.get(fence, [])[known:], fence in self._closed

    def _read_on(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read(_MAX_LOG)
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for entry in outcomelog.decode_lines(whole).entries:
                if entry.study == self._study and entry.report is not None:
                    self._results.setdefault(entry.report.fence, []).extend(entry.report.results)
                    if entry.report.final:
                        self._closed.add(entry.report.fence)


class HolderLog:
    """What a lost holder's log says of one fence; read again as long as the holder may still write."""

    def __init__(self, reader: _Reader, fence: int) -> None:
        self._reader, self._fence = reader, fence
        self._known = 0
        self.closed = False
        """Whether the holder itself gave the chunk up: nothing of it runs any more."""

    def news(self) -> list[Result]:
        """Return the results that came since the last call."""
        found, self.closed = self._reader.of(self._fence, self._known)
        self._known += len(found)
        return found


class HolderLogs:
    """The logs of lost holders, those that were asked for last: an agent that is lost leaves many chunks at once."""

    def __init__(self) -> None:
        self._readers: OrderedDict[tuple[str, str], _Reader] = OrderedDict()

    def of(self, path: str, study: str, fence: int) -> HolderLog:
        """Return what a log says of a fence."""
        reader = self._readers.setdefault((path, study), _Reader(path, study))
        self._readers.move_to_end((path, study))
        if len(self._readers) > _KEPT_READERS:
            self._readers.popitem(last=False)
        return HolderLog(reader, fence)
