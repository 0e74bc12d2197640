"""Files that travel: what was packed is what is unpacked, and an archive that could do harm is refused."""

import gzip
import io
import tarfile

import pytest

from merlin_study import blob, bundle
from merlin_study.bundle import BundleError, Entry, pack, unpack

ENTRIES = [Entry("scripts/run me.sh", executable=True, data=b"#!/bin/sh\n"), Entry("a.txt", executable=False, data=b"")]


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for member, data in members:
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return gzip.compress(out.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_what_was_packed_is_unpacked_and_equal_files_give_equal_bytes() -> None:
    assert unpack(pack(ENTRIES)) == sorted(ENTRIES, key=lambda entry: entry.path)
    assert pack(ENTRIES) == pack(reversed(ENTRIES))


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../out", tarfile.REGTYPE, ""),
        ("/etc/passwd", tarfile.REGTYPE, ""),
        ("a/../../out", tarfile.REGTYPE, ""),
        ("a//b", tarfile.REGTYPE, ""),
        ("a\nb", tarfile.REGTYPE, ""),
        ("x" * 300, tarfile.REGTYPE, ""),
        ("out", tarfile.SYMTYPE, "/etc"),
        ("out", tarfile.LNKTYPE, "a.txt"),
        ("dev", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_a_member_that_could_lead_elsewhere_is_refused(name: str, kind: bytes, link: str) -> None:
    with pytest.raises(BundleError, match="expected a r"):
        unpack(archive((member("a.txt"), b"a"), (member(name, kind, link), b"")))


def test_an_archive_that_says_a_name_twice_or_is_none_is_refused() -> None:
    with pytest.raises(BundleError, match="stands twice"):
        unpack(archive((member("a"), b"1"), (member("./a"), b"2")))
    for data in (b"", b"PK\3\4", gzip.compress(b"no tar, but long enough to be one" * 99), pack(ENTRIES)[:-9]):
        with pytest.raises(BundleError):
            unpack(data)


def test_an_archive_that_unfolds_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known only while it unfolds, so that is where it ends."""
    monkeypatch.setattr(bundle, "MAX_UNPACKED", 1 << 20)
    with pytest.raises(BundleError, match="expected at most 1048576 bytes of files, found more"):
        unpack(archive((member("zeros"), bytes(8 << 20))))


@pytest.mark.parametrize("size", [0, 1, blob.PART, blob.PART + 1, 3 * blob.PART])
def test_content_of_any_size_is_joined_from_its_parts(size: int) -> None:
    content = bytes(size)
    head, rest = blob.split(content)
    count, first = blob.read_head(head)
    assert (count, first + b"".join(rest)) == (len(rest), content)
    assert all(len(part) <= blob.PART for part in rest)


def test_what_is_no_head_is_refused() -> None:
    for head in (b"", b"\0\0", b"\xff\xff\xff\xffx"):
        with pytest.raises(blob.BlobError):
            blob.read_head(head)
