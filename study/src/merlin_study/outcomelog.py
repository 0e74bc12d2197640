"""The agents' own record in the workspace, ``merlin_info/outcomes/<agent>.jsonl``: one line an entry, written before the broker hears of it.

With the plan beside it, the logs of all agents are enough to rebuild a ledger: a new holder of a lost chunk reads what its
predecessor still finished, and ``merlin status DIR`` and ``merlin restart DIR`` need neither cluster nor broker.

An agent that dies may leave half a line. What is no entry is skipped, never guessed at; each batch begins on a line of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from merlin_study.wire import Report, Start

MAX_LINE: Final = 4 << 20
"""Longer lines are no entries: a chunk's widest mask is 175 KB as text, and a start names its lost holders."""


class Entry(BaseModel):
    """A won claim or a report, with the study and the plan that it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    plan: str
    start: Start | None = None
    report: Report | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Entry:
        if (self.start is None) == (self.report is None):
            raise ValueError("an entry is either a start or a report")
        return self


@dataclass(frozen=True, slots=True)
class Decoded:
    """The entries of a log in their order, and how many lines were none."""

    entries: tuple[Entry, ...]
    damaged: int


def encode_line(entry: Entry) -> bytes:
    """Return the entry's line."""
    return entry.model_dump_json(exclude_none=True).encode() + b"\n"


def decode_lines(data: bytes) -> Decoded:
    """Return what a log holds; a last line without its end is still being written, or torn, and does not count as damage."""
    lines = data.split(b"\n")
    lines.pop()
    entries: list[Entry] = []
    damaged = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError("too long")  # noqa: TRY301 - one way out for all that is no entry
            entries.append(Entry.model_validate_json(line))
        except (ValidationError, ValueError):
            damaged += 1
    return Decoded(tuple(entries), damaged)
