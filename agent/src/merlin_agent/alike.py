"""A text that stands for those of many samples where a script is checked: scripts that differ in numbers only are checked once.

The check (`warmth.may_run`) reads words and signs of the shell. A number begins and ends with a digit, so it makes and breaks none of them,
unless it becomes part of a variable's name, a substitution or a subscript; behind a word, or what takes options, its sign would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_NUMBER: Final = re.compile(r"[0-9]+(?:[./][0-9]+)*(?:e[-+]?[0-9]+)?")
_SIGNED: Final = re.compile(f"-?{_NUMBER.pattern}")
_TOUCHES: Final = re.compile(r"(?:\$\{?\w*|\$\{[^}]*|\w\[[^\]\n]*|\bkill\s[^\n;|&]*)\Z")
"""What a number that follows becomes a part of; behind ``kill`` it may be a signal."""
_TAKES_A_SIGN: Final = re.compile(r"(?:\w|\b(?:declare|typeset|local|export|set)\s+)\Z")


class Alike(NamedTuple):
    """The text with noughts for numbers, and whether they may be negative."""

    text: str
    signed: bool

    def covers(self, values: Iterable[str]) -> bool:
        """Whether a text with these values is alike."""
        number = _SIGNED if self.signed else _NUMBER
        return all(map(number.fullmatch, values))


def alike(pieces: Sequence[str]) -> Alike | None:
    """Return what stands for a template's texts, given its pieces (text, name, text …); None where numbers make a difference."""
    text, signed = pieces[0], True
    for following in pieces[2::2]:
        if _TOUCHES.search(text):
            return None
        signed = signed and not _TAKES_A_SIGN.search(text)
        text += "0" + following
    return Alike(text, signed)
