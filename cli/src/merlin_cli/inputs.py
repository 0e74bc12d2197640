"""What comes into a workspace from outside: the table of ``--samplesfile``, and a copy of the files that steps refer to."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from merlin_cli import bundling, source
from merlin_cli.exits import CliError, Exit
from merlin_study import workspace

ENDINGS: Final = (".csv", ".tab", ".npy")
LINKED: Final = 64 << 20
"""Bytes from which a file is linked and not copied; then whoever writes into it writes into the study's samples too."""


def samples_file(name: str) -> Path:
    """Return the file, absolute.

    Raises:
        CliError: there is none, or of no kind that is read.
    """
    path = Path(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111 links stay as named
    if path.suffix not in ENDINGS:
        expected = ", ".join(ENDINGS)
        raise CliError(Exit.USAGE, f"--samplesfile {name}: expected a file that ends in one of {expected}; convert it")
    if not path.is_file():
        raise CliError(Exit.USAGE, f"--samplesfile {name}: there is no such file; give the path of a table of samples")
    return path


def with_samples(found: source.Source, file: str) -> source.Source:
    """Return a specification whose samples come from ``file`` and are not generated.

    Raises:
        CliError: it has no samples.
    """
    merlin = found.raw.get("merlin")
    samples = merlin.get("samples") if isinstance(merlin, Mapping) else None
    if not isinstance(merlin, Mapping) or not isinstance(samples, Mapping):
        message = f"--samplesfile: {found.path.name} has no merlin.samples; add it, with the file's column_labels"
        raise CliError(Exit.USAGE, message)
    kept = {key: value for key, value in samples.items() if key not in ("generate", "count")}
    return source.replaced(found, "merlin", {**merlin, "samples": {**kept, "file": file}})


def furnish(info: Path, *, samples: Path | None, document: Any, folder: Path | None) -> None:
    """Put into ``merlin_info`` what a run on this machine brings: its samples, and the files of its folder for later restarts.

    Args:
        info: The directory.
        samples: The table of ``--samplesfile``.
        document: The specification, whose texts name the files.
        folder: Where they are; None keeps no copy of them.

    Raises:
        CliError: it can't be written.
    """
    if samples is not None:
        place(samples, info)
    if folder is None:
        return
    try:
        entries, _ = bundling.collect(document, folder)
    except CliError as error:
        print(f"warning: no copy is kept of the specification's files: {error}", file=sys.stderr)
        return
    try:
        bundling.write(entries, info / workspace.SPECROOT)
    except OSError as error:
        raise CliError(
            Exit.CANNOT_RUN, f"{info}: can't be written: {error.strerror}; see to the file system"
        ) from error


def place(file: Path, directory: Path) -> None:
    """Put a file into a directory: a copy, or a second name for a large one on the same file system.

    Raises:
        CliError: it can't be written.
    """
    target = directory / file.name
    try:
        if file.stat().st_size >= LINKED:
            try:
                os.link(file.resolve(), target)
            except OSError:
                shutil.copyfile(file, target)
        else:
            shutil.copyfile(file, target)
    except OSError as error:
        raise CliError(
            Exit.CANNOT_RUN, f"{target}: can't be written: {error.strerror}; see to the file system"
        ) from error
