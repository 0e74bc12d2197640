"""What a Study says: the frozen form of ``spec``, one class for each block, one field for each key.

From ``crds/study.yaml`` (what a user may say) to the compiler (what is run). The keys are Merlin's and Maestro's own,
``cores per task`` and ``global.parameters`` included; what this project adds is in camelCase. Every description stands in
the CRD in the same words, and a test compares the two field by field.

A model is made only by `merlin_study.parse.parse_spec`, which finds all faults at once and says them in our own words; a
model that exists has passed. Invariants: nothing here has been expanded, so any text may still hold ``$(TOKENS)``; lists
and maps keep the order of the text; a default that another key decides (a step's shell) is None.

Why models, and not the raw data: after this module nobody asks whether a key is there, or whether 1 was a string.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from merlin_study.scalars import (
    MAX_ITEMS,
    Blank,
    BlankLine,
    Count,
    CountOrZero,
    Exclusive,
    Flag,
    Line,
    Nodes,
    Override,
    Scalar,
    Script,
    Seconds,
    StepPriority,
    Text,
    Variable,
    Version,
    Walltime,
    Word,
)

MAX_STEPS: Final = 200
"""Steps of one study: what the CRD's rule on unique names can afford."""
MAX_PARTS: Final = 32
"""ConfigMaps of one file: more than a bundle of 16 MiB needs."""
MAX_SCRIPT_CHARACTERS: Final = 400_000
"""All scripts of one study together: an object of the API server stays well under etcd's 1.5 MiB."""

NAME_PATTERN: Final = r"^[^-/\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$"
"""What a name that becomes a directory looks like; `merlin_study.checks.check_step_name` says the rest."""
LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
RUN_ID_PATTERN: Final = r"^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"
SHA256_PATTERN: Final = r"^[0-9a-f]{64}$"

SPECROOT: Final = "SPECROOT"
"""The directory of the specification's file: the folder itself, or what came of it with the study."""
SUBMIT_PATH: Final = "MERLIN_SUBMIT_PATH"
"""In ``vars`` of a study that a step submitted: the directory which a relative OUTPUT_PATH lies below."""

RESERVED: Final = frozenset(
    {
        *(SPECROOT, "WORKSPACE", "LAUNCHER", "VLAUNCHER"),
        *("MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL", "MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH"),
        *("MERLIN_SAMPLE_VECTOR", "MERLIN_SAMPLE_NAMES", "MERLIN_WORKSPACE", "MERLIN_TIMESTAMP", "MERLIN_INFO"),
        *("MERLIN_SUCCESS", "MERLIN_RESTART", "MERLIN_SOFT_FAIL", "MERLIN_HARD_FAIL", "MERLIN_RETRY"),
        *("MERLIN_STOP_WORKERS", "MERLIN_RAISE_ERROR"),
        *("MERLIN_SPEC_ORIGINAL_TEMPLATE", "MERLIN_SPEC_EXECUTED_RUN", "MERLIN_SPEC_ARCHIVED_COPY"),
    }
)
"""Tokens that the system fills, so that no variable, label, parameter or column may take their names."""

StepName = Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=NAME_PATTERN)]
SiteName = Annotated[str, Field(strict=True, min_length=1, max_length=63, pattern=LABEL_PATTERN)]
Digest = Annotated[str, Field(strict=True, min_length=64, max_length=64, pattern=SHA256_PATTERN)]
RunId = Annotated[str, Field(strict=True, min_length=1, max_length=63, pattern=RUN_ID_PATTERN)]
Port = Annotated[int, Field(strict=True, ge=0, le=255)]


class Block(BaseModel):
    """A mapping of the language: its keys and no others, never changed once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Description(Block):
    """What the study is called and for."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=NAME_PATTERN)] = Field(
        description="Name of the study; its workspace is this name, spaces as _, and a stamp. May hold $(VARIABLES)."
    )
    description: Text = Field(description="What the study is for, in words; nothing reads it but people.")


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


class PathDependency(Block):
    """A path that has to exist and gets a token."""

    name: Word = Field(description="Token of the path: $(name) becomes it.")
    path: Line = Field(description="The path, which has to exist.")


class GitDependency(Block):
    """A repository that is cloned before the study runs and gets a token."""

    name: Word = Field(description="Token of the clone, and the name of its directory.")
    path: Line = Field(description="Directory that the clone is made in.")
    url: Line = Field(description="Where the repository is cloned from.")
    tag: Word | None = Field(default=None, description="Tag to check out; at most one of tag, hash and branch.")
    hash: Word | None = Field(default=None, description="Commit to check out; at most one of tag, hash and branch.")
    branch: Word | None = Field(default=None, description="Branch to check out; at most one of tag, hash and branch.")


class SpackDependency(Block):
    """A spack package; neither Merlin nor Maestro does anything with it."""

    name: Word | None = Field(default=None, description="Token of the package.")
    package_name: Word | None = Field(default=None, description="The package as spack names it.")
    type: Word | None = Field(default=None, description="Kind of the package, as Maestro's schema asks for.")


class Dependencies(Block):
    """What has to be there before a study runs."""

    paths: tuple[PathDependency, ...] = Field(default=(), max_length=100, description="Paths that have to exist.")
    git: tuple[GitDependency, ...] = Field(default=(), max_length=100, description="Repositories to clone.")
    spack: SpackDependency | None = Field(default=None, description="A spack package; not used by Merlin or Maestro.")


class Env(Block):
    """Names for texts, and what the study needs around it."""

    variables: Mapping[str, Variable] = Field(
        default_factory=dict,
        max_length=1000,
        description="Text for each $(NAME), a string, number or list. A value may use earlier variables. OUTPUT_PATH is where "
        "the workspace is made.",
    )
    labels: Mapping[str, Scalar] = Field(
        default_factory=dict, max_length=1000, description="Like variables, but expanded after them."
    )
    sources: tuple[Line, ...] = Field(
        default=(), max_length=1000, description="Kept with the study; like Merlin and Maestro, nothing applies them."
    )
    dependencies: Dependencies = Field(
        default_factory=Dependencies, description="Paths and repositories that the study needs before it runs."
    )


class Parameter(Block):
    """One column of the parameter table."""

    values: tuple[Scalar, ...] = Field(
        max_length=MAX_ITEMS,
        description="Values that $(NAME) takes, one for each combination. All parameters are zipped, never multiplied, so all "
        "lists have one length.",
    )
    label: Word = Field(
        description="Text of $(NAME.label) and of the directory, in which %% becomes the value: NAME.%% gives NAME.0.5."
    )


class StepBatch(Block):
    """A step's own batch settings."""

    type: Word | None = Field(
        default=None, description="Flavour of launcher for this step, in place of that of the study."
    )


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


class Worker(Block):
    """A kind of agent: which steps it serves, and how it is started."""

    args: Line | None = Field(
        default=None, description="Arguments in Celery's words; --concurrency is the number of slots."
    )
    steps: tuple[Word, ...] = Field(
        default=("all",), max_length=MAX_STEPS, description="Steps whose queues the agent serves, or all. Default all."
    )
    nodes: Nodes | None = Field(default=None, description="Hosts that the agents of this kind span, a count or all.")
    batch: Batch | None = Field(
        default=None, description="Batch settings for these agents, in place of those of the study."
    )
    machines: tuple[Word, ...] = Field(
        default=(), max_length=100, description="Parts of host names; elsewhere these agents are not started."
    )


class Resources(Block):
    """Which agents the study wants."""

    task_server: Word = Field(
        default="celery", description="Kept for Merlin's sake; NATS carries the tasks. Default celery."
    )
    overlap: Flag = Field(
        default=False,
        description="Whether an agent is started for a queue that another one serves already. Default false.",
    )
    workers: Mapping[str, Worker] = Field(
        default_factory=dict,
        max_length=100,
        description="Agents by name; a name may hold $(VARIABLES). Steps that none serves get a default_worker.",
    )


class Generate(Block):
    """How the table of samples is made."""

    cmd: Script = Field(
        description="Shell text that writes the file; run once, before the first step, only if the file is absent."
    )


class Samples(Block):
    """The table of samples: one row for each task of a sampled step."""

    generate: Generate | None = Field(default=None, description="How the file is made where it is absent.")
    file: Line | None = Field(default=None, description="Path of the table: .npy, .csv or .tab. May hold $(VARIABLES).")
    column_labels: tuple[Word, ...] = Field(
        default=(),
        max_length=1000,
        description="Tokens of the columns, in their order: $(LABEL) becomes the row's value.",
    )
    level_max_dirs: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=25, description="Most entries in one directory of the tree of samples. Default 25."
    )
    count: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000_000)] | None = Field(
        default=None, description="Number of samples that are an index only, in place of a file."
    )


class Merlin(Block):
    """Merlin's own block: agents and samples."""

    resources: Resources = Field(default_factory=Resources, description="Which agents the study wants.")
    samples: Samples | None = Field(
        default=None, description="The table of samples; without it every step is unsampled."
    )


class ConfigMapFile(Block):
    """A key of a ConfigMap in the study's namespace."""

    name: SiteName = Field(description="Name of the ConfigMap.")
    key: Word = Field(description="Key whose content is the file.")


class FileSource(Block):
    """A file that steps find below $(SPECROOT), from one of three places."""

    name: Line = Field(
        description="Path of the file below $(SPECROOT); of an archive, the directory, . for $(SPECROOT) itself."
    )
    config_map: ConfigMapFile | None = Field(default=None, alias="configMap", description="Take it from a ConfigMap.")
    config_maps: tuple[SiteName, ...] = Field(
        default=(),
        alias="configMaps",
        max_length=MAX_PARTS,
        description="Take it from several ConfigMaps: their keys part, one after the other, are the content.",
    )
    path: Line | None = Field(default=None, description="Use this absolute path of the site in place, by a link to it.")
    sha256: Digest | None = Field(
        default=None, description="Digest of the content, in hexadecimal; checked before use."
    )
    archive: Flag = Field(
        default=False, description="Whether the content is a gzipped tar archive to unpack. Default false."
    )
    executable: Flag = Field(default=False, description="Whether the file may be executed. Default false.")


class TableSource(Block):
    """The parameter table as a file of JSON, {"KEY": {"values": [], "label": "KEY.%%"}}, plain or gzipped."""

    config_map: ConfigMapFile | None = Field(default=None, alias="configMap", description="Take it from a ConfigMap.")
    config_maps: tuple[SiteName, ...] = Field(
        default=(),
        alias="configMaps",
        max_length=MAX_PARTS,
        description="Take it from several ConfigMaps: their keys part, one after the other, are the content.",
    )
    sha256: Digest = Field(description="Digest of the content, in hexadecimal; checked before use.")


class RestartRequest(Block):
    """Which tasks run again; another id is another request."""

    id: Word = Field(description="Any text; a change of it is what asks for the restart.")
    steps: tuple[Word, ...] = Field(
        default=(), max_length=MAX_STEPS, description="Steps whose tasks run again. Default: all."
    )
    tasks: Line | None = Field(default=None, description="Task indices that run again, such as 0-99,512. Default: all.")
    exit_codes: tuple[Port, ...] = Field(
        default=(),
        alias="exitCodes",
        max_length=256,
        description="Exit codes whose tasks run again. Default: all but 0.",
    )
    dependants: Flag = Field(
        default=False,
        description="Whether all that depends on these tasks runs again, too; what was cancelled because of them always does. "
        "Default false.",
    )
    scan: Flag = Field(
        default=False, description="Whether the marks in the workspace overrule what was recorded. Default false."
    )


class StudySpec(Block):
    """The whole spec of a Study: Merlin's blocks verbatim, and what this project adds."""

    description: Description = Field(description="What the study is called and for.")
    batch: Batch = Field(
        default_factory=Batch, description="The batch system: which launcher steps get, and how agents are started."
    )
    env: Env = Field(default_factory=Env, description="Names for texts, and what the study needs around it.")
    global_parameters: Mapping[str, Parameter] = Field(
        default_factory=dict,
        alias="global.parameters",
        max_length=100,
        description="The parameter table by column: a step runs once for each combination of the parameters that it uses.",
    )
    parameters_from: TableSource | None = Field(
        default=None,
        alias="parametersFrom",
        description="The parameter table by reference, in place of global.parameters: for tables beyond a manifest's size.",
    )
    study: tuple[Step, ...] = Field(
        min_length=1, max_length=MAX_STEPS, description="The steps; their order means nothing, depends does."
    )
    merlin: Merlin = Field(default_factory=Merlin, description="Merlin's own block: agents and samples.")
    user: Mapping[str, Any] = Field(
        default_factory=dict, description="Anything; a place for YAML anchors. Nothing reads it."
    )
    vars: Mapping[str, Override] = Field(
        default_factory=dict,
        max_length=1000,
        description="Values that replace those of env.variables, as merlin run --vars does.",
    )
    files: tuple[FileSource, ...] = Field(
        default=(),
        max_length=100,
        description="Files that travel with the study, from ConfigMaps or the site; steps find them below $(SPECROOT).",
    )
    failure_policy: Literal["ContinueOnSoftFail", "FailFast"] = Field(
        default="ContinueOnSoftFail",
        alias="failurePolicy",
        description="What follows a soft failure: ContinueOnSoftFail runs what depends on the task, FailFast fails it. Default "
        "ContinueOnSoftFail.",
    )
    dialect: Literal["Merlin", "Maestro"] = Field(
        default="Merlin", description="Whose meaning the keys have: Merlin or Maestro. Default Merlin."
    )
    run_id: RunId | None = Field(
        default=None,
        alias="runId",
        description="What follows the name of the workspace, in place of the time of creation; the same id is the same workspace.",
    )
    site: SiteName | None = Field(
        default=None, description="Site whose agents run the study. Default: that of the first agent that claims it."
    )
    outputs: Literal["full", "lean", "packed"] = Field(
        default="full",
        description="What tasks leave behind: full is Merlin's layout, lean one log for each chunk, packed one archive for each "
        "chunk. Default full.",
    )
    suspend: Flag = Field(
        default=False, description="Whether no further task starts; what runs goes on. Default false."
    )
    cancel: Flag = Field(
        default=False, description="Whether the study ends now: running tasks get TERM, then KILL. Default false."
    )
    priority: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = Field(
        default=0, description="Studies with more go first, above 0 also before the bulk of others. Default 0."
    )
    max_in_flight: Annotated[int, Field(strict=True, ge=1, le=2_147_483_647)] | None = Field(
        default=None, alias="maxInFlight", description="Most tasks in chunks that have started. Default: no limit."
    )
    purge: Word | None = Field(
        default=None, description="Any text; a change of it drops the tasks that wait, and running ones go on."
    )
    restart: RestartRequest | None = Field(
        default=None, description="Which tasks run again; another id is another request."
    )
    ttl_seconds_after_finished: Annotated[int, Field(strict=True, ge=0, le=2_147_483_647)] | None = Field(
        default=None,
        alias="ttlSecondsAfterFinished",
        description="Seconds after its end until the Study is deleted. Default: it is kept.",
    )
    deletion_policy: Literal["Delete", "Retain"] = Field(
        default="Delete",
        alias="deletionPolicy",
        description="What deleting the Study does to what NATS holds of it: Delete or Retain. Files always stay. Default Delete.",
    )
    rehearse: Annotated[float, Field(strict=True, ge=0, le=31_536_000)] | None = Field(
        default=None,
        description="Seconds after which each task is reported as done instead of being run: a dry run of the whole path.",
    )
