"""``merlin``: which agents a study wants, and its table of samples."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from merlin_study.scalars import Flag, Line, Nodes, Script, Word
from merlin_study.spec.batch import Batch
from merlin_study.spec.names import MAX_STEPS, Block


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
    count: Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="Number of samples that are an index only, in place of a file."
    )


class Merlin(Block):
    """Merlin's own block: agents and samples."""

    resources: Resources = Field(default_factory=Resources, description="Which agents the study wants.")
    samples: Samples | None = Field(
        default=None, description="The table of samples; without it every step is unsampled."
    )
