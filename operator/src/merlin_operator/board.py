"""The seam between the engine and whoever shows studies to users: the API server, or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from merlin_operator.family import Lineage
from merlin_operator.view import StudyRef, StudyView
from merlin_study import wire


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent as its heartbeats show it; ``silent_for`` is in seconds by the operator's own monotonic clock.

    ``quarantine``: that of its host, if it is quarantined.
    """

    heartbeat: wire.Heartbeat
    silent_for: float
    quarantine: wire.Quarantine | None = None


class Board(Protocol):
    """Shows what the engine knows. Implementations bound their own rate of writes and never raise for an outage."""

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Show the present state of all studies and agents; called about once a second, and at once when one finishes.

        ``news``: those of the views that are others than at the last call, so that nobody has to look for them; None: any may be.
        """


@dataclass(frozen=True, slots=True)
class Submission:
    """A Study as it was handed in: who it is, which generation of it, when it was made (Unix time), and its raw ``spec``."""

    ref: StudyRef
    generation: int
    resource_version: str
    created: float
    spec: dict[str, Any]
    status: dict[str, Any]
    lineage: Lineage = field(default_factory=Lineage)
