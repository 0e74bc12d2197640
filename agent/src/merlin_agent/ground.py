"""Whether the broker may hand out a chunk that it has handed out before, and to whom that was.

A broker whose disk was put back to an older state, or that lacks its last writes, has chunks in the task stream again that are claimed and
perhaps run, and knows nothing of those claims. The operator finds that out and issues them anew under another epoch
(`merlin_operator.repair`), but an agent may be connected before it, or there may be no operator for a while. So who takes a chunk that
may have been there before looks into the workspace, where each claim was written before anything of it ran.
"""

from __future__ import annotations

import time
from typing import Final

from merlin_agent.claims import Claims
from merlin_agent.post import AGENTS, Post, until_answered
from merlin_study.wire import Origin

LEEWAY: Final = 5.0
"""Seconds by which a chunk has to be younger than its log's origin: whoever wrote that one down estimated the broker's clock."""
KEPT: Final = 60.0
"""Seconds for which what was read of outcome logs is kept after the last chunk for which it was looked through."""


class Ground:
    """Knows what the operator says of the server that we are connected with."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._origin: Origin | None = None
        self._server = ("", "")
        """The server for which that was read."""
        self.claims = Claims()
        self._asked_at = 0.0
        """When a chunk last came that may return (monotonic seconds)."""

    async def may_return(self, published: float | None) -> bool:
        """Whether a chunk that was ``published`` then (Unix seconds by the broker's clock; None: not known) may be one that was claimed before.

        Not so where it is younger than the state that its broker's logs are in.
        """
        server = self._post.broker.server()
        if self._origin is None or self._server != server or not self._is_named(self._origin, server):
            self._origin, self._server = await self._read(), server
        origin = self._origin
        if origin is None or published is None or not self._is_named(origin, server):
            return True
        if published < origin.since + LEEWAY:
            self._asked_at = time.monotonic()
            return True
        if time.monotonic() > self._asked_at + KEPT:
            self.claims.forget()
        return False

    @property
    def made(self) -> int:
        """When the streams were found to be new (Unix seconds); 0 where that is not known."""
        return self._origin.made if self._origin is not None else 0

    @staticmethod
    def _is_named(origin: Origin, server: tuple[str, str]) -> bool:
        process, cluster = server
        return process in origin.servers or (cluster != "" and cluster == origin.cluster)

    async def _read(self) -> Origin | None:
        subject, stream = self._post.space.origin, self._post.space.control_stream
        data = await until_answered(lambda: self._post.broker.last(stream, subject))
        return None if data is None else self._post.word(Origin, subject, data, scope=AGENTS)
