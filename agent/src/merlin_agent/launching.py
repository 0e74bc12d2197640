"""Which launcher starts parallel steps on this machine, and what it is told through the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from merlin_agent import allocation, pinning, schedulers
from merlin_agent.resources import Share
from merlin_study import launchers
from merlin_study.launchers import Kind, Launch


@cache
def kind(batch_type: str) -> Kind | None:
    """Return the launcher of a batch type here; asked of the machine once."""
    return schedulers.launcher(batch_type, os.environ, allocation.ask)


def expand(text: str, launch: Launch | None, *, walltime: int | None, shell: str, hosts: tuple[str, ...] = ()) -> str:
    """Return a task's script with launch lines in the place of their tokens.

    Without ``hosts`` they name this one where the job has several: its cores are what the task was given.

    Raises:
        launchers.LaunchError: the step asks for what this machine's launcher can't do.
    """
    if launch is None or "LAUNCHER)" not in text:
        return text
    found = kind(launch.type)
    if found is None:
        return text
    if not hosts and len(allocation.here().hosts) > 1 and (own := allocation.here().host):
        hosts = (own,)
    return launchers.expand(text, launch, found, walltime=walltime, shell=shell, hosts=hosts)


def variables(batch_type: str, environ: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return what the environment of a step with launches gets, where its author has not said otherwise.

    Slurm gives each ``srun`` all of a node unless told to take what it asks for (``--exact``). Where ``srun`` started the agent itself,
    those of all tasks share the node anyway; see `launch.environment`.
    """
    if kind(batch_type) is not Kind.SRUN or environ.get("SLURM_STEP_ID", "").isdigit() or "SLURM_EXACT" in environ:
        return {}
    return {b"SLURM_EXACT": b"1"}


def bound(own: Mapping[bytes, bytes], launch: Launch, share: Share, *, info: str) -> dict[bytes, bytes]:
    """Return the variables of a task with launches, by which its processes run on the processors of its share.

    Slurm's only: what other launchers choose is theirs. ``info`` is the study's ``merlin_info``.
    """
    if not share.pins or kind(launch.type) is not Kind.SRUN:
        return dict(own)
    pinned = pinning.variables(share.pins, environ=os.environ, directory=info)
    return pinning.shared(own, pinned, asks=bool(launch.cores or launch.gpus or launch.gpus_per_task))
