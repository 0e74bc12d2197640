"""A reader of ``.npy`` files: the header, and values formatted as ``str()`` of a NumPy scalar.

Upstream loads samples with NumPy and writes each value with ``str``. The agent runs on thousands of nodes and needs one row at a
time, so it reads and decodes what is asked for; NumPy is only the oracle of the tests. Pickled objects are refused:
reading them runs whatever the file says.
"""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from merlin_agent.files import Reading

_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 64 * 1024
MAX_ROW: Final = 8 << 20
"""Bytes of one row: a million numbers. They are read for every task."""
_INTEGERS: Final = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_FLOATS: Final = {"f2": ("e", 5), "f4": ("f", 9), "f8": ("d", 17)}
_COMPLEX: Final = {"c8": ("f", 4), "c16": ("d", 8)}
_HIGH: Final = {"f2": 1e3, "f4": 1e6}
"""From here on NumPy (since 2.4; before, from 1e16 on) writes narrow floats with an exponent."""


class NpyError(ValueError):
    """What is wrong with the file, without its path."""


class ArrayRows:
    """`rows.Rows` of an array of one or two dimensions; one of one dimension is a column."""

    def __init__(self, path: str) -> None:
        self._file = Reading(path)
        header = _header(self._file.at(0, _MAX_HEADER + 16))
        shape = header.shape
        if len(shape) not in (1, 2):
            raise NpyError(f"expected an array of one or two dimensions, found shape {shape}; reshape it")
        self.count = shape[0]
        self.columns = shape[1] if len(shape) == 2 else 1
        self._size, self._read = _reader(header.descr)
        if self.columns * self._size > MAX_ROW:
            raise NpyError(
                f"expected at most {MAX_ROW} bytes in a row, found {self.columns} columns of {self._size} bytes; put long rows into files "
                "of their own and their paths into the table"
            )
        self._by_column = header.by_column and len(shape) == 2
        self._start = header.start
        needed = self._start + self.count * self.columns * self._size
        found = self._file.size
        if found < needed:
            raise NpyError(
                f"expected {needed} bytes for shape {shape}, found {found}; it was cut short, write it again"
            )

    def row(self, number: int) -> tuple[str, ...]:
        """See `rows.Rows`."""
        if not 0 <= number < self.count:
            raise NpyError(f"expected a row {number}, found {self.count} rows")
        if self._by_column:
            values = [self._read(self._at(column * self.count + number, 1), 0) for column in range(self.columns)]
        else:
            data = self._at(number * self.columns, self.columns)
            values = [self._read(data, column * self._size) for column in range(self.columns)]
        return tuple(values)

    def _at(self, place: int, values: int) -> bytes:
        length = values * self._size
        data = self._file.at(self._start + place * self._size, length)
        if len(data) != length:
            raise NpyError("changed while it was used; restore it and start the agent again")
        return data


_Reader = Callable[[bytes, int], str]


@dataclass(frozen=True, slots=True)
class _Header:
    start: int
    descr: object
    by_column: bool
    shape: tuple[int, ...]


def _header(data: bytes) -> _Header:
    if data[:6] != _MAGIC:
        raise NpyError(
            "expected a file that numpy.save wrote, found something else; write the array with numpy.save, or name a .csv file"
        )
    wide = data[6] >= 2
    length = int.from_bytes(data[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    if length > _MAX_HEADER or start > len(data):
        raise NpyError(f"expected a header of at most {_MAX_HEADER} bytes, found {length}")
    try:
        header = ast.literal_eval(data[start - length : start].decode("utf-8" if data[6] >= 3 else "latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # it may nest without end
        raise NpyError("expected NumPy's header, found something else; write the array with numpy.save") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise NpyError("expected NumPy's header with descr, fortran_order and shape")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise NpyError(f"expected a shape, found {shape!r}")
    return _Header(start, header["descr"], bool(header["fortran_order"]), shape)


def _reader(descr: object) -> tuple[int, _Reader]:
    """Return a value's size in bytes, and what makes text of it."""
    if not isinstance(descr, str) or len(descr) < 2:
        raise NpyError(f"expected plain numbers or text, found {descr!r}; save the columns as one array of one type")
    order, kind = (">" if descr[0] == ">" else "<"), descr[1:]
    if kind == "b1":
        return 1, lambda data, at: str(data[at] != 0)
    if kind in _INTEGERS:
        return _unpacking(struct.Struct(order + _INTEGERS[kind]), str)
    if kind in _FLOATS:
        letter, digits = _FLOATS[kind]
        return _unpacking(struct.Struct(order + letter), _formatter(kind, letter, digits))
    if kind in _COMPLEX:
        return _complex(order, kind)
    if kind[0] == "U" and kind[1:].isdigit():
        size, codec = int(kind[1:]) * 4, "utf-32-be" if order == ">" else "utf-32-le"
        return size, lambda data, at: data[at : at + size].decode(codec).rstrip("\0")
    if kind[0] == "S" and kind[1:].isdigit():
        size = int(kind[1:])
        return size, lambda data, at: str(data[at : at + size].rstrip(b"\0"))
    if kind.startswith("O"):
        raise NpyError(
            "expected numbers or text, found pickled objects, which run code when they are read; save with allow_pickle=False"
        )
    raise NpyError(f"expected numbers or text, found the type {descr!r}; convert it, with astype(str) for instance")


def _unpacking(layout: struct.Struct, text: Callable[[float], str]) -> tuple[int, _Reader]:
    return layout.size, lambda data, at: text(layout.unpack_from(data, at)[0])


def _complex(order: str, kind: str) -> tuple[int, _Reader]:
    letter, _ = _COMPLEX[kind]
    layout = struct.Struct(order + 2 * letter)
    part = repr if letter == "d" else _formatter("f4", "f", 9)

    def read(data: bytes, at: int) -> str:
        real, imaginary = layout.unpack_from(data, at)
        imaginary_text = _without_zero(part(imaginary))
        if real == 0 and math.copysign(1, real) > 0:
            return f"{imaginary_text}j"
        sign = "" if imaginary_text.startswith("-") else "+"
        return f"({_without_zero(part(real))}{sign}{imaginary_text}j)"

    return layout.size, read


def _without_zero(text: str) -> str:
    return text.removesuffix(".0")


def _formatter(kind: str, letter: str, digits: int) -> Callable[[float], str]:
    """Return what writes a float of this width with the fewest digits that read back the same, as NumPy does."""
    if kind == "f8":
        return repr
    layout = struct.Struct("<" + letter)
    high = _HIGH[kind]

    def text(value: float) -> str:
        if not math.isfinite(value) or value == 0:
            return repr(value)
        short = next(text for text in _shorter(value, digits) if _same(layout, float(text), value))
        mantissa, exponent = short.split("e")
        if 1e-4 <= abs(value) < high:
            return _positional(short)
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{exponent}"

    return text


def _shorter(value: float, digits: int) -> Iterator[str]:
    """Yield ``value`` with more and more digits; each also rounded up, which at a power of two may be the one that reads back."""
    for precision in range(1, digits + 1):
        near = f"{value:.{precision - 1}e}"
        yield near
        step = math.copysign(10.0 ** (int(near.split("e")[1]) - precision + 1), value)
        yield f"{float(near) + step:.{precision - 1}e}"


def _same(layout: struct.Struct, rounded: float, value: float) -> bool:
    try:
        return bool(layout.unpack(layout.pack(rounded))[0] == value)
    except OverflowError:  # rounded up beyond the type
        return False


def _positional(short: str) -> str:
    """Return a number in scientific notation written out, with at least one digit after the point."""
    mantissa, exponent = short.split("e")
    places = max(1, len(mantissa.partition(".")[2]) - int(exponent))
    return f"{float(short):.{places}f}"
