"""What the agent counts of the tasks that it ran, told in every heartbeat as totals since its start.

Totals, not differences: a heartbeat may be lost, and the next one says the same and more. Nobody scrapes a compute node.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

from merlin_study import wire
from merlin_study.outcome import Outcome

OTHER: Final = "other"
"""The name under which queues beyond `wire.MAX_QUEUES_TOLD` are told together."""


class _Spread:
    def __init__(self) -> None:
        self._counts = [0] * (len(wire.BUCKETS) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(wire.BUCKETS, seconds)] += 1
        self._seconds += seconds

    def told(self) -> wire.Spread:
        return wire.Spread(counts=tuple(self._counts), seconds=self._seconds)


class _Queue:
    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.ran, self.waited = _Spread(), _Spread()


class Measures:
    """The totals, by queue."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    def note(self, queue: str, outcome: Outcome, *, ran: float, waited: float | None) -> None:
        """Count an execution that ended; ``waited`` None: nobody knows how long."""
        found = self._queues.get(queue)
        if found is None:
            name = queue if len(self._queues) < wire.MAX_QUEUES_TOLD else OTHER
            found = self._queues.setdefault(name, _Queue())
        found.outcomes[outcome] += 1
        found.ran.add(max(0.0, ran))
        if waited is not None:
            found.waited.add(max(0.0, waited))  # the clocks of broker and agent may differ a little

    def told(self) -> tuple[wire.QueueFigures, ...]:
        """Return what a heartbeat tells."""
        return tuple(
            wire.QueueFigures(
                queue=name, outcomes=dict(queue.outcomes), ran=queue.ran.told(), waited=queue.waited.told()
            )
            for name, queue in self._queues.items()
        )


def published_at(reply: str) -> float | None:
    """Return when the broker stored a message (Unix time), from the subject on which JetStream wants it answered.

    ``$JS.ACK.stream.consumer.delivered.sequence.sequence.nanoseconds.pending``, with domain and account before the stream where
    the broker has domains.
    """
    words = reply.split(".")
    if words[:2] != ["$JS", "ACK"] or len(words) < 9:
        return None
    stamp = words[7] if len(words) == 9 else words[9] if len(words) >= 11 else ""
    return int(stamp) / 1e9 if stamp.isascii() and stamp.isdigit() else None
