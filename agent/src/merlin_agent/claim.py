"""Claiming a chunk: being the first on its fence's report subject. The only permission to run it.

A timeout says nothing, and neither does a conflict after one: it may be our own first attempt that came through. So a conflict is
answered by reading who was first. In a cluster any server that keeps the log may answer that, also one that has not got yet what
its leader stored; so "nobody" counts only when it stays so.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Final

from merlin_agent.broker import ConflictError
from merlin_agent.post import Post, until_answered
from merlin_study import wire
from merlin_study.seal import Signer

_WAITS: Final = (0.1, 0.4, 1.5)
"""Seconds before each further look at a subject that is taken and looks empty."""


class Claimed(Enum):
    """What came of a claim."""

    WON = "won"
    LOST = "lost"


async def claim(post: Post, start: wire.Start) -> Claimed:
    """Return whether the chunk is ours, and not before that is certain."""
    study, fence = start.chunk.study, start.chunk.fence
    subject = post.space.reports(study, fence)

    async def attempt() -> Claimed:
        try:
            await post.store(study, subject, start, first=True)
        except ConflictError:
            return await _whose(post, study, subject, start.agent)
        return Claimed.WON

    return await until_answered(attempt)


async def _whose(post: Post, study: str, subject: str, agent: str) -> Claimed:
    stream = post.space.report_stream
    data = await post.broker.first(stream, subject)
    for wait in _WAITS:
        if data is None:
            await asyncio.sleep(wait)
            data = await until_answered(lambda: post.broker.first(stream, subject))
    if data is None:  # the study's log was purged in between: it is over
        return Claimed.LOST
    try:
        entry = wire.decode_log(post.open(subject, data, scope=study, signer=Signer.AGENT))
    except ValueError:  # whoever wrote that was first, and it was not us
        return Claimed.LOST
    return Claimed.WON if isinstance(entry, wire.Start) and entry.agent == agent else Claimed.LOST
