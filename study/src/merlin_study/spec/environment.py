"""``env``: names for texts, and what the study needs around it."""

from collections.abc import Mapping

from pydantic import Field

from merlin_study.scalars import Line, Scalar, Variable, Word
from merlin_study.spec.names import Block


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
