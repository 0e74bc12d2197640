"""The files that a specification refers to below its own folder, and the ConfigMaps in which they travel.

Steps refer to them as ``$(SPECROOT)/…``, directly or through variables. Where such a path ends in a token or a pattern, the
directory before it goes; a bare ``$(SPECROOT)`` is the whole folder, without hidden directories, caches of Python, and the
workspaces of studies. Links are followed as long as they stay in the folder.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from merlin_cli.exits import CliError, Exit
from merlin_study import workspace
from merlin_study.bundle import MAX_BUNDLE, MAX_FILES, MAX_UNPACKED, BundleError, Entry, pack
from merlin_study.sources import PART_KEY

PART: Final = 700_000
"""Bytes of one ConfigMap, which may hold 1 MiB with all that is around its data."""
SHOWN: Final = 5
_REFERENCE: Final = re.compile(r"\$\(SPECROOT\)((?:/+[^\s\"'`;|&<>(){}\[\]*?$,:=\\]*)*)(.?)", re.DOTALL)
_PATTERN: Final = "$*?[{"
_CURE: Final = (
    "put them at a path that the site's machines see and name that in the specification, "
    "or give --no-bundle where the site sees this folder"
)


@dataclass(frozen=True)
class Content:
    """Some content cut into ConfigMaps: their names and data in order, and the digest of the whole."""

    sha256: str
    parts: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, content: bytes) -> "Content":
        """Cut some content."""
        pieces = [content[at : at + PART] for at in range(0, len(content), PART)] or [b""]
        named = tuple((f"merlin-part-{hashlib.sha256(piece).hexdigest()[:40]}", piece) for piece in pieces)
        return cls(hashlib.sha256(content).hexdigest(), named)

    @property
    def source(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"configMaps": [name for name, _ in self.parts], "sha256": self.sha256}

    def config_maps(self) -> list[dict[str, Any]]:
        """The ConfigMaps as plain data; each of a name once."""
        return [config_map(name, piece) for name, piece in dict(self.parts).items()]


def config_map(name: str, piece: bytes) -> dict[str, Any]:
    """One part as the API server takes it; its name says its content, so it never changes."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "merlin"}},
        "immutable": True,
        "binaryData": {PART_KEY: base64.b64encode(piece).decode()},
    }


def references(document: Any) -> set[str]:
    """Return the paths below ``$(SPECROOT)`` that a document's texts refer to; empty for the folder itself."""
    found: set[str] = set()
    for text in _texts(document):
        for match in _REFERENCE.finditer(text):
            path = match[1]
            if match[2] and match[2] in _PATTERN:
                path = path.rpartition("/")[0]
            found.add(os.path.normpath(path.lstrip("/")) if path.strip("/") else "")
    return found


def collect(document: Any, folder: Path) -> tuple[list[Entry], list[str]]:
    """Return the files that a specification refers to, and the references that lead to no file.

    Raises:
        CliError: one leads out of the folder, can't be read, or all together are too large.
    """
    files: dict[str, Path] = {}
    absent: list[str] = []
    for path in sorted(references(document)):
        if path == ".." or path.startswith("../"):
            raise CliError(
                Exit.REFUSED,
                f"$(SPECROOT)/{path}: leads out of the specification's folder {folder}; move the file into it",
            )
        there = folder / path
        if not there.exists():
            absent.append(path)
        for each in _walk(there, folder):
            files[each.relative_to(folder).as_posix()] = each
    return _read(files, folder), absent


def below(directory: Path, prefix: str) -> list[Entry]:
    """Return the files below a directory, without hidden directories, as they shall lie below ``prefix``.

    Raises:
        CliError: one leads out of it, can't be read, or all together are too large.
    """
    found = {f"{prefix}/{each.relative_to(directory).as_posix()}": each for each in _walk(directory, directory)}
    return _read(found, directory)


def archive(entries: Sequence[Entry]) -> Content:
    """Return the archive of some files.

    Raises:
        CliError: it is too large, or holds a name that no site could take.
    """
    try:
        packed = pack(entries)
    except BundleError as error:
        raise CliError(Exit.REFUSED, f"a file of the study can't travel: {error}; give it another name") from error
    if len(packed) > MAX_BUNDLE:
        raise _too_large({entry.path: len(entry.data) for entry in entries}, f"{_size(len(packed))} compressed")
    return Content.of(packed)


def write(entries: Sequence[Entry], directory: Path) -> None:
    """Write files into a new directory, which appears whole."""
    beside = directory.with_name(f"{directory.name}.{os.getpid()}")
    for entry in entries:
        target = beside / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.data)
        if entry.executable:
            target.chmod(target.stat().st_mode | 0o111)
    if entries:
        beside.rename(directory)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                if key != "description":
                    yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)
        case _:
            return


def _walk(path: Path, folder: Path) -> Iterator[Path]:
    """Yield the regular files at and below a path; a link leads to what it names."""
    if not path.exists():
        return
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CliError(
            Exit.REFUSED,
            f"{path}: is a link that leads out of the specification's folder; copy the file into the folder, or {_CURE}",
        )
    if path.is_file():
        yield path
        return
    for each in sorted(path.iterdir()):
        if each.is_dir() and (each.is_symlink() or _left_out(each)):
            continue
        if each.is_dir() or each.is_file():
            yield from _walk(each, folder)


def _left_out(directory: Path) -> bool:
    hidden = directory.name.startswith(".") or directory.name == "__pycache__"
    return hidden or (directory / workspace.INFO).is_dir()


def _read(files: Mapping[str, Path], folder: Path) -> list[Entry]:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MAX_UNPACKED or len(files) > MAX_FILES:
        raise _too_large(sizes, f"{_size(sum(sizes.values()))} in {len(files)} files")
    try:
        return [Entry(name, os.access(path, os.X_OK), path.read_bytes()) for name, path in files.items()]
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"{error.filename or folder}: can't be read: {error.strerror}") from error


def _too_large(sizes: Mapping[str, int], found: str) -> CliError:
    biggest = sorted(sizes.items(), key=lambda item: -item[1])[:SHOWN]
    named = ", ".join(f"{name} ({_size(size)})" for name, size in biggest)
    return CliError(
        Exit.REFUSED,
        f"$(SPECROOT): the files that the steps refer to may have {_size(MAX_BUNDLE)} together, compressed, and {MAX_FILES} in "
        f"number; found {found}; the biggest are {named}; {_CURE}",
    )


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
