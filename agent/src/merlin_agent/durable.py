"""Having what tasks left be on disk before their success is told, or a host that dies would take it along.

A sync of each file would cost every task several calls and waits. ``syncfs`` has all be written that this host still holds for a file system,
whichever task wrote it, and whoever asks while one runs shares the next one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Final

_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)


class Unsynced:
    """What tasks have left in a study's workspace since that was synced last; slots' threads tell it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._unsynced = False

    def note(self) -> None:
        """Something was left; said before anybody hears of the task's end."""
        self._unsynced = True

    def sync(self) -> None:
        """Return once all is on disk that was left before.

        Raises:
            OSError: the file system says that it could not write all that it had taken.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _turns(os.fstat(handle).st_dev).take(lambda: _sync(handle))
            finally:
                os.close(handle)
        except OSError:
            self._unsynced = True
            raise


class Turns:
    """Has something be done that serves all who asked for it before it began; one at a time."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._begun = self._ended = 0
        self._failed: tuple[int, OSError] | None = None
        self.waiting = 0
        """How many wait for a turn."""

    def take(self, act: Callable[[], None]) -> None:
        """Return once it was done, here or in another thread, after this call.

        Raises:
            OSError: what ``act`` raised in that turn.
        """
        with self._condition:
            mine = self._begun + 1
            self.waiting += 1
            while self._begun > self._ended and self._ended < mine:
                self._condition.wait()
            self.waiting -= 1
            if self._ended >= mine:
                if self._failed is not None and self._failed[0] >= mine:
                    raise self._failed[1]
                return
            self._begun = mine
        try:
            act()
        except OSError as error:
            self._failed = mine, error
            raise
        finally:
            with self._condition:
                self._ended = mine
                self._condition.notify_all()


@functools.cache
def _turns(device: int) -> Turns:
    """Return the turns of a file system."""
    del device
    return Turns()


def _sync(handle: int) -> None:
    if _LIBRARY.syncfs(handle):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
