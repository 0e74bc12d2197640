"""What tasks take of this host while they run: cores, and GPUs by their names. Pure bookkeeping, without a lock of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from merlin_study.shape import Shape

_VISIBLE: Final = (b"CUDA_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES")
"""How programs of NVIDIA and AMD are told which devices are theirs."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one running task has: how many cores, and which GPUs."""

    cores: int
    gpus: tuple[str, ...] = ()

    def variables(self) -> dict[bytes, bytes]:
        """Return what the task's environment says of it; nothing where it has no GPU, so that it sees what the job does."""
        return dict.fromkeys(_VISIBLE, ",".join(self.gpus).encode()) if self.gpus else {}


NOTHING: Final = Share(0)


class Pool:
    """The host's cores and GPUs, each with at most one task."""

    def __init__(self, cores: int, gpus: tuple[str, ...] = ()) -> None:
        self.cores, self.gpus = cores, gpus
        self._free_cores = cores
        self._free_gpus = list(gpus)

    @property
    def busy(self) -> int:
        """How many cores have a task."""
        return self.cores - self._free_cores

    def take(self, needs: Shape) -> Share | None:
        """Return a share for one task, None where too little is free."""
        if needs.cores > self._free_cores or needs.gpus > len(self._free_gpus):
            return None
        self._free_cores -= needs.cores
        if not needs.gpus:
            return Share(needs.cores)
        taken, self._free_gpus = self._free_gpus[: needs.gpus], self._free_gpus[needs.gpus :]
        return Share(needs.cores, tuple(taken))

    def give(self, share: Share) -> None:
        """Take a share back, once."""
        self._free_cores += share.cores
        self._free_gpus += share.gpus
        if self._free_cores > self.cores or len(self._free_gpus) > len(self.gpus):
            raise AssertionError(f"more came back than was given out ({share}); this is a bug")
