"""Shapes: what a task needs, as one subject token such as ``n1-c1-g0-m0-w0``.

Nodes, cores, GPUs, memory and declared-walltime class. Agents pull only shapes that fit what they have left.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Final

WALLTIME_CLASSES: Final = (15 * 60, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
"""Upper ends of the declared-walltime classes in seconds; class 0 is "none declared", 6 is "longer"."""

MEMORY_UNIT: Final = 256
"""MiB; shapes are rounded up to it, so that there are not too many of them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one task occupies; ``walltime_class`` is 0 for none declared, else 1 … 6.

    ``memory`` is that of each node in units of `MEMORY_UNIT`, rounded up; 0: none declared.
    """

    nodes: int = 1
    cores: int = 1
    gpus: int = 0
    memory: int = 0
    walltime_class: int = 0

    @property
    def token(self) -> str:
        """The shape as a subject token."""
        return f"n{self.nodes}-c{self.cores}-g{self.gpus}-m{self.memory}-w{self.walltime_class}"

    def on(self, *, cores: int, memory: int) -> Shape:
        """Return what one task takes of nodes with so many cores and MiB, memory counted in cores.

        Each core brings its share of the node's memory. A task that declares more than those of its cores takes as many cores as have it,
        so that memory is never given out twice; what declares none is taken to need no more than the shares of its cores. Where
        ``memory`` is 0, a node's is not known, and none is counted. More than a node has is more cores than it has.
        """
        if not self.memory or not memory:
            return self
        return dataclasses.replace(self, cores=max(self.cores, -(-self.memory * MEMORY_UNIT * cores // memory)))

    def fits(self, *, nodes: int, cores: int, gpus: int) -> bool:
        """Whether one task fits an agent of so many nodes with so many cores and GPUs each."""
        return self.nodes <= nodes and self.cores <= cores and self.gpus <= gpus

    def cost(self, *, cores: int, gpus: int) -> int:
        """Return how many cores' worth of a node with ``cores`` and ``gpus`` one task takes.

        A task that has a quarter of the GPUs leaves room for three of its kind, however few cores it has.
        """
        by_gpus = -(-self.gpus * cores // gpus) if gpus else 0
        return max(1, self.cores, by_gpus)

    @property
    def more_than(self) -> int:
        """The seconds that each task of this shape declares more than; 0 where none is declared."""
        return WALLTIME_CLASSES[self.walltime_class - 2] if self.walltime_class > 1 else 0

    @property
    def least_seconds(self) -> int:
        """The declared time that a task of this shape may need at most; 0 where none is declared or it is open-ended."""
        if not 1 <= self.walltime_class <= len(WALLTIME_CLASSES):
            return 0
        return WALLTIME_CLASSES[self.walltime_class - 1]


def walltime_class(seconds: int | None) -> int:
    """Return the class of a declared walltime."""
    if seconds is None:
        return 0
    for number, limit in enumerate(WALLTIME_CLASSES, start=1):
        if seconds <= limit:
            return number
    return len(WALLTIME_CLASSES) + 1


@functools.lru_cache(maxsize=1024)
def parse(token: str) -> Shape:
    """Parse a token.

    Raises:
        ValueError: it is none.
    """
    parts = token.split("-")
    if len(parts) != 5 or any(part[:1] != letter for part, letter in zip(parts, "ncgmw", strict=True)):
        raise ValueError(f"not a shape: {token!r}")
    return Shape(*(int(part[1:]) for part in parts))
