"""Host lists as Slurm and Flux write them (``n[1-3,07],gpu1``; RFC 29 of Flux), spelled out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

_MOST: Final = 1 << 17
"""More hosts than any machine has; a list beyond it is a mistake, and would fill the memory."""


def expand(text: str) -> tuple[str, ...]:
    """Return the hosts in their order, each once.

    Raises:
        ValueError: it is no host list, or names more than 131,072 hosts.
    """
    found = itertools.islice((host for word in _words(text) for host in _hosts(word)), _MOST + 1)
    hosts = tuple(dict.fromkeys(found))
    if len(hosts) > _MOST:
        raise ValueError(f"expected at most {_MOST} hosts, found more in {text[:80]!r}")
    return hosts


def _words(text: str) -> Iterator[str]:
    """Split at commas outside of brackets."""
    depth, word = 0, ""
    for letter in text.strip():
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if not 0 <= depth <= 1:
            raise ValueError(f"expected a list of hosts such as n[1-3],m5, found {text[:80]!r}")
        if letter == "," and depth == 0:
            yield word
            word = ""
        else:
            word += letter
    if depth:
        raise ValueError(f"expected ']' in {text[:80]!r}")
    if word:
        yield word


def _hosts(word: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\]]*)\]", word)
    choices = [[piece] if at % 2 == 0 else list(_numbers(piece)) for at, piece in enumerate(pieces)]
    return ("".join(parts) for parts in itertools.product(*choices))


def _numbers(ranges: str) -> Iterator[str]:
    """Spell out ``1-3,07``; leading zeros say how wide each number is."""
    for each in ranges.split(","):
        first, dash, last = each.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"expected numbers such as 1-3,07 in brackets, found {ranges[:80]!r}")
        numbers = range(int(first), int(last or first) + 1)
        if len(numbers) > _MOST:
            raise ValueError(f"expected at most {_MOST} hosts, found {len(numbers)} in {ranges[:80]!r}")
        for number in numbers:
            yield f"{number:0{len(first)}d}"
