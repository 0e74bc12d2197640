"""The archive of a chunk under ``outputs: packed``: a zip file, not compressed, of the chunk's log and what its tasks left.

    merlin_info/tasks/sim/00000/0-99.7.node1-12-ab.log      first: endings, scripts and outputs (`merlin_study.tasklog`)
    sim/00/07/result.h5                                     then the files of tasks, where Merlin's layout has them

So ``unzip`` in the study's directory gives what ``outputs: lean`` would have left. The directory at a zip's end tells where each
member lies, and the log is read from its place without it; a tar would have to be read from its beginning. Archives get their names
when they are whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, BinaryIO, Final, NamedTuple

from merlin_study import tasklog
from merlin_study.workspace import Scripts

ENDING: Final = ".zip"
_LOCAL: Final = struct.Struct("<4s22xHH")
"""What stands before a member: a sign, and the lengths of its name and of further fields (APPNOTE.TXT 4.3.7)."""
_SIGN: Final = b"PK\x03\x04"
_PIECE: Final = 1 << 20
_LARGE: Final = 1 << 30
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution that a log tells of: the log's path, or its archive's, and the open file."""

    path: str
    opening: tasklog.Opening
    ran: tasklog.Ran
    file: BinaryIO

    def copy(self, stream: str, into: IO[bytes]) -> None:
        """Copy standard output (``out``) or error (``err``)."""
        self.file.seek(self.ran.at + (self.ran.out if stream == "err" else 0))
        left = getattr(self.ran, stream)
        while left and (piece := self.file.read(min(left, _PIECE))):
            into.write(piece)
            left -= len(piece)

    def lay_out(self, directory: str, names: Scripts, *, anew: bool) -> None:
        """Write script and outputs as the full layout has them; without ``anew`` outputs are appended to those of earlier attempts.

        Raises:
            OSError: they can't be written.
        """
        name = names.restart if self.opening.restart else names.cmd
        handle = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o766)
        with os.fdopen(handle, "wb") as script:
            script.write(self.ran.content.encode("utf-8", "surrogateescape"))
        for stream, output in zip(("out", "err"), names.outputs(name), strict=True):
            with open(f"{directory}/{output}", "wb" if anew else "ab") as file:
                self.copy(stream, file)


def open_log(path: str) -> BinaryIO:
    """Open a log, or an archive where its log begins.

    Raises:
        OSError: it can't be opened.
    """
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    if path.endswith(ENDING):
        head = file.read(_LOCAL.size)
        if len(head) == _LOCAL.size and head.startswith(_SIGN):
            _, name, more = _LOCAL.unpack(head)
            file.seek(name + more, os.SEEK_CUR)
    return file


def executions(logs: str, tasks: range, *, but: str = "") -> Iterator[Execution]:
    """Yield what the logs of a step tell of tasks, by attempt, then in the order in which it happened; the file ``but`` is left out.

    Raises:
        OSError: a log can't be read.
    """
    found = []
    for path, speaks in _speaking_of(logs, tasks):
        if path != but:
            with open_log(path) as file:
                if (read := tasklog.read(file)) is not None:
                    found.append((read[0].attempt, read[0].began, speaks.start, path))
    for _, _, _, path in sorted(found):
        with open_log(path) as file:
            read = tasklog.read(file)
            for ran in read[1] if read else ():
                if ran.task in tasks:
                    assert read is not None
                    yield Execution(path, read[0], ran, file)


def _speaking_of(logs: str, tasks: range) -> Iterator[tuple[str, range]]:
    for directory, name in beside(logs, tasks):
        speaks = tasklog.covers(name)
        if speaks.start < tasks.stop and tasks.start < speaks.stop:
            yield f"{directory}/{name}", speaks


def beside(logs: str, tasks: range) -> Iterator[tuple[str, str]]:
    """Yield directory and name of all that lies where a step's logs and archives of some tasks lie.

    Raises:
        OSError: a directory can't be read; one that is not there holds nothing.
    """
    for block in tasklog.blocks(tasks.start, tasks.stop - 1):
        directory = f"{logs}/{block}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        for name in names:
            yield directory, name


class Tree(NamedTuple):
    """A directory that goes into an archive: its name there, where it lies, and which files at its top are left out."""

    name: str
    directory: str
    but: Collection[str] = ()


def write(path: str, log: tuple[str, str], trees: Iterable[Tree]) -> list[str]:
    """Write an archive, and have it be on disk. The path must be new.

    Args:
        path: Where it goes.
        log: The log's name in it, and the file.
        trees: What else goes into it.

    Returns:
        The files and directories that may not be read, which are left out: they would keep all others out for ever.

    Raises:
        OSError: it can't be written; then there is none.
    """
    closed: list[str] = []
    try:
        with os.fdopen(os.open(path, _NEW, 0o666), "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as made:
                _add(made, *log)
                for tree in trees:
                    _add_all(made, tree, closed)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return closed


def _add_all(made: zipfile.ZipFile, tree: Tree, closed: list[str]) -> bool:
    """Add what lies in a directory, return whether there is anything; sockets and pipes are nothing."""
    with _readable(tree.directory), os.scandir(tree.directory) as scanned:
        entries = sorted((each for each in scanned if each.name not in tree.but), key=lambda each: each.name)
        added = False
        for each in entries:
            within = f"{tree.name}/{each.name}"
            try:
                if each.is_symlink():
                    _add_link(made, within, os.readlink(each.path))
                elif each.is_dir():
                    if not _add_all(made, Tree(within, each.path), closed):
                        _add_directory(made, within)
                elif each.is_file():
                    _add(made, within, each.path)
                else:
                    continue
            except FileNotFoundError:  # something that the task left running removed it
                continue
            except PermissionError:  # of another user: root's in a container, say
                closed.append(each.path)
                continue
            added = True
        return added


def _add(made: zipfile.ZipFile, name: str, path: str) -> None:
    info = zipfile.ZipInfo.from_file(path, _spelt(name), strict_timestamps=False)
    large = info.file_size > _LARGE
    with _readable(path), open(path, "rb") as source, made.open(info, "w", force_zip64=large) as into:
        shutil.copyfileobj(source, into, _PIECE)


def _add_link(made: zipfile.ZipFile, name: str, target: str) -> None:
    info = zipfile.ZipInfo(_spelt(name))
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    made.writestr(info, os.fsencode(target))


def _add_directory(made: zipfile.ZipFile, name: str) -> None:
    info = zipfile.ZipInfo(_spelt(name) + "/")
    info.create_system, info.external_attr = 3, (stat.S_IFDIR | 0o755) << 16 | 0x10
    made.writestr(info, b"")


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Have our own file or directory be readable, whatever a task made of its rights."""
    mode = os.stat(path).st_mode
    wanted = stat.S_IMODE(mode) | (0o500 if stat.S_ISDIR(mode) else 0o400)
    if stat.S_IMODE(mode) != wanted:
        os.chmod(path, wanted)
    yield


def _spelt(name: str) -> str:
    r"""A name as a zip may have it: bytes that are no UTF-8 become ``\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unpack(path: str, places: Mapping[str, str]) -> None:
    """Write files of an archive, over what is there.

    Args:
        path: The archive.
        places: Where what lies in a directory of the archive goes. All these are names of tasks' directories of one step.

    Raises:
        OSError: it is no archive, or they can't be written.
    """
    depth = next(iter(places), "").count("/") + 1
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                parts = info.filename.rstrip("/").split("/")
                into = places.get("/".join(parts[:depth]))
                if into is not None and len(parts) > depth and not {"", ".", ".."} & set(parts):
                    _unpack(archive, info, "/".join((into, *parts[depth:])))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise OSError(errno.EIO, f"is no whole archive ({error})", path) from error


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> None:
    mode = info.external_attr >> 16
    os.makedirs(path if info.is_dir() else os.path.dirname(path), exist_ok=True)
    if info.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if stat.S_ISLNK(mode):
        os.symlink(archive.read(info), os.fsencode(path))
        return
    with archive.open(info) as source, os.fdopen(os.open(path, _NEW, 0o600), "wb") as into:
        shutil.copyfileobj(source, into, _PIECE)
        os.fchmod(into.fileno(), stat.S_IMODE(mode) & 0o777)
