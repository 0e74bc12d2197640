"""Whole streams: copied to somewhere else, and put back, as the server itself writes and reads them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from nats.aio.msg import Msg

from merlin_operator.stream.answers import Outage
from merlin_operator.stream.connection import OUTAGES, Connection, heeding_cancellation

_SECONDS: Final = 30.0
"""Within which the next piece of a stream's copy has to come, and a stream has to be made of one."""
_PIECE: Final = 128 << 10
"""Bytes of a stream's copy that travel at once."""
_NO_CONTENT: Final = "204"


async def copy(connection: Connection, stream: str, take: Callable[[bytes], None]) -> dict[str, Any]:
    """Hand a copy of a stream to ``take`` in a thread, piece by piece; return what the server needs beside it to `put_back`.

    Raises:
        Outage: there is no such stream, or the copy is not whole.
    """
    client, pieces = connection.client(), asyncio.Queue[Msg]()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=pieces.put)
    try:
        ask = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": _PIECE}
        said = await _ask_api(connection, f"STREAM.SNAPSHOT.{stream}", json.dumps(ask).encode())
        while True:
            async with asyncio.timeout(_SECONDS):
                piece = await pieces.get()
            if not piece.data:
                break
            await asyncio.to_thread(take, piece.data)
            if piece.reply:  # the server waits for it before it sends many more
                await client.publish(piece.reply, b"")
    except OUTAGES as error:
        raise Outage(f"copying {stream}: {str(error) or type(error).__name__}") from error
    finally:
        with contextlib.suppress(*OUTAGES):
            await subscription.unsubscribe()
    if (status := (piece.headers or {}).get("Status", _NO_CONTENT)) != _NO_CONTENT:
        raise Outage(f"copying {stream}: it ended with {status}")
    return {"config": said["config"], "state": said["state"]}


async def put_back(connection: Connection, stream: str, about: dict[str, Any], pieces: Iterable[bytes]) -> None:
    """Make a stream of what `copy` gave; where it can't be made, there is none.

    Raises:
        Outage: there is one already, or the server refuses the copy.
    """
    said = await _ask_api(connection, f"STREAM.RESTORE.{stream}", json.dumps(about).encode())
    for piece in itertools.chain(pieces, (b"",)):
        await _ask_api(connection, said["deliver_subject"], piece, prefix="")


async def drop(connection: Connection, stream: str) -> None:
    """Delete a stream."""
    await connection.ask(lambda js: js.delete_stream(stream))


async def names(connection: Connection) -> set[str]:
    """Return the names of all streams of the account."""
    return set((await _ask_api(connection, "STREAM.NAMES")).get("streams") or ())


async def _ask_api(
    connection: Connection, subject: str, data: bytes = b"", *, prefix: str = "$JS.API."
) -> dict[str, Any]:
    """Make a request of the server that nats-py has no function for.

    Raises:
        Outage: no answer, or a refusal.
    """
    try:
        with heeding_cancellation():
            reply = await connection.client().request(prefix + subject, data, timeout=_SECONDS)
    except OUTAGES as error:
        raise Outage(f"{subject}: {str(error) or type(error).__name__}") from error
    answer: dict[str, Any] = json.loads(reply.data or b"{}")
    if "error" in answer:
        raise Outage(f"{subject}: {answer['error'].get('description')}")
    return answer
