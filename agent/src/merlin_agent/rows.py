"""Rows of a sample table by their number, from ``.csv``, ``.tab`` or ``.npy``: an index is built once, rows are read when asked for.

A table of text is mapped, not read, and every 64th row's place is kept: 10⁸ rows cost 12 MB. Values are text, split as
``numpy.loadtxt(dtype=str)`` does, which upstream uses: ``.csv`` at commas (blanks stay), ``.tab`` at blanks, ``#`` starts a comment,
empty lines don't count. On top of that a byte order mark is dropped. Rows of unequal length are refused with the number of the line.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator
from typing import Final, Protocol

from merlin_agent import npy

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
        self._data = _mapped(path)
        self._marks = array("Q")
        self._lines = array("Q")
        self.count = 0
        self.columns = 0
        self._index()

    def row(self, number: int) -> tuple[str, ...]:
        """See `Rows`."""
        if not 0 <= number < self.count:
            raise RowError(f"{self._path}: expected a row {number}, found {self.count} rows")
        block, skip = divmod(number, STRIDE)
        for at, (line, _, content) in enumerate(self._rows(self._marks[block], self._lines[block])):
            if at == skip:
                return self._decoded(content, line)
        raise RowError(f"{self._path}: changed while it was used; restore it and restart the agent")

    def _index(self) -> None:
        start = len(_BOM) if self._data[: len(_BOM)] == _BOM else 0
        first = 0
        for line, offset, content in self._rows(start, 1):
            width = self._width(content)
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

    def _rows(self, offset: int, line: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield (line number, offset, text without comment) of each row from a place on."""
        data, size = self._data, len(self._data)
        while offset < size:
            end = data.find(b"\n", offset)
            end = size if end < 0 else end
            content = data[offset:end]
            if b"#" in content:
                content = content[: content.index(b"#")]
            content = content.removesuffix(b"\r")
            if content.strip():
                yield line, offset, content
            offset, line = end + 1, line + 1

    def _width(self, content: bytes) -> int:
        return len(content.split()) if self._separator is None else content.count(self._separator) + 1

    def _decoded(self, content: bytes, line: int) -> tuple[str, ...]:
        try:
            return tuple(value.decode() for value in content.split(self._separator))
        except UnicodeDecodeError as error:
            raise RowError(
                f"{self._path}:{line}: expected UTF-8, found byte {content[error.start]:#04x}; convert the file"
            ) from error


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


def _mapped(path: str) -> bytes | mmap.mmap:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
