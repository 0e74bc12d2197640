"""Where a sample's directory lies, and what one row of a sample table is called.

Merlin spreads the directories of N samples over levels of at most ``level_max_dirs`` entries each, so that no directory
grows large. The path of a sample is its index written in base ``level_max_dirs``, one directory a digit; a single sample
needs none. Checked against upstream for the table in its reference (25/25, 26/25, 10/9, 101/100 …).
"""

from __future__ import annotations

import functools
from typing import Final

MAX_PATHS: Final = 1 << 20
"""Characters of all paths together that a command line takes: Linux has 2 MiB for arguments and environment (a quarter of the
usual stack limit), and half of it is left to the rest."""


@functools.lru_cache(maxsize=256)
def depth(count: int, level_max_dirs: int) -> int:
    """Return how many levels of directories ``count`` samples need.

    Raises:
        ValueError: directories of one entry would nest for ever.
    """
    if count <= 1:
        return 0
    if level_max_dirs < 2:
        raise ValueError(f"level_max_dirs must be at least 2, not {level_max_dirs}")
    levels, room = 1, level_max_dirs
    while room < count:
        levels, room = levels + 1, room * level_max_dirs
    return levels


def path(index: int, count: int, level_max_dirs: int) -> str:
    """Return the relative directory of sample ``index`` of ``count``, ``00/07`` for instance; empty for a single one."""
    levels = depth(count, level_max_dirs)
    if not levels:
        return ""
    above, digit = divmod(index, level_max_dirs)
    return _above(above, levels - 1, level_max_dirs) + str(digit).zfill(len(str(level_max_dirs)))


@functools.lru_cache(maxsize=256)
def _above(index: int, levels: int, level_max_dirs: int) -> str:
    """Return the directories that neighbours share, with a slash after each."""
    width = len(str(level_max_dirs))
    digits = []
    for _ in range(levels):
        index, digit = divmod(index, level_max_dirs)
        digits.append(f"{digit:0{width}d}/")
    return "".join(reversed(digits))


def paths(count: int, level_max_dirs: int) -> str | None:
    """Return every sample's directory with blanks between them, empty for a single sample; None beyond `MAX_PATHS`."""
    if paths_size(count, level_max_dirs) > MAX_PATHS:
        return None
    return " ".join(path(index, count, level_max_dirs) for index in range(count)) if count > 1 else ""


def paths_size(count: int, level_max_dirs: int) -> int:
    """Return how many characters `paths` has or would have."""
    return max(0, count * depth(count, level_max_dirs) * (len(str(level_max_dirs)) + 1) - 1)


def glob(count: int, level_max_dirs: int) -> str:
    """Return the shell pattern that matches every sample's directory: one ``*/`` a level."""
    return "*/" * depth(count, level_max_dirs)
