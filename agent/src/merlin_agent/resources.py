"""What tasks take of this host while they run: cores, and GPUs by their names. Pure bookkeeping, without a lock of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from merlin_study.shape import Shape

_VISIBLE: Final = (b"CUDA_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES", b"ZE_AFFINITY_MASK")
"""How programs of NVIDIA, AMD and Intel are told which devices are theirs."""
_VISIBLE_OF_THESE: Final = b"HIP_VISIBLE_DEVICES"
"""AMD's runtime counts what ``ROCR_VISIBLE_DEVICES`` left by this one, and without it by ``CUDA_VISIBLE_DEVICES``."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one running task has: how many cores, and which GPUs.

    ``cpus``: to which of the kernel's processors it is bound; empty: to none in particular. A task of several ``hosts`` has
    nothing of this pool by itself: what it has stands under ``task``, see `wide`. ``pins``: the processors that processes of a launcher
    are to run on, by host (empty: this one); none where the task has the whole host.
    """

    cores: int
    gpus: tuple[str, ...] = ()
    cpus: frozenset[int] = frozenset()
    hosts: tuple[str, ...] = ()
    task: str = ""
    parts: tuple[frozenset[int], ...] = ()
    pins: tuple[tuple[str, frozenset[int]], ...] = ()

    def variables(self) -> dict[bytes, bytes]:
        """Return what the task's environment says of it; nothing where it has no GPU, so that it sees what the job does."""
        if not self.gpus:
            return {}
        left = ",".join(map(str, range(len(self.gpus))))
        return {**dict.fromkeys(_VISIBLE, ",".join(self.gpus).encode()), _VISIBLE_OF_THESE: left.encode()}


NOTHING: Final = Share(0)


def by_core(cpus: Iterable[int], siblings: Mapping[int, str]) -> tuple[int, ...]:
    """Return processors with the threads of a core side by side, the cores by their first ones.

    Args:
        cpus: Those that we may use.
        siblings: What ``topology/thread_siblings_list`` says of each: ``0,64`` or ``0-1``; the first number there stands for the core.
    """

    def place(cpu: int) -> tuple[int, int]:
        first = re.match(r"\d+", siblings.get(cpu, ""))
        return (int(first[0]) if first else cpu), cpu

    return tuple(sorted(cpus, key=place))


def parts(cpus: Sequence[int], cores: int) -> tuple[frozenset[int], ...]:
    """Divide processors among cores, neighbours together (threads of a core are, see `by_core`); none where there are too few."""
    each = len(cpus) // cores
    return tuple(frozenset(cpus[at * each : (at + 1) * each]) for at in range(cores)) if each else ()


class Pool:
    """The host's cores and GPUs, each with at most one task."""

    def __init__(self, cores: int, gpus: tuple[str, ...] = (), bound: tuple[frozenset[int], ...] = ()) -> None:
        """Have everything free.

        Args:
            cores: How many.
            gpus: Their names.
            bound: The processors of each core (see `parts`); empty: tasks are bound to none.
        """
        self.cores, self.gpus = cores, gpus
        self._free_cores = cores
        self._free_gpus = list(gpus)
        self._free_parts = list(reversed(bound))

    @property
    def busy(self) -> int:
        """How many cores have a task."""
        return self.cores - self._free_cores

    @property
    def free(self) -> tuple[int, int]:
        """How many cores and GPUs nobody has."""
        return self._free_cores, len(self._free_gpus)

    def take(self, needs: Shape) -> Share | None:
        """Return a share for one task, None where too little is free."""
        if needs.cores > self._free_cores or needs.gpus > len(self._free_gpus):
            return None
        self._free_cores -= needs.cores
        taken, self._free_gpus = self._free_gpus[: needs.gpus], self._free_gpus[needs.gpus :]
        if not self._free_parts:
            return Share(needs.cores, tuple(taken))
        # The last that came back first: who gives back and takes again keeps its core, and what that has in its caches.
        own = tuple(self._free_parts[-needs.cores :])
        del self._free_parts[-needs.cores :]
        cpus = frozenset[int]().union(*own)
        # A launcher binds processes better than we do, and may where it meets nobody.
        pins = (("", cpus),) if needs.cores < self.cores else ()
        return Share(needs.cores, tuple(taken), cpus, parts=own, pins=pins)

    def give(self, share: Share) -> None:
        """Take a share back, once."""
        self._free_cores += share.cores
        self._free_gpus += share.gpus
        self._free_parts += share.parts
        if self._free_cores > self.cores or len(self._free_gpus) > len(self.gpus):
            raise AssertionError(f"more came back than was given out ({share}); this is a bug")
