"""Metrics of the broker: whether it is there, and what it says of itself. Absent while it cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from merlin_operator.load import BrokerLoad, by_queue


def load(found: BrokerLoad | None) -> Iterator[Metric]:
    """Return the families of streams and consumers."""
    yield from _streams(found)
    yield from _consumers(found)


def _streams(found: BrokerLoad | None) -> Iterator[Metric]:
    stored = GaugeMetricFamily("merlin_broker_storage_bytes", "What all streams of the broker's account take on disk")
    most = GaugeMetricFamily("merlin_broker_storage_limit_bytes", "What they may take, where the account has a limit")
    messages = GaugeMetricFamily("merlin_stream_messages", "Messages in a stream", labels=["stream"])
    size = GaugeMetricFamily("merlin_stream_bytes", "What a stream takes on disk", labels=["stream"])
    limit = GaugeMetricFamily(
        "merlin_stream_limit_bytes", "What a stream may take, where it has a limit of its own", labels=["stream"]
    )
    replicas = GaugeMetricFamily(
        "merlin_stream_replicas", "Servers of the broker's cluster that shall keep a stream", labels=["stream"]
    )
    current = GaugeMetricFamily(
        "merlin_stream_current_replicas", "Servers that are up to date with it and its consumers", labels=["stream"]
    )
    if found is not None:
        stored.add_metric([], found.stored)
        if found.store_limit is not None:
            most.add_metric([], found.store_limit)
        for stream in found.streams:
            messages.add_metric([stream.role], stream.messages)
            size.add_metric([stream.role], stream.size)
            replicas.add_metric([stream.role], stream.replicas)
            current.add_metric([stream.role], stream.current)
            if stream.limit is not None:
                limit.add_metric([stream.role], stream.limit)
    yield from (stored, most, messages, size, limit, replicas, current)


def _consumers(found: BrokerLoad | None) -> Iterator[Metric]:
    pending = _of_queue("pending_chunks", "Chunks that no agent has fetched yet")
    held = _of_queue("ack_pending_chunks", "Chunks that agents fetched and have not claimed yet")
    share = _of_queue(
        "ack_pending_ratio", "Share of its limit of unclaimed chunks that the fullest consumer has reached"
    )
    again = _of_queue("redelivered_chunks", "Unclaimed chunks that were delivered more than once")
    for pair, queue in by_queue(found.consumers if found is not None else ()).items():
        pending.add_metric(pair, queue.pending)
        held.add_metric(pair, queue.ack_pending)
        share.add_metric(pair, queue.ack_share)
        again.add_metric(pair, queue.redelivered)
    yield from (pending, held, share, again)


def _of_queue(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"merlin_consumer_{name}", text, labels=["site", "queue"])
