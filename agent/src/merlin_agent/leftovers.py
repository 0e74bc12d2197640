"""Halves of archives that agents left which died while they wrote them (`merlin_agent.packed`).

An archive gets its name when it is whole; until then it lies beside its place under a hidden one. Where its agent dies, the tasks in it run
again, and whoever has them next removes the half. Which agents are dead is told by their presence files and the file system's own clock.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import Final

from merlin_agent import files, presence
from merlin_study import archive

_HALF: Final = re.compile(r"\.\d+-\d+\.\d+\.(?P<agent>.+-[0-9a-f]{6})(?:\.\d+)?\.zip\.[0-9a-f]{6}")


def half(path: str) -> str:
    """Return where an archive is written until it is whole."""
    directory, name = os.path.split(path)
    return f"{directory}/.{name}.{secrets.token_hex(3)}"


def remove(logs: str, tasks: range, *, info: str, agent: str, stale: float) -> None:
    """Remove the halves that dead agents left beside the archives of some tasks.

    Args:
        logs: Where the step's archives lie.
        tasks: The tasks.
        info: The study's ``merlin_info``.
        agent: Who we are; what we write ourselves stays.
        stale: For how many seconds an agent that lives may be silent.

    Raises:
        OSError: the directories can't be read, or a half can't be removed.
    """
    for directory, name in archive.beside(logs, tasks):
        if (found := _HALF.fullmatch(name)) is None or found["agent"] == agent:
            continue
        if presence.age(info, agent, found["agent"]) > stale:
            files.remove(f"{directory}/{name}")
