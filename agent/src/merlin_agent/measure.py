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
    """Return when the broker stored a message (Unix time), from the subject on which JetStream wants it answered."""
    stamp = _delivery(reply)[0]
    return int(stamp) / 1e9 if stamp.isascii() and stamp.isdigit() else None


def behind(reply: str) -> int:
    """Return how many messages waited behind one as the broker handed it out, from the same subject; 0 where that is not known."""
    pending = _delivery(reply)[1]
    return int(pending) if pending.isascii() and pending.isdigit() else 0


def _delivery(reply: str) -> tuple[str, str]:
    """Return when a message was stored, in nanoseconds, and how many wait behind it; empty where its subject says neither.

    ``$JS.ACK.stream.consumer.delivered.sequence.sequence.nanoseconds.pending``, with domain and account before the stream where
    the broker has domains.
    """
    words = reply.split(".")
    if words[:2] != ["$JS", "ACK"] or len(words) < 9:
        return "", ""
    if len(words) == 9:
        return words[7], words[8]
    return (words[9], words[10]) if len(words) >= 11 else ("", "")
