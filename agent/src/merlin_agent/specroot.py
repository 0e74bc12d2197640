"""The files that travel with a study, laid down once below ``merlin_info``, where ``$(SPECROOT)`` points.

Everything is put together beside its place and appears there by one rename, so a step sees all files or an agent refuses the
chunk. Two agents may both do it; the second finds the first one's work. What the broker brought is checked against the digest
in the plan, and a path on the site is linked to, once its content is the one that the study was submitted with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping

from merlin_agent.binding import RefusedError
from merlin_agent.post import Post
from merlin_study import blob, bundle, workspace
from merlin_study.plan import Plan, PlannedFile
from merlin_study.seal import SealError

_BLOCK = 1 << 20


async def lay_down(post: Post, *, study: str, plan: Plan, root: str) -> None:
    """Make sure that a study's files are in its workspace.

    Raises:
        RefusedError: one is not to be had, or is not the one that the plan names.
        OSError: they can't be written.
    """
    place = f"{root}/{workspace.INFO}/{workspace.SPECROOT}"
    if not plan.files or await asyncio.to_thread(os.path.isdir, place):
        return
    contents: dict[str, bytes] = {}
    for file in plan.files:
        if not file.path and file.sha256 not in contents:
            contents[file.sha256] = await _content(post, study, file)
    await asyncio.to_thread(_write, place, plan, contents)


async def _content(post: Post, study: str, file: PlannedFile) -> bytes:
    subject = post.space.file(study, file.sha256)
    try:
        content = await post.read(subject, scope=study)
    except (SealError, blob.BlobError) as error:
        raise RefusedError(f"{subject}: refused: {error}") from error
    if content is None:
        raise RefusedError(f"{subject}: expected the file {file.name or 'bundle'} of the study, found none")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise RefusedError(f"{subject}: expected content of this digest, found {found}; the file is refused")
    return content


def _write(place: str, plan: Plan, contents: Mapping[str, bytes]) -> None:
    beside = f"{place}.{secrets.token_hex(6)}"
    os.mkdir(beside)
    try:
        for file in plan.files:
            _lay(beside, file, contents)
        os.rename(beside, place)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not os.path.isdir(place):  # else another agent was faster, and its files are the same
            raise
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _lay(directory: str, file: PlannedFile, contents: Mapping[str, bytes]) -> None:
    try:
        if file.name:
            bundle.check_path(file.name)
        if file.path:
            _check_digest(file)
            target = f"{directory}/{file.name}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(file.path, target)
        elif file.archive:
            for entry in bundle.unpack(contents[file.sha256]):
                _put(directory, os.path.join(file.name, entry.path), entry.data, executable=entry.executable)
        else:
            _put(directory, file.name, contents[file.sha256], executable=file.executable)
    except bundle.BundleError as error:
        raise RefusedError(f"{file.name or 'bundle'}: a file of the study is refused: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise RefusedError(
            f"{file.name or 'bundle'}: a file of the study stands where another one is; name each once"
        ) from error


def _put(directory: str, path: str, data: bytes, *, executable: bool) -> None:
    """Write a new file. No link can lead elsewhere: the directory is new, and the links in it are to files, not directories."""
    target = f"{directory}/{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    handle = os.open(
        target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o777 if executable else 0o666
    )
    with open(handle, "wb") as out:
        out.write(data)


def _check_digest(file: PlannedFile) -> None:
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as found:
            while block := found.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise RefusedError(
            f"{file.path}: expected a file of the study on this site, found none ({error.strerror}); put it there"
        ) from error
    if digest.hexdigest() != file.sha256:
        raise RefusedError(
            f"{file.path}: expected the SHA-256 {file.sha256[:16]}…, found {digest.hexdigest()[:16]}…; "
            "restore the file, or submit the study anew"
        )
