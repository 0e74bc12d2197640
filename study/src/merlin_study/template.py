r"""Text with ``$(TOKEN)`` in it, split once and filled in for each task.

Substitution is literal and happens once: what a value holds is never read as a token again, quoted or re-typed (upstream
substitutes with regular expression templates, where a value ``C:\new`` becomes a line break). A token that the context
does not define stays as it is, for the shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

TOKEN: Final = re.compile(r"\$\(([^()$`\s]+|[^()$`\n]+\.workspace)\)")
"""A token as both Merlin and Maestro write it; what holds a nested ``$``, or a blank that is not a step's, is the shell's."""


Lookup = Callable[[str], str | None]
"""Gives the text of a token, or None where it is not defined."""


class TooLongError(ValueError):
    """The text would become longer than was asked for; nothing of it was built."""


def is_number(text: str) -> bool:
    """Whether a text, tokens filled in, is a whole number of a size that Python reads as one."""
    return text.isdecimal() and text.isascii() and len(text) < 20


def shown(text: str) -> str:
    """Return a text as messages quote it: the beginning of a long one."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


@dataclass(frozen=True, slots=True)
class Template:
    """Literal pieces and token names in turn: ``pieces[0]`` is text, ``pieces[1]`` a name, and so on."""

    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Split ``text`` at its tokens."""
        return cls(tuple(TOKEN.split(text)))

    def names(self) -> Iterator[str]:
        """Yield the token names in the order in which they stand, repeats included."""
        return iter(self.pieces[1::2])

    def render(self, lookup: Lookup, *, limit: int | None = None) -> str:
        """Return the text with each token replaced by ``lookup(name)``, or left alone where that is None.

        Raises:
            TooLongError: it would have more than ``limit`` characters.
        """
        pieces = self.pieces
        if len(pieces) == 1:
            return pieces[0]
        out = [pieces[0]]
        for at in range(1, len(pieces), 2):
            value = lookup(pieces[at])
            out.append(f"$({pieces[at]})" if value is None else value)
            out.append(pieces[at + 1])
        if limit is not None and sum(map(len, out)) > limit:
            raise TooLongError
        return "".join(out)


def tokens(text: str) -> list[str]:
    """Return the names of the tokens in ``text``, in order."""
    return TOKEN.findall(text)
