"""What the agent asks of the broker: the seam between its decisions and NATS (`merlin_agent.link` is the adapter).

A timeout says nothing: what was asked may have happened. So every write is either idempotent when it is repeated (a
report), or guarded by an expectation that tells a repetition from somebody else's write (`store` with ``first``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class BrokerError(Exception):
    """The base of what a broker may answer.

    BrokerError
    ├── UnansweredError   nobody knows whether it happened: ask again later
    └── ConflictError     the subject has a first message already, and this is not it
    """


class UnansweredError(BrokerError):
    """No answer: not connected, timed out, the stream is not there (yet), or it is full."""


class ConflictError(BrokerError):
    """The subject has messages already."""


class Answer(Enum):
    """What the task stream is told of a message: JetStream's verbs."""

    DONE = b"+ACK"
    BACK = b"-NAK"
    NEVER = b"+TERM"


class Pulled(Enum):
    """How a pull ended."""

    ENDED = "ended"
    """All that was asked for has come, or the time is up."""
    GONE = "gone"
    """The consumer or the broker is not there: back off, and read the offer again."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came; ``reply`` is where a chunk's answer goes."""

    subject: str
    data: bytes
    reply: str = ""


Handler = Callable[[Message], None]


class Broker(Protocol):
    """One connection that comes back by itself; everything may be called at any time."""

    def listen(self, subject: str, handler: Handler) -> None:
        """Hand every message on ``subject`` to ``handler``, over all connections to come."""

    def server(self) -> tuple[str, str]:
        """Return which process of a server we are connected with, by the name that it gives itself, and its cluster; empty where none."""

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after each connection is made."""

    async def publish(self, subject: str, data: bytes) -> None:
        """Send a message that may be lost."""

    async def store(self, subject: str, data: bytes, *, message_id: str = "", first: bool = False) -> None:
        """Append to a stream and return when it is safe.

        Raises:
            ConflictError: ``first`` was asked for, and the subject has messages.
            UnansweredError: it may or may not have happened.
        """

    async def last(self, stream: str, subject: str) -> bytes | None:
        """Return the last message of a subject, None where there is none.

        Raises:
            UnansweredError: nobody knows.
        """

    async def first(self, stream: str, subject: str) -> bytes | None:
        """Return the first message of a subject, None where there is none.

        Raises:
            UnansweredError: nobody knows.
        """

    async def pull(self, stream: str, consumer: str, deliver: Handler, *, batch: int, expires: float) -> Pulled:
        """Hand at most ``batch`` messages of a consumer to ``deliver``; ``expires`` 0 takes only what is there.

        One pull of a consumer is open at a time.
        """

    async def answer(self, message: Message, answer: Answer, *, delay: float = 0.0) -> None:
        """Tell the stream what became of a message; lost where the connection is, and then it is delivered again."""
