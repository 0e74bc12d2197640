"""A set of one step's task indices: a range with an optional mask.

Chunks, reports, retries and the rest of a lost chunk all speak of task indices, and none of them may grow with the
number of tasks. A range costs two integers; a mask costs a bit per task of its range. 30 % random failures in 10,000
tasks are 1,250 bytes as a mask and 25 KB as a list of ranges, so masks it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

MAX_WIDTH = 1 << 20
"""The widest range that carries a mask: 128 KiB of bits, more than any message may hold."""


def _decode_mask(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > MAX_WIDTH // 4:
            raise ValueError("the mask is longer than any chunk")
        return int.from_bytes(base64.b64decode(value, validate=True), "little")
    return value


def _encode_mask(mask: int | None) -> str | None:
    if mask is None:
        return None
    return base64.b64encode(mask.to_bytes((mask.bit_length() + 7) // 8, "little")).decode("ascii")


Mask = Annotated[int | None, BeforeValidator(_decode_mask), PlainSerializer(_encode_mask)]


class TaskSet(BaseModel):
    """The tasks ``first … first + width - 1``, or those of them whose bit is set in ``mask``.

    Invariants: ``mask`` is never zero, never wider than ``width``, and None (not all ones) where every task is meant,
    so that equal sets over the same range compare equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(ge=0)
    width: int = Field(ge=1)
    mask: Mask = None

    @model_validator(mode="before")
    @classmethod
    def _full_mask_is_no_mask(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mask") is not None:
            mask, width = _decode_mask(data["mask"]), data.get("width")
            if isinstance(mask, int) and isinstance(width, int) and 0 < width <= MAX_WIDTH:
                return {**data, "mask": None if mask == (1 << width) - 1 else mask}
        return data

    @model_validator(mode="after")
    def _mask_fits(self) -> TaskSet:
        if self.mask is not None and not (0 < self.mask < 1 << min(self.width, MAX_WIDTH)):
            raise ValueError(f"the mask must name between 1 and {self.width} tasks of its range")
        return self

    @classmethod
    def of(cls, indices: Iterable[int]) -> TaskSet:
        """Return the set of ``indices``, in any order.

        Raises:
            ValueError: there are none, or they lie further apart than `MAX_WIDTH`.
        """
        ordered = sorted(indices)
        if not ordered:
            raise ValueError("a set of tasks names at least one task")
        first, width = ordered[0], ordered[-1] - ordered[0] + 1
        if width == len(set(ordered)):
            return cls(first=first, width=width)
        mask = 0
        for index in ordered:
            mask |= 1 << (index - first)
        return cls(first=first, width=width, mask=mask)

    @classmethod
    def from_bits(cls, first: int, bits: int) -> TaskSet | None:
        """Return the set of those tasks whose bit is set in ``bits`` (bit 0 is task ``first``), trimmed; None if empty."""
        if not bits:
            return None
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        width = bits.bit_length()
        return cls(first=first + skip, width=width, mask=bits)

    @property
    def end(self) -> int:
        """One past the last index that the range covers."""
        return self.first + self.width

    @property
    def bits(self) -> int:
        """The set as an integer whose bit ``i`` is task ``first + i``."""
        return (1 << self.width) - 1 if self.mask is None else self.mask

    def bits_from(self, first: int) -> int:
        """Return the set as an integer whose bit ``i`` is task ``first + i``, without the tasks below."""
        shift = self.first - first
        return self.bits << shift if shift >= 0 else self.bits >> -shift

    def within(self, first: int, width: int) -> int:
        """Return the bits of those of the ``width`` tasks from ``first`` that are in the set; it may be far wider itself."""
        low, high = max(self.first, first), min(self.end, first + width)
        if low >= high:
            return 0
        bits = (1 << (high - low)) - 1
        if self.mask is not None:
            bits &= self.mask >> (low - self.first)
        return bits << (low - first)

    def __len__(self) -> int:
        return self.width if self.mask is None else self.mask.bit_count()

    def __contains__(self, index: object) -> bool:
        return (
            isinstance(index, int)
            and self.first <= index < self.end
            and (self.mask is None or bool(self.mask >> (index - self.first) & 1))
        )

    def indices(self) -> Iterator[int]:
        """Yield the task indices in order."""
        if self.mask is None:
            yield from range(self.first, self.end)
            return
        mask = self.mask
        while mask:
            low = mask & -mask
            yield self.first + low.bit_length() - 1
            mask ^= low
