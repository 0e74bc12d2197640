"""How full the broker is and what waits in it, as the server says it."""

from __future__ import annotations

import functools
from typing import Final

from nats.js import JetStreamContext, api

from merlin_operator.load import BrokerLoad, ConsumerLoad, StreamLoad
from merlin_operator.stream.connection import Connection
from merlin_study import subjects

_PAGE: Final = 256
"""Consumers that the server lists at once."""


async def measure(connection: Connection, space: subjects.Space) -> BrokerLoad:
    """Ask for it; see `merlin_operator.stream.Broker.load`."""
    streams = []
    account = await connection.ask(lambda js: js.account_info())
    names = {"tasks": space.task_stream, "reports": space.report_stream, "control": space.control_stream}
    infos = await consumers(connection, space.task_stream)
    for role, name in names.items():
        info = await connection.ask(functools.partial(_stream_info, name=name))
        limit, kept = info.config.max_bytes or 0, info.config.num_replicas or 1
        clusters = [info.cluster, *(each.cluster for each in infos if role == "tasks")]
        streams.append(
            StreamLoad(
                role,
                info.state.messages,
                info.state.bytes,
                limit if limit > 0 else None,
                replicas=kept,
                current=min(kept if found is None else _current(found) for found in clusters),
            )
        )
    routes = filter(None, map(_consumer_load, infos))
    limit = account.limits.max_storage
    return BrokerLoad(account.storage, limit if limit > 0 else None, tuple(streams), tuple(routes))


async def consumers(connection: Connection, stream: str) -> list[api.ConsumerInfo]:
    """Return all consumers of a stream, page by page."""
    found: list[api.ConsumerInfo] = []
    while True:
        offset = len(found)
        page = await connection.ask(functools.partial(_consumer_page, stream=stream, offset=offset))
        found += page
        if len(page) < _PAGE:
            return found


async def _stream_info(js: JetStreamContext, *, name: str) -> api.StreamInfo:
    return await js.stream_info(name)


async def _consumer_page(js: JetStreamContext, *, stream: str, offset: int) -> list[api.ConsumerInfo]:
    return await js.consumers_info(stream, offset=offset)


def _current(cluster: api.ClusterInfo) -> int:
    """Return how many servers hold all of a stream or a consumer: its leader, and who is up to date with that one."""
    peers = cluster.replicas or ()
    return bool(cluster.leader) + sum(bool(peer.current) and not peer.offline for peer in peers)


def _consumer_load(info: api.ConsumerInfo) -> ConsumerLoad | None:
    """What a consumer says of itself; None for one that is no route's."""
    config = info.config
    try:
        route = subjects.parse_chunks(config.filter_subject or "")
    except ValueError:
        return None
    return ConsumerLoad(
        route.site,
        route.queue,
        pending=info.num_pending or 0,
        ack_pending=info.num_ack_pending or 0,
        ack_limit=config.max_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
    )
