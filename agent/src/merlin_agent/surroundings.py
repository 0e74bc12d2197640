"""The environment that this agent runs in, as texts of a study see it: ``~`` and ``$NAME`` stand for what they do here."""

from __future__ import annotations

import os

from merlin_study import environment


def complete(text: str) -> str:
    """Replace a leading ``~`` and environment variables; one that is not set stays."""
    return environment.expand(text, os.environ, os.path.expanduser)
