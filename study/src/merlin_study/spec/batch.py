"""``batch``: the batch system of a study, of a kind of agent, or of one step."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from merlin_study.scalars import (
    Blank,
    BlankLine,
    Count,
    CountOrZero,
    Exclusive,
    Flag,
    Nodes,
    Version,
    Walltime,
    Word,
)
from merlin_study.spec.names import Block


class Batch(Block):
    """The batch system: which launcher steps get, and how agents are started."""

    type: Blank = Field(
        default="local",
        description="Flavour of launcher and of worker start: local (default), slurm, flux, lsf, lsf-srun or pbs.",
    )
    bank: Blank | None = Field(
        default=None, description="Account that the allocation is charged to; for starting agents only."
    )
    queue: Blank | None = Field(
        default=None, description="Partition or queue of the batch system; for starting agents only."
    )
    walltime: Walltime | None = Field(
        default=None, description="Length of the allocation, in seconds or [d:]h:m:s; for starting agents only."
    )
    nodes: Nodes | None = Field(
        default=None, description="Hosts that agents span, a count or all; for starting agents only."
    )
    dry_run: Flag = Field(default=False, description="Write scripts and directories but run nothing. Default false.")
    shell: BlankLine = Field(
        default="/bin/bash", description="What follows #! in every script whose step names no shell. Default /bin/bash."
    )
    flux_path: BlankLine | None = Field(
        default=None, description="Directory of the flux command; for starting agents only."
    )
    flux_start_opts: BlankLine | None = Field(
        default=None, description="Options of flux start; for starting agents only."
    )
    flux_exec: BlankLine | None = Field(default=None, description="Options of flux exec; for starting agents only.")
    flux_exec_workers: Flag = Field(
        default=True, description="Start agents with flux exec under flux. Default true; for starting agents only."
    )
    launch_pre: BlankLine | None = Field(default=None, description="Text before the launch line of agents.")
    launch_args: BlankLine | None = Field(default=None, description="Arguments appended to the launch line of agents.")
    worker_launch: BlankLine | None = Field(
        default=None, description="The whole launch line of agents, in place of the usual one."
    )
    host: Blank | None = Field(
        default=None, description="Maestro's host; Merlin's dialect takes it and does nothing with it."
    )
    reservation: Blank | None = Field(
        default=None, description="Maestro's reservation; Merlin's dialect takes it and does nothing with it."
    )
    qos: Blank | None = Field(
        default=None, description="Maestro's quality of service; Merlin's dialect takes it and does nothing with it."
    )
    procs: Count | None = Field(
        default=None, description="Maestro's processes; kept with the study, and nothing reads it."
    )
    gpus: CountOrZero | None = Field(
        default=None, description="Maestro's GPUs; kept with the study, and nothing reads it."
    )
    exclusive: Exclusive | None = Field(
        default=None, description="Maestro's exclusive; kept with the study, and nothing reads it."
    )
    version: Version | None = Field(
        default=None, description="Maestro's version of the adapter; kept with the study, and nothing reads it."
    )
    uri: BlankLine | None = Field(
        default=None, description="Maestro's address of a flux instance; kept with the study, and nothing reads it."
    )
    flux_uri: BlankLine | None = Field(
        default=None,
        description="Maestro's address of a flux instance, by its older name; kept with the study, and nothing reads it.",
    )
    args: Mapping[str, Any] | None = Field(
        default=None,
        description="Maestro's further arguments of the launcher; kept with the study, and nothing reads it.",
    )


class StepBatch(Block):
    """A step's own batch settings."""

    type: Word | None = Field(
        default=None, description="Flavour of launcher for this step, in place of that of the study."
    )
