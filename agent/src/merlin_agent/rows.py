"""Rows of a sample table by their number, from ``.csv``, ``.tab`` or ``.npy``: an index is built once, rows are read when asked for.

A table of text stays on disk, and every 64th row's place is kept: 10⁸ rows cost 25 MB. It is read, not mapped: whoever shortens a
mapped file kills its readers. Values are text, split as ``numpy.loadtxt(dtype=str)`` does, which upstream uses: ``.csv`` at commas (blanks
stay), ``.tab`` at blanks, ``#`` starts a comment, empty lines don't count. On top of that a byte order mark is dropped. Rows of unequal
length are refused with the number of the line.
"""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from merlin_agent import npy
from merlin_agent.files import Reading

STRIDE: Final = 64
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
    """Rows of a text file; ``separator`` None splits at any blanks."""

    def __init__(self, path: str, separator: bytes | None) -> None:
        self._path, self._separator = path, separator
        self._file = Reading(path)
        self._marks, self._lines = array("Q"), array("Q")
        """Where every 64th row begins, and in which line; last the end."""
        self.count = 0
        self.columns = 0
        self._index()
        self._block = functools.lru_cache(maxsize=64)(self._read_block)

    def row(self, number: int) -> tuple[str, ...]:
        """See `Rows`."""
        if not 0 <= number < self.count:
            raise RowError(f"{self._path}: expected a row {number}, found {self.count} rows")
        block, at = divmod(number, STRIDE)
        line, content = self._block(block)[at]
        try:
            return tuple(value.decode() for value in content.split(self._separator))
        except UnicodeDecodeError as error:
            found = f"{error.object[error.start]:#04x}"
            raise RowError(f"{self._path}:{line}: expected UTF-8, found byte {found}; convert the file") from error

    def _read_block(self, block: int) -> list[tuple[int, bytes]]:
        begin, end = self._marks[block], self._marks[block + 1]
        data = self._file.at(begin, end - begin)
        found = [
            (line, content) for line, _, content in _rows(data.splitlines(keepends=True), begin, self._lines[block])
        ]
        if len(found) != min(STRIDE, self.count - block * STRIDE):
            raise RowError(f"{self._path}: changed while it was used; restore it and start the agent again")
        return found

    def _index(self) -> None:
        with open(self._path, "rb") as file:
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            self._index_rows(file, start)
            self._marks.append(file.tell())

    def _index_rows(self, file: Iterable[bytes], start: int) -> None:
        first = 0
        for line, offset, content in _rows(file, start, 1):
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
            if self.count % STRIDE == 0:
                self._marks.append(offset)
                self._lines.append(line)
            self.count += 1


def _rows(lines: Iterable[bytes], offset: int, number: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, offset, text without comment and end) of each row."""
    for line in lines:
        content = line[: line.index(b"#")] if b"#" in line else line
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        if content.strip():
            yield number, offset, content
        offset, number = offset + len(line), number + 1


def open_rows(path: str) -> Rows:
    """Open a table and build its index.

    Raises:
        RowError: it can't be read.
    """
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending == ".npy":
            return npy.ArrayRows(path)
        if ending in (".csv", ".tab"):
            return TextRows(path, b"," if ending == ".csv" else None)
    except npy.NpyError as error:
        raise RowError(f"{path}: {error}") from error
    except OSError as error:
        raise RowError(f"{path}: can't be read: {error.strerror}") from error
    raise RowError(f"{path}: expected a sample file that ends in .csv, .tab or .npy, found {ending or 'no ending'!r}")
