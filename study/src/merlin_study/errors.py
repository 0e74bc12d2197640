"""What is wrong with a study, said so that its author can cure it.

A :class:`Fault` is one sentence about one place: where, what was expected, what was found, what to do. Everything that
judges a study collects faults and goes on, so that a user sees all of them at once; only the edge that needs a study
without faults raises. The operator writes the same sentences into the ``Accepted`` condition that the command line prints.

The tree of exceptions, split by what a catcher can do::

    ValueError
    └── SpecError    the author of the study can cure it: show the faults, run nothing

Whatever else this package raises is a mistake of its caller, not of the study's author.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

INVALID_SPEC: Final = "InvalidSpec"
"""A value is missing, of the wrong type or out of bounds, or the text is no YAML that we read."""
DIFFERS_BY_SAMPLE: Final = (
    "which differs between samples: their tokens are filled in in cmd and restart only; use a parameter here"
)
"""Why a key of a step can't hold a sample's token. It is upstream's rule, too; there the token stays as it is."""
UNKNOWN_FIELD: Final = "UnknownField"
"""A key that the language does not have."""
CYCLE_DETECTED: Final = "CycleDetected"
"""Steps wait for each other in a circle, or a step waits for itself."""
UNKNOWN_DEPENDENCY: Final = "UnknownDependency"
"""``depends`` names a step that the study does not have."""
DUPLICATE_STEP: Final = "DuplicateStep"
"""Two steps have one name, or names that lead to one directory."""
UNEQUAL_PARAMETERS: Final = "UnequalParameters"
"""The lists of ``global.parameters`` are zipped, so they need equal lengths."""
UNDEFINED_TOKEN: Final = "UndefinedToken"  # noqa: S105 a reason, not a secret
"""A ``$(TOKEN)`` of ours that nothing defines."""
UNSAFE_NAME: Final = "UnsafeName"
"""A name that could leave the workspace, or that no file or subject can carry."""
NOT_YET_SUPPORTED: Final = "NotYetSupported"
"""Part of the language, but not built yet: refused instead of ignored."""
SUBMISSION_REFUSED: Final = "SubmissionRefused"
"""A step asked for a study that it may not start, or that cannot run."""

MAX_SHOWN: Final = 1000
"""Characters of a path or message; a user's own text may be any length."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, at one place.

    Attributes:
        path: Where: ``spec.study[2].run.depends[0]``, or ``file.yaml:3:7`` (line and column from 1) for a text that is
            no YAML; empty where no place can be named.
        message: What was expected, what was found (quoted), what to do; one line, no full stop.
        reason: One of this module's constants; the reason of the ``Accepted`` condition.
    """

    path: str
    message: str
    reason: str = INVALID_SPEC

    def __post_init__(self) -> None:
        """Keep one fault on one line of bounded length, whatever the user's text that it quotes."""
        object.__setattr__(self, "path", _printable(self.path))
        object.__setattr__(self, "message", _printable(self.message))

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A study that its author has to change; carries everything that was found, in the order of the text.

    Attributes:
        faults: At least one.
    """

    faults: tuple[Fault, ...]

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        if not self.faults:
            raise AssertionError("a SpecError without faults: this is a bug, please report it")
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Fault, ...]]]:
        """Pickle the faults, not the text that `ValueError` keeps."""
        return type(self), (self.faults,)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """The hint that a misspelt word deserves, ready to be appended to a message.

    Args:
        word: What was written.
        candidates: What would have been right.

    Returns:
        `` (did you mean 'sim'?)`` with its leading space, or an empty string where nothing comes close. The spelling is
        compared without regard to case, ``_``, ``-`` and spaces first, since those are what users most often mistake.
    """
    known = list(dict.fromkeys(candidates))
    folded = {_fold(candidate): candidate for candidate in reversed(known)}
    close = folded.get(_fold(word)) or next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.7)), None)
    return f" (did you mean '{close}'?)" if close is not None and close != word else ""


def _printable(text: str) -> str:
    """The text with line breaks and the like written as escapes, and its middle left out where it is endless."""
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN - 200]} ... {text[-200:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _fold(word: str) -> str:
    """The letters of a word that carry its meaning."""
    return word.casefold().replace("_", "").replace("-", "").replace(" ", "")
