"""What the operator makes in the broker: a namespace's three streams, and a consumer of the tasks for each route."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from merlin_study import subjects

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A pull consumer that should exist: its name and what it filters."""

    name: str
    filter: str
    description: str


def streams(space: subjects.Space, *, replicas: int) -> tuple[api.StreamConfig, ...]:
    """Return a namespace's streams, each to be kept by ``replicas`` servers of a cluster."""
    kept = functools.partial(
        api.StreamConfig, storage=api.StorageType.FILE, allow_direct=True, deny_delete=True, num_replicas=replicas
    )
    return (
        kept(
            name=space.task_stream,
            subjects=[space.all_chunks, space.all_cursors],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            allow_atomic=True,
            allow_rollup_hdrs=True,
        ),
        kept(
            name=space.report_stream,
            subjects=[space.all_reports],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
        ),
        kept(
            name=space.control_stream,
            subjects=[space.all_control],
            retention=api.RetentionPolicy.LIMITS,
            max_msgs_per_subject=1,
            allow_msg_ttl=True,
        ),
    )


def consumer(spec: ConsumerSpec) -> api.ConsumerConfig:
    """Return a consumer's configuration."""
    return api.ConsumerConfig(
        durable_name=spec.name,
        description=spec.description,
        filter_subject=spec.filter,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=10,  # a chunk is acknowledged once it is claimed, not once it is run
        max_ack_pending=65_536,
        max_waiting=16_384,
    )


async def ensure_stream(js: JetStreamContext, *, config: api.StreamConfig) -> int:
    """Make a stream where it is missing, or have more servers keep it; return how many keep it."""
    assert config.name is not None
    wanted = config.num_replicas or 1
    try:
        found = (await js.stream_info(config.name)).config
    except NotFoundError:
        await js.add_stream(config)
        return wanted
    if (found.num_replicas or 1) < wanted:
        log.warning(
            "stream gets more replicas stream=%s replicas=%d; stop no server until all hold it", config.name, wanted
        )
        await js.update_stream(found.evolve(num_replicas=wanted))
        return wanted
    return found.num_replicas or 1
