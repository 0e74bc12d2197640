"""The plan: what a study's specification comes down to, and all that an agent needs to run any of its tasks.

A plan is compiled once (`merlin_study.compiler`), stored once under its hash, and cached by agents; chunks name plan,
step and range only. It lists steps and the parameter table, never tasks: those are arithmetic (`merlin_study.geometry`).
Compilation is deterministic, so whoever holds the specification can check the hash.
"""

from __future__ import annotations

import hashlib
import itertools
from enum import StrEnum
from functools import cached_property
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from merlin_study.launchers import Launch

PLAN_VERSION: Final = 1
"""Raised when an older agent could misread a plan."""

INFO_STEP: Final = "merlin_info"
"""The implicit first step of a study with samples: it makes the sample file if there is none, and measures it."""

DEPENDENCIES_STEP: Final = "merlin_dependencies"
"""The implicit step before all others of a study that needs paths or clones (`merlin_study.dependencies`)."""
IMPLICIT: Final = frozenset({INFO_STEP, DEPENDENCIES_STEP})
"""Steps that no specification names."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EdgeKind(StrEnum):
    """How a step waits for another.

    TASK: each task for the task of the same index (same combinations, both sampled or both not).
    PROJECT: each task for the tasks of the parent that share its combination and, where both have one, its sample.
    ALL: every task for every task of the parent (``depends: [step_*]``).
    """

    TASK = "task"
    PROJECT = "project"
    ALL = "all"


class Edge(_Model):
    """One dependency of a step; ``parent`` is an index into the plan's steps."""

    parent: int
    kind: EdgeKind


class Parameter(_Model):
    """One column of the parameter table: value and label of each row, as text."""

    key: str
    values: tuple[str, ...]
    labels: tuple[str, ...]
    name: str = ""
    """Text of ``$(KEY.name)``; empty for the key."""


class SampleTable(_Model):
    """Where the samples come from. ``file`` may be relative to the study's workspace.

    ``generate`` runs where ``file`` does not exist yet, in ``directory`` (empty: the study's workspace). With ``count`` there
    is no file: as many samples that are an index and nothing else.
    """

    generate: str | None
    file: str
    columns: tuple[str, ...]
    level_max_dirs: int
    directory: str = ""
    count: int | None = None


class PlannedFile(_Model):
    """A file, or an archive of files, that an agent lays down below ``$(SPECROOT)`` before it runs anything of the study.

    ``name`` is the path there (of an archive the directory, empty for ``$(SPECROOT)`` itself) and ``sha256`` the content's digest.
    The content comes from the broker, where the operator put it from ``parts`` (name and key of ConfigMaps); or it lies on the
    site already, at ``path``.
    """

    name: str
    sha256: str
    parts: tuple[tuple[str, str], ...] = ()
    path: str = ""
    archive: bool = False
    executable: bool = False


class Lane(_Model):
    """What tasks of a step have in common that share a chunk: where they go, and how often they are tried.

    ``retry_delay`` and ``walltime`` are in seconds; ``walltime`` is the longest of these tasks, None where one has no limit.
    """

    queue: str
    shape: str
    max_retries: int = 30
    retry_delay: float = 1.0
    walltime: int | None = None


class PlannedStep(_Model):
    """One step with everything expanded but what differs between its tasks.

    ``parameters`` are the keys that the step uses, sorted; they decide its combinations. ``lanes`` are what chunks of the step may
    ask for, and ``lane_of`` says which of them each combination has (empty: all have the first). ``suffix`` goes between name and
    ending of the script (``.slurm`` for instance). ``launch`` is what ``$(LAUNCHER)`` asks for; None where the batch type has no
    launcher, and tokens are the shell's. ``varies`` are the texts of sizes (by `Launch`'s names) and of the ``walltime`` that differ
    between combinations, ``minutes`` how a bare walltime there is read; what ``launch`` says is the largest (`merlin_study.sizing`).
    ``warm``: tasks may share an interpreter that is started once; ``preload``: the modules that a shared Python has imported.
    """

    name: str
    cmd: str
    restart: str
    shell: str
    lanes: tuple[Lane, ...] = Field(min_length=1)
    lane_of: tuple[int, ...] = ()
    sampled: bool
    parameters: tuple[str, ...]
    edges: tuple[Edge, ...]
    suffix: str
    warm: bool = True
    preload: tuple[str, ...] = ()
    launch: Launch | None = None
    varies: dict[str, str] = Field(default_factory=dict)
    minutes: bool = False


class Plan(_Model):
    """A compiled study.

    ``workspace`` is the directory's name, ``<name>_<stamp>``; ``output_path`` is what the user gave for it to lie in
    (empty or relative: below the agent's workspace root). ``provenance`` maps file names in ``merlin_info`` to texts.
    Steps stand in topological order, `IMPLICIT` ones first. With ``fail_fast`` a task that failed in
    any way (a soft failure too) blocks what depends on it, as in Maestro; without it only a hard failure does.
    ``variables`` are texts that hold ``~`` or ``$NAME``: an agent completes them with its environment, and puts them in the
    place of their tokens in scripts before any other token is filled in. ``outputs`` says what tasks leave behind.
    """

    version: int = PLAN_VERSION
    name: str
    workspace: str
    output_path: str
    parameters: tuple[Parameter, ...]
    samples: SampleTable | None
    steps: tuple[PlannedStep, ...]
    fail_fast: bool = False
    variables: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)
    files: tuple[PlannedFile, ...] = ()
    spec_root: str = ""
    outputs: str = "full"

    @cached_property
    def hash(self) -> str:
        """Identifies the plan: SHA-256 of its canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def info_step(self) -> int:
        """Which step makes and measures the samples (`INFO_STEP`); -1 where none has to."""
        return next((at for at, planned in enumerate(self.steps) if planned.name == INFO_STEP), -1)

    @cached_property
    def wants(self) -> frozenset[tuple[str, str]]:
        """The queues and shapes of all steps."""
        return frozenset((lane.queue, lane.shape) for step in self.steps for lane in step.lanes)

    @cached_property
    def first_lanes(self) -> tuple[int, ...]:
        """For each step the number of its first lane, where those of all steps are numbered on; and how many there are."""
        return (0, *itertools.accumulate(len(step.lanes) for step in self.steps))

    def to_json(self) -> bytes:
        """Return the canonical JSON: fields in the order of the model, no spaces."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Parse what `to_json` wrote.

        Raises:
            pydantic.ValidationError: it is no plan of this version.
        """
        return cls.model_validate_json(data)
