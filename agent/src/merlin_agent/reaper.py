"""A tiny process beside the agent that ends its tasks when the agent itself is killed with SIGKILL.

Tasks run in sessions of their own, so nothing ends them with the agent; and as long as they run, no other agent may run them
again. The reaper holds the reading end of a pipe whose writing end only the agent has: it ends with the agent, however that dies.

Which process groups run stands in a memory that both share: one number a slot, zero for none, a negative one for a warm shell whose
children are meant (it is stopped, so that none of their numbers is given away while they are killed, and then killed itself). Telling each start and end through
the pipe would wake the reaper twice a task. What is told through the pipe are the agent's presence files: they
are removed last, so that the next holder knows at once that nothing runs any more.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
from typing import IO, Final

_CELL: Final = struct.Struct("q")
# The child runs without site packages in about 7 MiB. It must not import anything of ours.
_PROGRAM: Final = """
import os, sys
cells = os.fdopen(int(sys.argv[1]), "rb", 0)
text = bytearray()
while True:
    piece = os.read(0, 65536)
    if not piece: break
    text += piece
cells.seek(0)
data = cells.read()
for at in range(0, len(data), 8):
    group = int.from_bytes(data[at:at+8], sys.byteorder, signed=True)
    groups = [group]
    if group < -1:
        shell = -group
        try:
            if os.getsid(shell) != shell: continue
            os.kill(shell, 19)
            with open(f"/proc/{shell}/task/{shell}/children") as file: groups = [int(pid) for pid in file.read().split()] + [shell]
        except OSError: continue
    for each in groups:
        if each > 1:
            try: os.killpg(each, 9)
            except OSError: pass
paths = [path for path in bytes(text).split(b"\\0") if path]
for path in paths:
    try: os.unlink(path)
    except IsADirectoryError:
        try: os.rmdir(path)
        except OSError: pass
    except OSError: pass
trees = [path for path in paths if path.endswith(b"/")]
if trees:
    import shutil
    def open_up(path):
        try:
            if not os.path.islink(path): os.chmod(path, 0o700)
        except OSError: pass
    for path in trees:
        open_up(path)
        for below, names, _ in os.walk(path):
            for name in names: open_up(os.path.join(below, name))
        shutil.rmtree(path, ignore_errors=True)
"""


def _shared_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("merlin-agent-groups", os.MFD_CLOEXEC), "w+b", 0)
    return tempfile.TemporaryFile()


class Reaper:
    """The agent's side: cells of process groups, and paths to remove."""

    def __init__(self, slots: int) -> None:
        with _shared_file() as file:
            file.truncate(slots * _CELL.size)
            self._cells = mmap.mmap(file.fileno(), slots * _CELL.size)
            reading, self._pipe = os.pipe2(os.O_CLOEXEC)
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-S", "-E", "-c", _PROGRAM, str(file.fileno())],
                    stdin=reading,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(file.fileno(),),
                    cwd="/",
                    env={},
                    start_new_session=True,
                )
            finally:
                os.close(reading)

    @property
    def pid(self) -> int:
        """The reaper's process id."""
        return self._child.pid

    def watch(self, slot: int, group: int) -> None:
        """Note which process group runs in a slot; 0 for none; negated, the warm shell whose child runs."""
        _CELL.pack_into(self._cells, slot * _CELL.size, group)

    def remove_at_end(self, path: str) -> None:
        """Have a file removed once the agent is gone, or an empty directory; with a slash at its end, one with all that is in it."""
        with contextlib.suppress(OSError):  # a reaper that somebody ended is a protection less, not a failure
            os.write(self._pipe, os.fsencode(path) + b"\0")

    def close(self) -> None:
        """End it: what still runs is killed, the files are removed."""
        os.close(self._pipe)
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
        self._cells.close()
