"""How full the broker is and what waits in it: asked of a real one, told by site and queue, absent while it is away."""

from __future__ import annotations

import asyncio

import prometheus_client

from merlin_operator import broker_metrics
from merlin_operator.load import BrokerLoad, ConsumerLoad, by_queue
from merlin_operator.measures import MAX_PAIRS, OTHER
from merlin_operator.stream import Broker as Connection
from merlin_operator.stream import ConsumerSpec
from merlin_study import subjects
from tests.ground import Broker

SPACE = subjects.Space("team")
ROUTE = subjects.Route("hpc", "long queue", "n1.c1", "bulk")


async def loaded(server: Broker) -> BrokerLoad:
    """Hand out four chunks, let an agent fetch three of them, one of these twice, claim none, and ask."""
    connection = Connection(SPACE, server=server.url, options=dict(server.credentials))
    await connection._connect()
    try:
        await connection.ensure_streams()
        await connection.ensure_consumer(ConsumerSpec(ROUTE.consumer, SPACE.chunks(ROUTE), ROUTE.token))
        chunks = [(SPACE.chunk(ROUTE, "uid", fence), b"sealed") for fence in range(1, 5)]
        cursor = await connection.publish_batch((SPACE.cursor("uid"), b"cursor"), chunks[:3], expected=0)
        agent = await connection.jetstream().pull_subscribe_bind(ROUTE.consumer, SPACE.task_stream)
        first, *_ = await agent.fetch(3)
        await first.nak()
        (again,) = await agent.fetch(1)
        assert again.metadata.num_delivered == 2
        await connection.publish_batch((SPACE.cursor("uid"), b"cursor"), chunks[3:], expected=cursor)
        return await connection.load()
    finally:
        await connection.close()


def test_a_broker_tells_what_waits_and_how_much_room_is_left() -> None:
    with Broker(user="operator", store_limit="1Gi") as server:
        found = asyncio.run(loaded(server))
    assert found.store_limit == 1 << 30
    messages = {stream.role: stream.messages for stream in found.streams}
    assert messages == {"tasks": 5, "reports": 0, "control": 0}
    assert found.stored == sum(stream.size for stream in found.streams) > 0
    assert {stream.limit for stream in found.streams} == {None}
    (consumer,) = found.consumers
    assert (consumer.site, consumer.queue) == ("hpc", "long queue")
    assert (consumer.pending, consumer.ack_pending, consumer.redelivered) == (1, 3, 1)
    assert consumer.ack_limit == 65_536


def test_a_broker_without_a_limit_tells_none() -> None:
    with Broker() as server:
        assert asyncio.run(loaded(server)).store_limit is None


def consumer(site: str, *, pending: int = 0, ack_pending: int = 0, limit: int = 100) -> ConsumerLoad:
    return ConsumerLoad(site, "q", pending, ack_pending, limit, redelivered=0)


def test_the_fullest_consumer_of_a_queue_is_the_one_that_counts() -> None:
    """One that is full stalls, however empty those of other shapes and bands are."""
    (queue,) = by_queue([consumer("s", ack_pending=95), consumer("s", ack_pending=5)]).values()
    assert (queue.ack_pending, queue.ack_share) == (100, 0.95)


def test_a_consumer_without_a_limit_has_no_share() -> None:
    (queue,) = by_queue([consumer("s", ack_pending=95, limit=-1)]).values()
    assert queue.ack_share == 0


def test_sites_and_queues_beyond_the_bound_are_told_together() -> None:
    found = by_queue([consumer(f"s{number}", pending=number) for number in range(3 * MAX_PAIRS)])
    assert len(found) == MAX_PAIRS + 1
    assert found[OTHER, OTHER].pending == sum(range(2 * MAX_PAIRS)), "those with most in them are told apart"


def test_nothing_is_told_of_a_broker_that_is_away() -> None:
    """The last figures would look like present ones."""

    class Away(prometheus_client.registry.Collector):
        def collect(self) -> list[prometheus_client.Metric]:
            return list(broker_metrics.load(None))

    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(Away())
    lines = prometheus_client.generate_latest(registry).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == []
