"""Files that travel with a study: an archive of regular files with relative paths, and nothing else.

It is a gzipped tar (``tar tzf`` lists it), made so that equal files give equal bytes: sorted, without times and owners. Reading is
strict, since what is read becomes files of whoever runs the agent: no absolute path, no ``..``, no links, no devices, no name
twice, and bounds on number and size before anything is unpacked.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_BUNDLE: Final = 16 << 20
"""Bytes of an archive: what a few ConfigMaps hold."""
MAX_UNPACKED: Final = 256 << 20
MAX_FILES: Final = 10_000
MAX_PATH: Final = 1_000
_MAGIC: Final = b"\x1f\x8b"


class BundleError(ValueError):
    """An archive, or a path, that is refused; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path below ``$(SPECROOT)``, whether it may be executed, its content."""

    path: str
    executable: bool
    data: bytes


def check_path(path: str) -> str:
    """Return a relative path as it is.

    Raises:
        BundleError: it could lead out of the directory that it is relative to, or no file system takes it.
    """
    parts = path.split("/")
    if (
        not path
        or len(path.encode("utf-8", "surrogateescape")) > MAX_PATH
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts)
        or any(ord(c) < 0x20 or ord(c) == 0x7F for c in path)
    ):
        raise BundleError(f"{path[:200]!r}: expected a relative path without '..', empty parts and control characters")
    return path


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive of some files.

    Raises:
        BundleError: a path is refused, or one stands twice.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        last = ""
        for entry in sorted(entries, key=lambda each: each.path):
            if check_path(entry.path) == last:
                raise BundleError(f"{entry.path!r}: stands twice")
            member = tarfile.TarInfo(last := entry.path)
            member.size, member.mode = len(entry.data), 0o755 if entry.executable else 0o644
            archive.addfile(member, io.BytesIO(entry.data))
    return gzip.compress(out.getvalue(), 6, mtime=0)


def unpack(data: bytes) -> list[Entry]:
    """Return the files of an archive.

    Raises:
        BundleError: it is none, or one that is refused.
    """
    found: dict[str, Entry] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unfolded(data)), mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise BundleError(f"{member.name[:200]!r}: expected a regular file, found something else")
                path = check_path(member.name.removeprefix("./"))
                if path in found:
                    raise BundleError(f"{path!r}: stands twice")
                if len(found) >= MAX_FILES:
                    raise BundleError(f"expected at most {MAX_FILES} files, found more")
                content = archive.extractfile(member)
                assert content is not None, "a regular file has content"
                found[path] = Entry(path, bool(member.mode & 0o100), content.read())
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise BundleError(f"expected a gzipped tar archive, found something else ({error})") from error
    return list(found.values())


def _unfolded(data: bytes) -> bytes:
    if len(data) > MAX_BUNDLE or data[:2] != _MAGIC:
        raise BundleError(
            f"expected a gzipped archive of at most {MAX_BUNDLE} bytes, found {len(data)} bytes of something else"
        )
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    text = inflater.decompress(data, MAX_UNPACKED)
    if inflater.unconsumed_tail:
        raise BundleError(f"expected at most {MAX_UNPACKED} bytes of files, found more")
    if not inflater.eof:
        raise BundleError("the archive is cut short")
    return text
