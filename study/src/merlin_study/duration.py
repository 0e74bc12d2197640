"""Walltimes as users of Merlin, Maestro and Slurm write them, in seconds."""

from __future__ import annotations

import re
from typing import Final

_CLOCK: Final = re.compile(r"(?:(?:(?P<days>\d+)[-:])?(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")
_UNIT: Final = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[smhd]?)", re.IGNORECASE)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(value: int | str, *, minutes: bool = False) -> int:
    """Return a walltime in seconds: ``36000``, ``"90m"``, ``[d:]h:m:s``, ``m:s`` or Slurm's ``d-h:m:s``.

    A bare number is seconds, as Merlin reads it, or ``minutes``, as Maestro and the batch systems do.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    text = str(value).strip()
    if clock := _CLOCK.fullmatch(text):
        days, hours, mins, secs = (int(clock[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
        total = ((days * 24 + hours) * 60 + mins) * 60 + secs
    elif unit := _UNIT.fullmatch(text):
        total = round(float(unit["count"]) * (60 if minutes and not unit["unit"] else _SECONDS[unit["unit"].lower()]))
    else:
        total = 0
    if total <= 0:
        raise ValueError(f"expected seconds, [d:]h:m:s or a number with s, m, h or d, found {text!r}")
    return total
