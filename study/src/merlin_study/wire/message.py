"""The base of all messages, and the bounds that sender and receiver share."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION: Final = 1
MAX_REPORT_BYTES: Final = 64 * 1024
MAX_EXCEPTIONS: Final = 20
"""Failures that a report tells in full; the rest travel as masks per exit code."""
MAX_TAIL: Final = 512
"""Characters of standard error that travel with a failure."""


class Message(BaseModel):
    """The base of all messages: immutable, closed, strict; a number is one that can be counted with."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def encode(self) -> bytes:
        """Return the message as JSON."""
        return self.model_dump_json().encode()
