"""What a Study's status counts of each of its steps: the operator writes it, and the command line reads it."""

from __future__ import annotations

from typing import Final

COUNTS: Final = {
    "succeeded": "succeeded",
    "softFailed": "soft_failed",
    "failed": "failed",
    "timedOut": "timed_out",
    "cancelled": "cancelled",
    "running": "running",
    "retrying": "retrying",
    "lost": "lost",
}
"""By name in the status: what the same count is called in Python."""
