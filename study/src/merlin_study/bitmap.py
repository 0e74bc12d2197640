"""A bit for each task of a step, in blocks of 64 KiB that exist only once they are touched.

A step may have 10⁸ tasks: 12.5 MB of bits once all are touched, nothing before. A block that is all ones is a marker,
not memory, so a step that runs through from the front holds one real block at a time. A block has memory up to its last
bit that was touched, so that the steps of ten thousand small studies cost what their tasks do. Setting bits inside a Python
integer of that size would copy it each time (4.4 ms), so blocks are byte arrays and only the bytes in question are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from merlin_study.taskset import TaskSet

BLOCK_BYTES: Final = 64 * 1024
BLOCK_BITS: Final = BLOCK_BYTES * 8
_FULL: Final = b"\xff" * BLOCK_BYTES
_LEAST: Final = 64
"""Bytes of a block at least."""


class Bitmap:
    """A growing set of non-negative integers with cheap ranges, masks and counts."""

    __slots__ = ("_blocks", "_count", "_digests")

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray | None] = {}  # None: every bit of the block is set; beyond the end none is
        self._count = 0
        self._digests: dict[int, str] = {}
        """Of blocks that have not changed since `digests` was asked."""

    @classmethod
    def of_blocks(
        cls, full: Iterable[tuple[int, int]], digests: Mapping[int, str], blocks: Mapping[str, bytes]
    ) -> Bitmap:
        """Return what `digests` told, with the content of the blocks.

        Raises:
            KeyError: a block is not there, or is none.
        """
        made = cls()
        for first, count in full:
            made._blocks.update(dict.fromkeys(range(first, first + count)))
            made._count += count * BLOCK_BITS
        for at, digest in digests.items():
            if len(blocks[digest]) != BLOCK_BYTES:
                raise KeyError(digest)
            block = bytearray(blocks[digest].rstrip(b"\0"))
            made._blocks[at], made._digests[at] = block, digest
            made._count += int.from_bytes(block, "little").bit_count()
        return made

    def digests(self) -> tuple[tuple[tuple[int, int], ...], dict[int, str]]:
        """Return ranges (first, count) of full blocks, and the digest of each other block by its number."""
        full: list[tuple[int, int]] = []
        found: dict[int, str] = {}
        for at in sorted(self._blocks):
            data = self._blocks[at]
            if data is not None:
                if at not in self._digests:
                    self._digests[at] = hashlib.sha256(self.block(at)).hexdigest()[:40]
                found[at] = self._digests[at]
            elif full and sum(full[-1]) == at:
                full[-1] = full[-1][0], full[-1][1] + 1
            else:
                full.append((at, 1))
        return tuple(full), found

    def block(self, at: int) -> bytes:
        """Return the bits of a block that is not full, all of them."""
        return bytes(self._blocks[at] or b"").ljust(BLOCK_BYTES, b"\0")

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        return bool(self.read(index, 1))

    def read(self, first: int, width: int) -> int:
        """Return bits ``first … first + width - 1`` as an integer whose bit 0 is ``first``."""
        result, got = 0, 0
        while got < width:
            block, offset = divmod(first + got, BLOCK_BITS)
            take = min(width - got, BLOCK_BITS - offset)
            result |= self._read_block(block, offset, take) << got
            got += take
        return result

    def _read_block(self, block: int, offset: int, width: int) -> int:
        if block not in self._blocks:
            return 0
        data = self._blocks[block]
        if data is None:
            return (1 << width) - 1
        low, high = offset >> 3, (offset + width + 7) >> 3
        return (int.from_bytes(data[low:high], "little") >> (offset & 7)) & ((1 << width) - 1)

    def add(self, tasks: TaskSet) -> int:
        """Set the bits of ``tasks``; return how many were not set before."""
        if tasks.mask is None:
            return self.add_range(tasks.first, tasks.width)
        return self.add_bits(tasks.first, tasks.width, tasks.mask)

    def add_range(self, first: int, width: int) -> int:
        """Set ``width`` bits from ``first``; return how many were not set before."""
        before, got = self._count, 0
        while got < width:
            block, offset = divmod(first + got, BLOCK_BITS)
            take = min(width - got, BLOCK_BITS - offset)
            if take == BLOCK_BITS:
                self._count += BLOCK_BITS - self._block_count(block)
                self._blocks[block] = None
                self._digests.pop(block, None)
            else:
                self._write_block(block, offset, take, (1 << take) - 1)
            got += take
        return self._count - before

    def add_bits(self, first: int, width: int, bits: int) -> int:
        """Set those of ``width`` bits from ``first`` that are set in ``bits``; return how many were not set before."""
        before, got = self._count, 0
        while got < width:
            block, offset = divmod(first + got, BLOCK_BITS)
            take = min(width - got, BLOCK_BITS - offset)
            part = (bits >> got) & ((1 << take) - 1)
            if part:
                self._write_block(block, offset, take, part)
            got += take
        return self._count - before

    def _write_block(self, block: int, offset: int, width: int, bits: int) -> None:
        data = self._blocks.setdefault(block, bytearray())
        if data is None:
            return
        low, high = offset >> 3, (offset + width + 7) >> 3
        if high > len(data):  # doubled at least, so that a step which runs through copies each byte once or twice
            data.extend(bytes(max(_LEAST, 1 << (high - 1).bit_length()) - len(data)))
        old = int.from_bytes(data[low:high], "little")
        new = old | bits << (offset & 7)
        if new == old:
            return
        self._digests.pop(block, None)
        data[low:high] = new.to_bytes(high - low, "little")
        self._count += new.bit_count() - old.bit_count()
        if len(data) == BLOCK_BYTES and data[-1] == 0xFF and data == _FULL:
            self._blocks[block] = None
            self._digests.pop(block, None)

    def remove(self, tasks: TaskSet) -> int:
        """Clear the bits of ``tasks``; return how many were set before."""
        before = self._count
        lowest, highest = tasks.first // BLOCK_BITS, (tasks.end - 1) // BLOCK_BITS
        # The range may be far wider than what is here.
        near = range(lowest, highest + 1) if highest - lowest < len(self._blocks) else tuple(self._blocks)
        for block in near:
            if lowest <= block <= highest and block in self._blocks:
                first = max(tasks.first, block * BLOCK_BITS)
                width = min(tasks.end, (block + 1) * BLOCK_BITS) - first
                part = tasks.within(first, width)
                if part.bit_count() == BLOCK_BITS:
                    self._count -= self._block_count(block)
                    del self._blocks[block]
                elif part:
                    self._clear_block(block, first - block * BLOCK_BITS, width, part)
        return before - self._count

    def _clear_block(self, block: int, offset: int, width: int, bits: int) -> None:
        data = self._blocks[block]
        self._digests.pop(block, None)
        if data is None:
            data = self._blocks[block] = bytearray(_FULL)
        low, high = offset >> 3, min(len(data), (offset + width + 7) >> 3)
        if low >= high:
            return
        old = int.from_bytes(data[low:high], "little")
        new = old & ~(bits << (offset & 7))
        data[low:high] = new.to_bytes(high - low, "little")
        self._count -= old.bit_count() - new.bit_count()
        if not new and not data.strip(b"\0"):
            del self._blocks[block]

    def _block_count(self, block: int) -> int:
        if block not in self._blocks:
            return 0
        data = self._blocks[block]
        return BLOCK_BITS if data is None else int.from_bytes(data, "little").bit_count()

    def sets(self, window: int = 4096) -> Iterator[TaskSet]:
        """Yield the members as sets of at most ``window`` tasks' width, in order."""
        for block in sorted(self._blocks):
            for offset in range(0, BLOCK_BITS, window):
                bits = self._read_block(block, offset, min(window, BLOCK_BITS - offset))
                found = TaskSet.from_bits(block * BLOCK_BITS + offset, bits)
                if found is not None:
                    yield found
