"""Letting Studies go where their namespace does: the operator ends with it, and nobody after it would take a finalizer off.

Kubernetes ends a namespace's pods first (from 1.33 on), so an operator that is asked to end looks whether that is why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from merlin_operator.cluster import CHANGED, ApiError

log = logging.getLogger(__name__)

AT_ONCE: Final = 10
"""Requests in flight."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
"""Seconds between two rounds where Studies changed under the first; all of it is over after `handlers.RELEASE_SECONDS`."""


class Api(Protocol):
    """What is asked of `merlin_operator.cluster.Api`."""

    async def namespace_ends(self) -> bool:
        """Whether the namespace is being deleted."""

    async def studies(self) -> list[dict[str, Any]]:
        """Return the metadata of all Studies."""

    async def release_study(self, name: str, uid: str, *, held: list[str], kept: list[str]) -> None:
        """Replace a Study's finalizers."""


async def release(api: Api, finalizer: str, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> int:
    """Take a finalizer off every Study of a namespace that is being deleted; return how many there were, 0 in any other.

    Studies that somebody else writes at the same time are tried again, after a longer pause each time.

    Args:
        api: The API server.
        finalizer: Whose.
        pause: Waits so many seconds.

    Raises:
        ApiError: the API server did not answer, or refused.
    """
    if not await api.namespace_ends():
        return 0
    turns = asyncio.Semaphore(AT_ONCE)

    async def let_go(metadata: dict[str, Any]) -> None:
        held = list(metadata["finalizers"])
        async with turns:
            kept = [each for each in held if each != finalizer]
            await api.release_study(metadata["name"], metadata["uid"], held=held, kept=kept)

    count, wait = 0, FIRST_PAUSE
    while True:
        found = [each["metadata"] for each in await api.studies()]
        waiting = [metadata for metadata in found if finalizer in metadata.get("finalizers", ())]
        if not waiting:
            log.warning("the namespace is being deleted; studies let go: %d", count)
            return count
        found_changed = False
        for done in await asyncio.gather(*map(let_go, waiting), return_exceptions=True):
            if isinstance(done, BaseException) and not (isinstance(done, ApiError) and done.status in (404, *CHANGED)):
                raise done
            found_changed |= done is not None
            count += done is None
        if found_changed:
            await pause(wait)
            wait = min(2 * wait, LONGEST_PAUSE)
