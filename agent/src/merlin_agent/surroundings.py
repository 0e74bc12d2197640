"""What this agent runs in: its environment as texts of a study see it (``~`` and ``$NAME`` stand for what they do here), its host."""

from __future__ import annotations

import os
import socket

from merlin_study import environment


def host() -> str:
    """Return this host's name as its administrators know it: Slurm's own, where Slurm started us."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def complete(text: str) -> str:
    """Replace a leading ``~`` and environment variables; one that is not set stays."""
    return environment.expand(text, os.environ, os.path.expanduser)
