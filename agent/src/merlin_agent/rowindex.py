"""Where the rows of a table of text begin, kept beside the study's own files: whoever measures a table of gigabytes reads it once for all.

The file is a line of JSON, then two arrays of 64-bit numbers. It says of which table it is (size and time of its last change), so
that an agent that finds another table, or a damaged file, builds the index anew.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from array import array
from dataclasses import dataclass
from typing import Final

NAME: Final = "samples.index"
"""In ``merlin_info``."""
_ITEM: Final = 8
_MAX_HEAD: Final = 4096


@dataclass(frozen=True)
class Index:
    """``marks`` is where every ``stride``-th row begins, in bytes, and last where the rows end; ``lines`` in which lines these rows stand."""

    count: int
    columns: int
    stride: int
    marks: array[int]
    lines: array[int]


def save(file: str, table: str, index: Index) -> None:
    """Write an index; whole, or not at all.

    Args:
        file: Where it shall lie.
        table: The table that it is of.
        index: The index.

    Raises:
        OSError: it can't be written.
    """
    body = index.marks.tobytes() + index.lines.tobytes()
    head = {
        **_of(table),
        "count": index.count,
        "columns": index.columns,
        "stride": index.stride,
        "marks": len(index.marks),
        "lines": len(index.lines),
        "crc32": zlib.crc32(body),
    }
    part = f"{file}.{os.getpid()}"
    with open(part, "wb") as out:
        out.write(json.dumps(head).encode() + b"\n" + body)
    os.replace(part, file)


def load(file: str, table: str) -> Index | None:
    """Return the index of a table; None where none is kept, or not of this table as it is now."""
    try:
        with open(file, "rb") as kept:
            head = json.loads(kept.readline(_MAX_HEAD))
            if {key: head[key] for key in ("size", "changed", "order")} != _of(table):
                return None
            marks, lines = _numbers(kept.read(head["marks"] * _ITEM)), _numbers(kept.read(head["lines"] * _ITEM))
        index = Index(int(head["count"]), int(head["columns"]), int(head["stride"]), marks, lines)
        whole = (len(marks), len(lines), zlib.crc32(marks.tobytes() + lines.tobytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole == (head["marks"], head["lines"], head["crc32"]) else None


def _of(table: str) -> dict[str, object]:
    found = os.stat(table)
    return {"size": found.st_size, "changed": found.st_mtime_ns, "order": sys.byteorder}


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    return numbers
