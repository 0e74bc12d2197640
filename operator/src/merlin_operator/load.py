"""How full the broker is and what waits in it, as it says itself: values, and how they are told by site and queue.

A consumer exists for each (site, user, queue, shape, band) that a live agent serves. What is shown is by site and queue: sums
of what waits, and the fullest consumer's share of what may be unacknowledged, since that one stalls first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from merlin_operator.measures import MAX_PAIRS, OTHER

LEAST_ROOM: Final = 1 << 16
"""Bytes below which the store counts as full: a report may be as long."""


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """A stream: what it is for (``tasks``, ``reports``, ``control``), messages, bytes, and its own limit (None: it has none).

    ``replicas`` servers shall keep it, ``current`` of them are up to date with it and with its consumers. While one of
    several catches up it may not lead, so that the death of another can leave the stream without a leader.
    """

    role: str
    messages: int
    size: int
    limit: int | None
    replicas: int = 1
    current: int = 1


@dataclass(frozen=True, slots=True)
class ConsumerLoad:
    """A pull consumer: what no agent has fetched, what is fetched and unacknowledged, how much of that came again."""

    site: str
    queue: str
    pending: int
    ack_pending: int
    ack_limit: int
    redelivered: int


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """The consumers of a site and queue together; ``ack_share`` is that of the fullest, from 0 to 1."""

    pending: int = 0
    ack_pending: int = 0
    ack_share: float = 0.0
    redelivered: int = 0

    def plus(self, consumer: ConsumerLoad) -> QueueLoad:
        """Return this with one consumer more."""
        share = consumer.ack_pending / consumer.ack_limit if consumer.ack_limit > 0 else 0.0
        return QueueLoad(
            self.pending + consumer.pending,
            self.ack_pending + consumer.ack_pending,
            max(self.ack_share, share),
            self.redelivered + consumer.redelivered,
        )


@dataclass(frozen=True, slots=True)
class BrokerLoad:
    """Everything that was asked for at one time; bytes on disk of the whole account, and its limit (None: it has none)."""

    stored: int
    store_limit: int | None
    streams: tuple[StreamLoad, ...]
    consumers: tuple[ConsumerLoad, ...]

    @property
    def full(self) -> bool:
        """Whether there is no room; never where the store has no limit of its own."""
        return self.store_limit is not None and self.store_limit - self.stored < LEAST_ROOM

    @property
    def thin(self) -> str:
        """Say which streams fewer servers hold than shall; empty where none is so."""
        lacking = [each for each in self.streams if each.current < each.replicas]
        if not lacking:
            return ""
        named = ", ".join(f"{each.role} {each.current} of {each.replicas}" for each in lacking)
        return f"servers that are up to date with a stream: {named}; until all are, stop none of them"


def by_queue(consumers: Sequence[ConsumerLoad]) -> dict[tuple[str, str], QueueLoad]:
    """Return the load of each (site, queue); pairs beyond `measures.MAX_PAIRS`, those with least in them, as `OTHER`."""
    found: dict[tuple[str, str], QueueLoad] = {}
    for each in consumers:
        pair = (each.site, each.queue)
        found[pair] = found.get(pair, QueueLoad()).plus(each)
    order = sorted(found, key=lambda pair: (-(found[pair].pending + found[pair].ack_pending), pair))
    kept = {pair: found[pair] for pair in sorted(order[:MAX_PAIRS])}
    rest = set(order[MAX_PAIRS:])
    for each in consumers:
        if (each.site, each.queue) in rest:
            kept[OTHER, OTHER] = kept.get((OTHER, OTHER), QueueLoad()).plus(each)
    return kept
