"""From the sizes of a step to what one of its tasks takes of the hosts, and to what its launcher is asked for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from merlin_study import duration
from merlin_study.launchers import Launch
from merlin_study.plan import PlannedStep
from merlin_study.shape import MEMORY_UNIT, Shape, walltime_class

WALLTIME: Final = "walltime"
"""The name of the walltime's text in `PlannedStep.varies`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a step as numbers; None is what it leaves open. ``cores`` and ``gpus_per_task`` are for each process.

    ``memory``: MiB of a task on each of its nodes.
    """

    nodes: int | None = None
    procs: int | None = None
    cores: int | None = None
    gpus: int | None = None
    gpus_per_task: int | None = None
    memory: int | None = None


def shape(sizes: Sizes, *, launched: bool, walltime: int | None) -> Shape:
    """Return what one task takes on each of its nodes.

    Args:
        sizes: The step's.
        launched: Whether a launcher starts its processes. Without one (``batch.type: local``) a task is one process that has one
            core, whatever sizes it names for launchers; its GPUs count.
        walltime: The declared limit in seconds.
    """
    nodes = (sizes.nodes or 1) if launched else 1
    procs = (sizes.procs or nodes) if launched else 1
    on_each = -(-procs // nodes)
    gpus = sizes.gpus if sizes.gpus is not None else (sizes.gpus_per_task or 0) * procs
    return Shape(
        nodes=nodes,
        cores=on_each * (sizes.cores or 1) if launched else 1,
        gpus=-(-gpus // nodes),
        memory=-(-(sizes.memory or 0) // MEMORY_UNIT),
        walltime_class=walltime_class(walltime),
    )


def launch(kind: str, sizes: Sizes, arguments: dict[str, str]) -> Launch:
    """Return what the launcher of a batch type is asked for; ``arguments`` as `Launch` has them."""
    return Launch(
        type=kind,
        nodes=sizes.nodes,
        procs=sizes.procs,
        cores=sizes.cores,
        gpus=sizes.gpus,
        gpus_per_task=sizes.gpus_per_task,
        arguments=arguments,
    )


def exact(step: PlannedStep, texts: Mapping[str, str]) -> tuple[Launch | None, int | None]:
    """Return what one combination's launch lines ask for, and its walltime in seconds.

    Args:
        step: The step.
        texts: `PlannedStep.varies` with the combination's values in it.

    Raises:
        ValueError: a value is no number; the compiler has seen that none is.
    """
    walltime = duration.seconds(texts[WALLTIME], minutes=step.minutes) if WALLTIME in texts else step.lanes[0].walltime
    numbers = {name: int(text) for name, text in texts.items() if name != WALLTIME}
    return None if step.launch is None else step.launch.model_copy(update=numbers), walltime
