"""``study``: the steps, and what each runs."""

from pydantic import Field

from merlin_study.scalars import (
    Blank,
    Count,
    CountOrZero,
    Exclusive,
    Flag,
    Line,
    Script,
    Seconds,
    StepPriority,
    Text,
    Walltime,
    Word,
)
from merlin_study.spec.batch import StepBatch
from merlin_study.spec.names import MAX_STEPS, Block, StepName


class Run(Block):
    """What a step runs, when, where and how often."""

    cmd: Script = Field(description="Body of the script; any shell's text. $(TOKENS) are substituted literally.")
    restart: Script | None = Field(
        default=None,
        description="Script that runs in place of cmd after exit code 100 or a timeout. Default: cmd again.",
    )
    depends: tuple[Word, ...] = Field(
        default=(),
        max_length=MAX_STEPS,
        description="Steps that come first: s waits for the same combination and sample of s, s_* for all tasks of s.",
    )
    pre: Script | None = Field(
        default=None, description="Kept with the study; like Merlin and Maestro, nothing runs it."
    )
    post: Script | None = Field(
        default=None, description="Kept with the study; like Merlin and Maestro, nothing runs it."
    )
    task_queue: Blank = Field(
        default="merlin",
        description="Queue of the step's tasks; agents name the queues that they serve. Default, and for none: merlin.",
    )
    shell: Line | None = Field(
        default=None, description="What follows #! in the script, such as /usr/bin/env python3. Default: batch.shell."
    )
    max_retries: CountOrZero = Field(
        default=30, description="How often a task is tried again after exit code 100 or 104. Default 30."
    )
    retry_delay: Seconds = Field(default=1, description="Seconds before a task is tried again. Default 1.")
    nodes: Count | None = Field(default=None, description="Hosts of one task, a count or a token.")
    procs: Count | None = Field(default=None, description="Processes of one task, a count or a token.")
    cores_per_task: Count | None = Field(
        default=None, alias="cores per task", description="Cores of each process, a count or a token. Default 1."
    )
    gpus: CountOrZero | None = Field(default=None, description="GPUs of one task, a count or a token.")
    gpus_per_task: CountOrZero | None = Field(
        default=None, alias="gpus per task", description="GPUs of each process, a count or a token."
    )
    walltime: Walltime | None = Field(
        default=None,
        description="Limit of one task, in seconds or [d:]h:m:s; what runs longer is ended. Default: no limit.",
    )
    slurm: Line | None = Field(default=None, description="Further arguments of srun, as they are.")
    flux: Line | None = Field(default=None, description="Further arguments of flux run, as they are.")
    lsf: Line | None = Field(default=None, description="Further arguments of jsrun, as they are.")
    bind: Word | None = Field(default=None, description="How jsrun binds processes to cores.")
    bind_gpus: Word | None = Field(default=None, alias="bind gpus", description="How jsrun binds processes to GPUs.")
    num_resource_set: CountOrZero | None = Field(
        default=None, alias="num resource set", description="Resource sets of jsrun."
    )
    launch_distribution: Word | None = Field(
        default=None, description="How jsrun spreads processes over resource sets."
    )
    exit_on_error: CountOrZero | None = Field(
        default=None, description="Whether jsrun ends at the first failing process."
    )
    tasks_per_rs: Count | None = Field(
        default=None, alias="tasks per rs", description="Processes of each resource set of jsrun."
    )
    rs_per_node: Count | None = Field(
        default=None, alias="rs per node", description="Resource sets on each host under jsrun."
    )
    cpus_per_rs: Count | None = Field(
        default=None, alias="cpus per rs", description="Cores of each resource set of jsrun."
    )
    batch: StepBatch | None = Field(
        default=None, description="Batch settings of this step, in place of those of the study."
    )
    exclusive: Exclusive | None = Field(
        default=None, description="Maestro's exclusive; Merlin's dialect takes it and does nothing with it."
    )
    reservation: Word | None = Field(
        default=None, description="Maestro's reservation; Merlin's dialect takes it and does nothing with it."
    )
    qos: Word | None = Field(
        default=None, description="Maestro's quality of service; Merlin's dialect takes it and does nothing with it."
    )
    nested: Flag | None = Field(
        default=None, description="Maestro's nested; Merlin's dialect takes it and does nothing with it."
    )
    waitable: Flag | None = Field(
        default=None, description="Maestro's waitable; Merlin's dialect takes it and does nothing with it."
    )
    priority: StepPriority | None = Field(
        default=None, description="Maestro's urgency; Merlin's dialect takes it and does nothing with it."
    )
    warm: Flag | None = Field(
        default=None,
        description="Whether tasks may share a warm interpreter; false where a script could tell. Default true.",
    )
    memory: Word | None = Field(
        default=None,
        description="Memory of a task on each of its hosts, such as 4GiB; a bare number is MiB.",
    )
    preload: tuple[Word, ...] = Field(
        default=(),
        max_length=100,
        description="Python modules that a warm interpreter has imported before the task starts.",
    )


class Step(Block):
    """A vertex of the graph: one script, run once for each combination and sample that it uses."""

    name: StepName = Field(
        description="Name of the step and of its directory; unique in the study. May hold $(VARIABLES)."
    )
    description: Text = Field(description="What the step is for, in words; nothing reads it but people.")
    run: Run = Field(description="What the step runs, when, where and how often.")
