"""The heartbeat: what the agent is, holds and can take, told every few seconds, when asked, and when it leaves."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from merlin_agent.post import Post
from merlin_study import wire

REMEMBERED: Final = 600.0
"""Seconds after which a problem that did not come again is no longer told."""
_MOST: Final = 5
_LONGEST: Final = 300


class Problems:
    """The last few distinct problems."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: OrderedDict[str, float] = OrderedDict()

    def note(self, text: str) -> bool:
        """Remember a problem; return whether it is news."""
        text = text[:_LONGEST]
        news = text not in self.current()
        self._since[text] = self._clock()
        self._since.move_to_end(text)
        while len(self._since) > _MOST:
            self._since.popitem(last=False)
        return news

    def current(self) -> tuple[str, ...]:
        """Return what is worth telling, oldest first."""
        now = self._clock()
        for text in [text for text, at in self._since.items() if now - at > REMEMBERED]:
            del self._since[text]
        return tuple(self._since)


class Beat:
    """Sends heartbeats until told to stop; `soon` sends one at once."""

    def __init__(self, post: Post, describe: Callable[[], wire.Heartbeat], interval: Callable[[], float]) -> None:
        self._post, self._describe, self._interval = post, describe, interval
        self._wake = asyncio.Event()

    def soon(self) -> None:
        """Send a heartbeat now."""
        self._wake.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await self.send()
            try:
                async with asyncio.timeout(self._interval()):  # wait_for may swallow a cancellation
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def send(self) -> None:
        """Send one heartbeat."""
        beat = self._describe()
        await self._post.announce(self._post.space.heartbeat(beat.site, beat.agent), beat)
