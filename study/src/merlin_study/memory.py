"""Amounts of memory as people write them: `4GiB`, `512M`, `16G`; a bare number is MiB, as Slurm has it. Pure."""

from __future__ import annotations

import math
import re
import shlex
from typing import Final

_AMOUNT: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_MEBIBYTES: Final = {"k": 1 / 1024, "": 1, "m": 1, "g": 1024, "t": 1024 * 1024}
_OPTION: Final = re.compile(r"--mem(-per-cpu)?(?:=(.*))?")


def mebibytes(text: str) -> int:
    """Return an amount in MiB, rounded up.

    Raises:
        ValueError: it is none.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"expected an amount of memory such as 4GiB or 512M, found {text!r}")
    return math.ceil(float(found[1]) * _MEBIBYTES[found[2].lower()])


def of_slurm(arguments: str, cores: int) -> int | None:
    """Return the MiB on each host that Slurm's own ``--mem`` or ``--mem-per-cpu`` ask for; None where they don't, or not readably.

    ``cores`` are the task's on a host. ``--mem=0`` means all of it to Slurm, and nothing to us.
    """
    try:
        words = shlex.split(arguments)
    except ValueError:
        return None
    for at, word in enumerate(words):
        if (option := _OPTION.fullmatch(word)) is not None:
            text = option[2] if option[2] is not None else "".join(words[at + 1 : at + 2])
            try:
                return mebibytes(text) * (cores if option[1] else 1)
            except ValueError:
                return None
    return None
