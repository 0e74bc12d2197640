"""Rows of a sample table by their number, from ``.csv``, ``.tab`` or ``.npy``: an index is built once, rows are read when asked for.

A table of text stays on disk, and every 64th row's place is kept: 10⁸ rows cost 25 MB. It is read, not mapped: whoever shortens a
mapped file kills its readers. Values are text, split as ``numpy.loadtxt(dtype=str)`` does, which upstream uses: ``.csv`` at commas (blanks
stay), ``.tab`` at blanks, ``#`` starts a comment, empty lines don't count. On top of that a byte order mark is dropped. Rows of unequal
length are refused with the number of the line.
"""

from __future__ import annotations

import functools
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from merlin_agent import npy, rowindex
from merlin_agent.files import Reading
from merlin_agent.rowindex import Index

STRIDE: Final = 64
"""Rows between two kept places; fewer where rows are long."""
MAX_ROW: Final = 1 << 20
"""Bytes of one row. Its values go into the scripts of tasks, and a file without line ends must not fill the memory."""
_BLOCK: Final = 1 << 16
"""Bytes of the rows between two kept places, about."""
_CACHED: Final = 64 << 20
"""Bytes of the blocks that stay in memory, at most."""
_BOM: Final = b"\xef\xbb\xbf"


class RowError(ValueError):
    """A table, or a row of it, that can't be read: path and line first, then expected, found, cure."""


class Rows(Protocol):
    """A table of samples."""

    @property
    def count(self) -> int:
        """How many rows."""

    @property
    def columns(self) -> int:
        """How many values a row has."""

    def row(self, number: int) -> tuple[str, ...]:
        """Return a row's values as text."""


class TextRows:
    """Rows of a text file; ``separator`` None splits at any blanks. ``kept`` is its index, where somebody built it before."""

    def __init__(self, path: str, separator: bytes | None, kept: Index | None = None) -> None:
        self._path, self._separator, self._stride = path, separator, STRIDE
        self._file = Reading(path)
        self._marks, self._lines = array("Q"), array("Q")
        """Where every block of rows begins, and in which line; last the end."""
        self.count = 0
        self.columns = 0
        if kept is None:
            self._index()
        else:
            self.count, self.columns, self._stride = kept.count, kept.columns, kept.stride
            self._marks, self._lines = kept.marks, kept.lines
        largest = max((end - begin for begin, end in itertools.pairwise(self._marks)), default=0)
        self._block = functools.lru_cache(maxsize=max(1, min(64, _CACHED // max(1, largest))))(self._read_block)

    def row(self, number: int) -> tuple[str, ...]:
        """See `Rows`."""
        if not 0 <= number < self.count:
            raise RowError(f"{self._path}: expected a row {number}, found {self.count} rows")
        block, at = divmod(number, self._stride)
        line, content = self._block(block)[at]
        try:
            if self._separator == b",":
                return tuple(content.decode().split(","))
            return tuple(value.decode() for value in content.split(self._separator))
        except UnicodeDecodeError as error:
            found = f"{error.object[error.start]:#04x}"
            raise RowError(f"{self._path}:{line}: expected UTF-8, found byte {found}; convert the file") from error

    @property
    def index(self) -> Index:
        """Where the rows begin."""
        return Index(self.count, self.columns, self._stride, self._marks, self._lines)

    def _read_block(self, block: int) -> list[tuple[int, bytes]]:
        begin, end = self._marks[block], self._marks[block + 1]
        data = self._file.at(begin, end - begin)
        found = [
            (line, content) for line, _, content in _rows(data.splitlines(keepends=True), begin, self._lines[block])
        ]
        if len(found) != min(self._stride, self.count - block * self._stride):
            raise RowError(f"{self._path}: changed while it was used; restore it and start the agent again")
        return found

    def _index(self) -> None:
        with open(self._path, "rb") as file:
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            typical = min(len(file.readline(_BLOCK)) or 1 for _ in range(8))  # the first may be a long comment
            self._stride = max(1, min(STRIDE, _BLOCK // typical))
            file.seek(start)
            self._index_rows(iter(functools.partial(file.readline, MAX_ROW + 1), b""), start)
            self._marks.append(file.tell())

    def _index_rows(self, file: Iterator[bytes], offset: int) -> None:
        """Walk the file once, a block of rows at a time; line by line only where a block holds more than plain rows."""
        first, line = 0, 1
        while lines := list(itertools.islice(file, self._stride - self.count % self._stride)):
            if max(map(len, lines)) > MAX_ROW:
                at = line + next(at for at, each in enumerate(lines) if len(each) > MAX_ROW)
                raise RowError(
                    f"{self._path}:{at}: expected at most {MAX_ROW} bytes in a row, found more; put long values into files of their "
                    "own and their paths into the table"
                )
            if self.count == 0 or not self._plain(lines):
                first = self._index_lines(lines, offset, line, first)
            else:
                if self.count % self._stride == 0:
                    self._marks.append(offset)
                    self._lines.append(line)
                self.count += len(lines)
            offset, line = offset + sum(map(len, lines)), line + len(lines)

    def _plain(self, lines: list[bytes]) -> bool:
        """Whether every line is a row of the expected width, without comment, carriage return or emptiness to look at."""
        block = b"".join(lines)
        if b"#" in block or b"\r" in block:
            return False
        if self._separator is None:
            return set(map(len, map(bytes.split, lines))) == {self.columns}
        commas = set(map(bytes.count, lines, itertools.repeat(self._separator)))
        return commas == {self.columns - 1} and all(map(bytes.strip, lines))

    def _index_lines(self, lines: Iterable[bytes], start: int, number: int, first: int) -> int:
        for line, offset, content in _rows(lines, start, number):
            width = len(content.split()) if self._separator is None else content.count(self._separator) + 1
            if self.count == 0:
                self.columns, first = width, line
            elif width != self.columns:
                raise RowError(
                    f"{self._path}:{line}: expected {self.columns} columns as in line {first}, found {width}; "
                    "give every line the same number of values"
                )
            if b"\r" in content:
                raise RowError(
                    f"{self._path}:{line}: expected lines that end in \\n or \\r\\n, found a bare \\r; convert the file"
                )
            if self.count % self._stride == 0:
                self._marks.append(offset)
                self._lines.append(line)
            self.count += 1
        return first


def _rows(lines: Iterable[bytes], offset: int, number: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, offset, text without comment and end) of each row."""
    for line in lines:
        content = line[: line.index(b"#")] if b"#" in line else line
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        if content.strip():
            yield number, offset, content
        offset, number = offset + len(line), number + 1


def open_rows(path: str, index: str = "") -> Rows:
    """Open a table; build its index unless ``index`` is a file that keeps it.

    Raises:
        RowError: it can't be read.
    """
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending == ".npy":
            return npy.ArrayRows(path)
        if ending in (".csv", ".tab"):
            kept = rowindex.load(index, path) if index else None
            return TextRows(path, b"," if ending == ".csv" else None, kept)
    except npy.NpyError as error:
        raise RowError(f"{path}: {error}") from error
    except OSError as error:
        raise RowError(f"{path}: can't be read: {error.strerror}") from error
    raise RowError(f"{path}: expected a sample file that ends in .csv, .tab or .npy, found {ending or 'no ending'!r}")
