"""What the logs of a namespace stand on: which server process keeps them, which creation of each stream, and since when.

As long as a server process lives, what it acknowledged is there. A server that was started anew has what it had, where its disk is
the same and each write had reached it; but a disk may also be put back to an older state, or lack its last writes. Who followed the
log across the start can tell: the entry that was the newest is still there, or it is not. Who did not can't.

So the origin is stored beside the logs. Who finds other streams than it names, or another server without being able to tell that
the log stands, writes a new one, and every study that is older is in doubt from then on (`merlin_operator.repair`). This needs no
memory of any process, so an operator that dies with the broker loses nothing by it.
"""

from __future__ import annotations

import logging
from typing import Final

from merlin_operator.core import AGENTS_SCOPE, Core
from merlin_operator.stream import Absent, Conflict
from merlin_study import wire

log = logging.getLogger(__name__)

MOST_SERVERS: Final = 8
"""Servers of a cluster that are remembered; one more or less costs a look into workspaces, and no more."""


class Ground:
    """Knows the origin of a namespace's logs, and whether it is still the one that it was."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.origin: wire.Origin | None = None

    async def settle(self, *, stood: bool) -> wire.Origin:
        """Find or write the origin; to be called on each connection, once the streams are there.

        Args:
            stood: the newest entry that this process knew of the log is still there, so that another server changes nothing.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer.
        """
        server, cluster, streams = self.core.broker.server_id, self.core.broker.cluster, await self._streams()
        while True:
            stored = await self.core.broker.last(self.core.space.control_stream, self.core.space.origin)
            known = self.core.read_own(wire.Origin, AGENTS_SCOPE, stored)
            if known is not None and known.streams == streams and server in known.servers:
                self.origin = known
                return known
            made = self._next(known, server, streams, stood=stood).model_copy(update={"cluster": cluster})
            try:
                await self._write(made, expected=stored.sequence if stored is not None else 0)
            except Conflict:
                continue  # another operator was first
            log.warning("the logs stand on server=%s since=%d, their streams since=%d", server, made.since, made.made)
            self.origin = made
            return made

    def _next(self, known: wire.Origin | None, server: str, streams: tuple[str, ...], *, stood: bool) -> wire.Origin:
        """Return what the logs stand on from now on."""
        if known is not None and known.streams == streams:
            servers = (*known.servers, server)[-MOST_SERVERS:]
            if stood and self.origin is not None and self.origin.since == known.since:
                return known.model_copy(update={"servers": servers})
            return known.model_copy(update={"servers": servers, "since": self._later(known)})
        since = self._later(known)
        return wire.Origin(servers=(server,), streams=streams, since=since, made=since)

    def _later(self, known: wire.Origin | None) -> int:
        """Return the time, or what is later than all that was said before."""
        return max(int(self.core.now), *(each.since + 1 for each in (known, self.origin) if each is not None), 0)

    async def stands(self) -> bool:
        """Whether the streams are still those that were there when the connection was made.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer.
        """
        try:
            return self.origin is None or self.origin.streams == await self._streams()
        except Absent:
            return False

    async def _streams(self) -> tuple[str, ...]:
        space = self.core.space
        return tuple(
            [
                await self.core.broker.incarnation(stream)
                for stream in (space.task_stream, space.report_stream, space.control_stream)
            ]
        )

    async def _write(self, origin: wire.Origin, *, expected: int) -> None:
        subject = self.core.space.origin
        sealed = self.core.seal(AGENTS_SCOPE, subject, origin.encode())
        await self.core.broker.append(subject, sealed, expected=expected)
