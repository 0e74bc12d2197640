"""A fence: what is known of one chunk that is out."""

from __future__ import annotations

from dataclasses import dataclass, field

from merlin_study import wire
from merlin_study.taskset import TaskSet


@dataclass(slots=True)
class Fence:
    """A chunk that is out: published, and started once ``holder`` is known. ``open`` has a bit per task without a result.

    All reports up to ``serial`` are in, and those in ``ahead``; ``end`` is the last one's serial, once it is known.
    """

    chunk: wire.Chunk
    open: int
    holder: str | None = None
    serial: int = 0
    ahead: set[int] = field(default_factory=set)
    end: int = 0
    refused: bool = False
    felled: int = 0
    """A bit per task that a host of the holder's was lost with."""

    def note(self, serial: int) -> bool:
        """Note that a report came; False where it did before."""
        if serial <= self.serial or serial in self.ahead:
            return False
        self.ahead.add(serial)
        while self.serial + 1 in self.ahead:
            self.serial += 1
            self.ahead.remove(self.serial)
        return True

    @property
    def over(self) -> bool:
        """Whether the holder gave the chunk up, and all that it told before is in."""
        return 0 < self.end <= self.serial

    @property
    def remaining(self) -> TaskSet | None:
        """The tasks of the chunk that have no result yet."""
        return TaskSet.from_bits(self.chunk.tasks.first, self.open)
