"""What the operator tells this agent alone: to leave, or to serve other queues.

A last value of the control stream under our own name, where only the operator may write. It is heard while we are connected
and read whenever a connection begins. Each is numbered; one that is not newer than what we obeyed is an echo, and is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from merlin_agent.post import AGENTS, Post, until_answered
from merlin_study.wire import Assignment


class Assigned:
    """Hears assignments, and has each obeyed once."""

    def __init__(
        self, post: Post, *, site: str, agent: str, obey: Callable[[Assignment], None], refuse: Callable[[str], None]
    ) -> None:
        """Keep what is needed.

        Args:
            post: How messages travel.
            site: Ours.
            agent: Our name.
            obey: Does what one says.
            refuse: Told of what does not open.
        """
        self._post, self._agent, self._obey, self._refuse = post, agent, obey, refuse
        self._subject = post.space.assignment(site, agent)
        self._reading: set[asyncio.Task[None]] = set()
        self.number = 0
        """Of the last one that was obeyed."""
        post.broker.listen(self._subject, lambda message: self._take(message.data))
        post.broker.on_connect(self._read_soon)

    def _read_soon(self) -> None:
        """One may have been missed while there was no connection."""
        task = asyncio.create_task(self._read())
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self) -> None:
        stream = self._post.space.control_stream
        data = await until_answered(lambda: self._post.broker.last(stream, self._subject))
        if data is not None:
            self._take(data)

    def _take(self, data: bytes) -> None:
        word = self._post.word(Assignment, self._subject, data, scope=AGENTS, refuse=self._refuse)
        if word is None or word.agent != self._agent or word.number <= self.number:
            return
        self.number = word.number
        self._obey(word)
