"""A cursor and the chunks that it counts, in one atomic batch: all of them are in the stream, or none is."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from merlin_operator.stream.answers import Conflict, Outage
from merlin_operator.stream.connection import (
    OUTAGES,
    REQUEST_SECONDS,
    WRONG_LAST_SEQUENCE,
    Connection,
    heeding_cancellation,
)


async def publish(
    connection: Connection, cursor: tuple[str, bytes], chunks: Sequence[tuple[str, bytes]], *, expected: int
) -> int:
    """Publish them; see `merlin_operator.stream.Broker.publish_batch`."""
    client = connection.client()
    batch = f"{random.getrandbits(96):024x}"
    subject, data = cursor
    headers = {
        "Nats-Batch-Id": batch,
        "Nats-Batch-Sequence": "1",
        "Nats-Expected-Last-Subject-Sequence": str(expected),
        "Nats-Rollup": "sub",
    }
    messages = [(subject, data, headers)]
    for number, (chunk_subject, chunk) in enumerate(chunks, start=2):
        messages.append((chunk_subject, chunk, {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}))
    messages[-1][2]["Nats-Batch-Commit"] = "1"
    try:
        for each_subject, payload, each_headers in messages[:-1]:
            await client.publish(each_subject, payload, headers=each_headers)
        last_subject, payload, last_headers = messages[-1]
        with heeding_cancellation():
            reply = await client.request(last_subject, payload, timeout=REQUEST_SECONDS, headers=last_headers)
    except OUTAGES as error:
        raise Outage(f"publishing chunks: {str(error) or type(error).__name__}") from error
    answer = json.loads(reply.data)
    if "error" in answer:
        _raise_refusal(answer["error"])
    return int(answer["seq"]) - len(messages) + 1


def _raise_refusal(error: dict[str, Any]) -> None:
    if error.get("err_code") == WRONG_LAST_SEQUENCE:
        raise Conflict(error.get("description", ""))
    raise Outage(f"the broker refused a batch: {error.get('description', error)}")
