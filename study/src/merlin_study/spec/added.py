"""What a Study says that Merlin's files do not: files that travel, a table by reference, which tasks run again."""

from typing import Annotated

from pydantic import Field

from merlin_study.scalars import Flag, Line, Word
from merlin_study.spec.names import MAX_DATA, MAX_PARTS, MAX_STEPS, Block, Digest, Port, SiteName


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
    data: Annotated[str, Field(strict=True, min_length=1, max_length=MAX_DATA)] | None = Field(
        default=None, description="The content itself, in base64: for a study that a step submits."
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
