"""Messages as they travel: sealed for their subject, opened from it, sent until somebody answers."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pydantic import ValidationError

from merlin_agent.broker import Broker, UnansweredError
from merlin_study import blob, wire
from merlin_study.seal import Keyring, SealError, Signer
from merlin_study.subjects import Space

AGENTS: Final = "agents"
"""The scope of what belongs to no study."""
_LONGEST_WAIT: Final = 5.0

T = TypeVar("T")
M = TypeVar("M", bound=wire.Message)


class Post:
    """Broker, keys and names in one hand."""

    def __init__(self, broker: Broker, keys: Keyring, space: Space) -> None:
        self.broker, self._keys, self.space = broker, keys, space

    async def announce(self, subject: str, message: wire.Message) -> None:
        """Send a message to whoever listens."""
        await self.broker.publish(subject, self._keys.seal(message.encode(), scope=AGENTS, context=subject))

    async def store(
        self, study: str, subject: str, message: wire.Message, *, message_id: str = "", first: bool = False
    ) -> None:
        """Append a message to a study's log.

        Raises:
            ConflictError, UnansweredError: as `Broker.store`.
        """
        sealed = self._keys.seal(message.encode(), scope=study, context=subject)
        await self.broker.store(subject, sealed, message_id=message_id, first=first)

    async def read(self, subject: str, *, scope: str) -> bytes | None:
        """Return content that the operator put under a subject, all parts joined; None where there is none.

        Raises:
            SealError, blob.BlobError: what is there is not the operator's, or is damaged.
        """
        stream = self.space.control_stream
        data = await until_answered(lambda: self.broker.last(stream, subject))
        if data is None:
            return None
        count, content = blob.read_head(self.open(subject, data, scope=scope, signer=Signer.OPERATOR))
        found = [content]
        for number in range(1, count + 1):
            below = blob.part(subject, number)
            part = await until_answered(functools.partial(self.broker.last, stream, below))
            if part is None:
                return None
            found.append(self.open(below, part, scope=scope, signer=Signer.OPERATOR))
        return b"".join(found)

    def open(self, subject: str, data: bytes, *, scope: str, signer: Signer) -> bytes:
        """Return the payload of a message that ``signer`` has to have written.

        Raises:
            SealError: nobody whom we trust as that sent it there.
        """
        return self._keys.open(data, scope=scope, context=subject, signer=signer)

    def word(
        self, kind: type[M], subject: str, data: bytes, *, scope: str, refuse: Callable[[str], None] | None = None
    ) -> M | None:
        """Return what the operator said under a subject; None where nobody whom we trust said that, of which ``refuse`` hears."""
        try:
            return kind.model_validate_json(self.open(subject, data, scope=scope, signer=Signer.OPERATOR))
        except (SealError, ValidationError) as error:
            if refuse is not None:
                refuse(f"{subject}: refused: {str(error).splitlines()[0]}")
            return None


async def until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again and again, with growing waits, until the broker answers."""
    wait = 0.1
    while True:
        try:
            return await ask()
        except UnansweredError:
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter is no secret
            wait = min(_LONGEST_WAIT, wait * 2)
