"""``--samplesfile``: a table of samples in place of the one that the specification makes."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from merlin_cli import source
from merlin_cli.exits import CliError, Exit

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
