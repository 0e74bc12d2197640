"""A directory of this agent's on the host's own disk, in which tasks of packed steps run.

It is removed when the agent leaves, by the reaper where the agent is killed, and by the next agent of this user where both were. The
lock in it says whether its agent lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Final

from merlin_agent import files

_PREFIX: Final = "merlin-own-"
_LOCK: Final = "lock"


class OwnDisk:
    """Made when it is needed first, from any thread."""

    def __init__(self, base: str, remove_at_end: Callable[[str], None]) -> None:
        self._base, self._remove_at_end = base, remove_at_end
        self._guard = threading.Lock()
        self._directory = ""
        self._lock = -1

    def of(self, study: str) -> str:
        """Return the directory of a study.

        Raises:
            OSError: it can't be made.
        """
        with self._guard:
            if not self._directory:
                self._clean()
                made = tempfile.mkdtemp(prefix=_PREFIX, dir=self._base)
                self._remove_at_end(made + "/")
                self._lock = os.open(f"{made}/{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                os.rename(f"{made}/{_LOCK}.new", f"{made}/{_LOCK}")  # nobody finds it before it is locked
                self._directory = made
            return f"{self._directory}/{study}"

    def _clean(self) -> None:
        """Remove what agents of ours left that were killed."""
        with os.scandir(self._base) as scanned:
            found = [each.path for each in scanned if each.name.startswith(_PREFIX)]
        for path in found:
            with contextlib.suppress(OSError):
                if os.lstat(path).st_uid != os.geteuid():
                    continue
                lock = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    files.remove_tree(path)
                finally:
                    os.close(lock)

    def close(self) -> None:
        """Remove it."""
        with self._guard:
            if self._directory:
                files.remove_tree(self._directory)
                os.close(self._lock)
                self._directory = ""
