"""What a step's ``task_queue`` comes to."""

from __future__ import annotations

from typing import Final

NO_QUEUE: Final = "merlin"
"""The queue of steps that ask for none (``task_queue: none``), as upstream has it without its tag."""


def queue_name(written: str) -> str:
    """Return the queue of a step that asks for ``written``, tokens expanded."""
    return NO_QUEUE if written.lower() in ("", "none") else written
