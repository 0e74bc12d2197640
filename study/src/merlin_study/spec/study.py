"""The whole of ``spec``: every block in its place, and the keys that this project adds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from merlin_study.scalars import MAX_ITEMS, Flag, Override, Scalar, Text, Word
from merlin_study.spec.added import FileSource, RestartRequest, TableSource
from merlin_study.spec.batch import Batch
from merlin_study.spec.environment import Env
from merlin_study.spec.merlin import Merlin
from merlin_study.spec.names import MAX_STEPS, NAME_PATTERN, Block, RunId, SiteName
from merlin_study.spec.step import Step


class Description(Block):
    """What the study is called and for."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=NAME_PATTERN)] = Field(
        description="Name of the study; its workspace is this name, spaces as _, and a stamp. May hold $(VARIABLES)."
    )
    description: Text = Field(description="What the study is for, in words; nothing reads it but people.")


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
    name: Word | None = Field(default=None, description="Text of $(NAME.name). Default: the parameter's own name.")


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
