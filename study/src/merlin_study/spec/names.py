"""What every block of the language rests on: its base class, the bounds, and the forms of names."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_STEPS: Final = 200
"""Steps of one study: what the CRD's rule on unique names can afford."""
MAX_PARTS: Final = 32
"""ConfigMaps of one file: more than a bundle of 16 MiB needs."""
MAX_DATA: Final = 524_288
"""Characters of a table in base64 within a Study: what fits the request of a step (`merlin_study.nested`)."""
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
