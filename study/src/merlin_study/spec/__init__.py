"""What a Study says: the frozen form of ``spec``, one class for each block, one field for each key.

From ``crds/study.yaml`` (what a user may say) to the compiler (what is run). The keys are Merlin's and Maestro's own,
``cores per task`` and ``global.parameters`` included; what this project adds is in camelCase. Every description stands in
the CRD in the same words, and a test compares the two field by field.

A model is made only by `merlin_study.parse.parse_spec`, which finds all faults at once and says them in our own words; a
model that exists has passed. Invariants: nothing here has been expanded, so any text may still hold ``$(TOKENS)``; lists
and maps keep the order of the text; a default that another key decides (a step's shell) is None.

Why models, and not the raw data: after this module nobody asks whether a key is there, or whether 1 was a string.

Read ``names`` (the base of all), then the blocks in the order of a specification, ``environment``, ``batch``, ``step`` and
``merlin``, then what is ``added`` to them, and ``study``, the whole.
"""

from merlin_study.spec.added import ConfigMapFile, FileSource, RestartRequest, TableSource
from merlin_study.spec.batch import Batch, StepBatch
from merlin_study.spec.environment import Dependencies, Env, GitDependency, PathDependency, SpackDependency
from merlin_study.spec.merlin import Generate, Merlin, Resources, Samples, Worker
from merlin_study.spec.names import (
    LABEL_PATTERN,
    MAX_PARTS,
    MAX_SCRIPT_CHARACTERS,
    MAX_STEPS,
    NAME_PATTERN,
    RESERVED,
    RUN_ID_PATTERN,
    SHA256_PATTERN,
    SPECROOT,
    SUBMIT_PATH,
    Block,
)
from merlin_study.spec.step import Run, Step
from merlin_study.spec.study import Description, Parameter, StudySpec

__all__ = [
    "LABEL_PATTERN",
    "MAX_PARTS",
    "MAX_SCRIPT_CHARACTERS",
    "MAX_STEPS",
    "NAME_PATTERN",
    "RESERVED",
    "RUN_ID_PATTERN",
    "SHA256_PATTERN",
    "SPECROOT",
    "SUBMIT_PATH",
    "Batch",
    "Block",
    "ConfigMapFile",
    "Dependencies",
    "Description",
    "Env",
    "FileSource",
    "Generate",
    "GitDependency",
    "Merlin",
    "Parameter",
    "PathDependency",
    "Resources",
    "RestartRequest",
    "Run",
    "Samples",
    "SpackDependency",
    "Step",
    "StepBatch",
    "StudySpec",
    "TableSource",
    "Worker",
]
