"""Presence: a file an agent in each workspace, touched while it holds chunks there.

Who takes over a lost chunk asks the file system, not a clock of its own or the holder's: it touches its own file and compares the
times. As long as the holder's is young, its tasks may still run in the same directories.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from merlin_agent import files
from merlin_study.workspace import PRESENCE

FOREVER: Final = float("inf")


def path_of(info: str, agent: str) -> str:
    """Return an agent's presence file in a study's ``merlin_info``."""
    return f"{info}/{PRESENCE}/{agent}"


def age(info: str, agent: str, other: str) -> float:
    """Return how long ago ``other`` was there, by the file system's clock; `FOREVER` if its file is not there."""
    mine = path_of(info, agent)
    files.touch(mine)
    try:
        return os.stat(mine).st_mtime - os.stat(path_of(info, other)).st_mtime
    except FileNotFoundError:
        return FOREVER


class Presence:
    """This agent's files."""

    def __init__(self, agent: str, remove_at_end: Callable[[str], None]) -> None:
        self._agent, self._remove_at_end = agent, remove_at_end
        self._paths: set[str] = set()

    def enter(self, info: str) -> None:
        """Be present in a workspace from now on."""
        path = path_of(info, self._agent)
        if path not in self._paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._remove_at_end(path)
            self._paths.add(path)
        files.touch(path)

    def leave(self) -> None:
        """Be present nowhere any more."""
        for path in self._paths:
            try:
                files.remove(path)
            except OSError:  # the file grows old by itself
                continue
        self._paths.clear()
