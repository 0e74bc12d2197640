"""Content that is larger than a message of the broker: one subject for its head, one for each further part.

The head, at the content's own subject, begins with the number of parts that follow (4 bytes, big-endian); part n lies at
``<subject>.<n>``, counted from 1. Whoever stores it writes the head last, so where a head is, all of it is. What the subject
names is the digest of the content, so readers check what they joined.
"""

from __future__ import annotations

from typing import Final

PART: Final = 640 << 10
"""Bytes of one part: sealed it stays well below the broker's usual bound of 1 MiB for a message."""
MAX_PARTS: Final = 512
_COUNT: Final = 4


class BlobError(ValueError):
    """A head that is none."""


def split(content: bytes) -> tuple[bytes, list[bytes]]:
    """Return the head and the further parts.

    Raises:
        BlobError: it is too large.
    """
    rest = [content[at : at + PART] for at in range(PART, len(content), PART)]
    if len(rest) > MAX_PARTS:
        raise BlobError(f"expected at most {(MAX_PARTS + 1) * PART} bytes, found {len(content)}")
    return len(rest).to_bytes(_COUNT, "big") + content[:PART], rest


def read_head(head: bytes) -> tuple[int, bytes]:
    """Return how many parts follow, and the content's beginning.

    Raises:
        BlobError: it is no head.
    """
    count = int.from_bytes(head[:_COUNT], "big")
    if len(head) < _COUNT or count > MAX_PARTS:
        raise BlobError("expected the head of some content, found something else")
    return count, head[_COUNT:]


def part(subject: str, number: int) -> str:
    """Return the subject of a part."""
    return f"{subject}.{number}"
