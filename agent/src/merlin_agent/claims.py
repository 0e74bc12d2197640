"""Who wrote down a claim of a chunk in the outcome logs of a study.

Where a broker was put back, each chunk that it hands out is looked for (`merlin_agent.ground`), and the logs of all agents may be large.
So each log is read once, from where the look before ended; of each claim its fence and its place are kept, 16 bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from merlin_study import outcomelog
from merlin_study.wire import LostHolder, Start

_CLAIM: Final = re.compile(rb'"start":\{.*?"fence":(\d+),')
"""A claim in its line; the first fence is the chunk's, holders that it names as lost come after."""


@dataclass(slots=True)
class _Log:
    """What was read of a log."""

    inode: int
    end: int = 0
    """Bytes read: whole lines."""
    fences: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("q"))

    def read_on(self, file: BinaryIO) -> None:
        """Note the claims that came since."""
        file.seek(self.end)
        for line in file:
            if not line.endswith(b"\n"):  # still being written
                return
            if (claim := _CLAIM.search(line)) is not None:
                self.fences.append(int(claim[1]))
                self.places.append(self.end)
            self.end += len(line)

    def claims(self, file: BinaryIO, fence: int) -> Iterator[Start]:
        """Yield the claims of a fence."""
        for place, each in zip(self.places, self.fences, strict=True):
            if each == fence:
                file.seek(place)
                for entry in outcomelog.decode_lines(file.readline()).entries:
                    if entry.start is not None:
                        yield entry.start


class Claims:
    """The claims in the outcome logs of studies; threads may ask at the same time."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Let go of what was read, as nobody will ask for a while; waits for no thread that reads."""
        self._logs = {}

    def others(self, directory: str, start: Start, *, made: int) -> tuple[LostHolder, ...]:
        """Return who else wrote down a claim of the same chunk in the logs of a ``directory``; its agent, where it did so twice.

        A log that nobody has written to since the broker's streams were ``made`` (Unix seconds) speaks of others: a restart without that
        broker counts its fences anew, and its chunks may look the same.

        Raises:
            OSError: a log can't be read.
        """
        found = Counter[str]()
        with self._lock:
            for name in sorted(os.listdir(directory)):
                with contextlib.suppress(FileNotFoundError), open(f"{directory}/{name}", "rb") as file:
                    status = os.fstat(file.fileno())
                    if status.st_mtime < made + 1:  # `made` has no fractions
                        continue
                    log = self._log(file.name, status)
                    log.read_on(file)
                    found.update(
                        each.agent for each in log.claims(file, start.chunk.fence) if each.chunk == start.chunk
                    )
        found[start.agent] -= 1
        return tuple(
            LostHolder(fence=start.chunk.fence, agent=each) for each, times in sorted(found.items()) if times > 0
        )

    def _log(self, path: str, status: os.stat_result) -> _Log:
        """Return what was read of a log, nothing where it is another file by now."""
        known = self._logs.get(path)
        if known is None or known.inode != status.st_ino or known.end > status.st_size:
            known = self._logs[path] = _Log(status.st_ino)
        return known
