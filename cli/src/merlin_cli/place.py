"""Where a study will lie, for who has to know it before the study is compiled: Maestro's generators of parameters.

Maestro makes the study's directory first and tells the generator, which may write there. On this machine so do we. In a
cluster the directory is the site's, and known only where the specification's ``OUTPUT_PATH`` is absolute.
"""

import contextlib
import os
import posixpath
import time
from collections.abc import Iterator
from pathlib import Path

from merlin_cli import source
from merlin_cli.exits import CliError, Exit
from merlin_study import environment, workspace
from merlin_study.spec import StudySpec
from merlin_study.variables import Variables


def stamp() -> str:
    """The time of a submission as it ends a workspace's name."""
    return time.strftime("%Y%m%d-%H%M%S")


def named(spec: StudySpec, found: source.Source) -> tuple[str, str]:
    """Return what a study is called, and its OUTPUT_PATH as given: expanded, and empty where none is."""
    base = workspace.safe_name(found.path.stem)
    variables = Variables(spec, stamp="", base=base, spec_root=found.directory)
    return variables.expand(spec.description.name), variables.output_path


class Place:
    """Where one study will lie; known once somebody asked (`tell`)."""

    def __init__(self, root: Path | None) -> None:
        """Take the directory that a relative OUTPUT_PATH is below; None where that is an agent's."""
        self._root = root
        self.stamp = ""
        """What its workspace ends with, where it was asked for and the study does not name its own run."""
        self.directory: Path | None = None
        """Made, and nobody else's; None where it was not asked for, or lies on a site."""

    def tell(self, spec: StudySpec, found: source.Source) -> str | None:
        """Return the study's directory; None where nobody knows it yet.

        Raises:
            CliError: it can't be made, or the study names its own run and that exists.
        """
        name, below = named(spec, found)
        if environment.refers(below) or (self._root is None and not posixpath.isabs(below)):
            return None
        parent = posixpath.normpath(posixpath.join(self._root or "/", below))
        while True:
            self.stamp = "" if spec.run_id else stamp()
            directory = f"{parent}/{workspace.run_directory(name, spec.run_id or self.stamp)}"
            if self._root is None:
                return directory
            if make(Path(directory), own=spec.run_id is not None):
                self.directory = Path(directory)
                return directory

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Remove the directory where the study fails to start; what a generator wrote there stays."""
        try:
            yield
        except BaseException:
            if self.directory is not None:
                with contextlib.suppress(OSError):
                    self.directory.rmdir()
            raise


def make(directory: Path, *, own: bool) -> bool:
    """Make a study's directory; False, a moment later, where another study has it.

    Raises:
        CliError: it can't be made, or it exists and its name is the study's ``own`` choice.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir()
    except FileExistsError:
        if own:
            raise taken(directory) from None
        time.sleep(0.1)
        return False
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"{directory}: can't be made: {error.strerror}") from error
    return True


def taken(directory: os.PathLike[str] | str) -> CliError:
    """What is said where a study names its own run and that exists."""
    go_on = f"go on with it: merlin restart {directory} --local, or choose another runId"
    return CliError(Exit.CANNOT_RUN, f"{directory} exists already; {go_on}")
