"""Runs within runs: what a step asks of its agent, how that travels, and how a study that a step starts is named.

A step's own ``merlin`` command finds a Unix socket and a token in its environment. It writes one line of JSON, a
`Request`, and reads one, an `Answer`. There are no keys in a step's environment: the agent seals what it passes on, and
the token says only which task speaks.

    step → agent      Request, Command, Stop or Where, Answer: one line of JSON each
    agent → log       Submission, the first message of its own subject in the parent's log; Order, Dismissal
    operator → control stream   Born: what became of a submission; Family: what agents refuse by themselves

A task that is tried again, or that ran on an agent that was lost, asks for the same studies again. So a submission is
named by what asks: the parent, the step, the task, its turn and how many it has asked for before. The first message of
that name counts, and every later one finds it there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from merlin_study.wire import Message

SOCKET: Final = "MERLIN_SOCKET"
"""The variable of a step's environment that names the agent's socket."""
TOKEN: Final = "MERLIN_TASK"  # noqa: S105 a variable's name
"""The variable that says which task speaks; its value ends with the task."""
CORES: Final = "MERLIN_STEP_CORES"
"""The variable that says how many cores a step has on its node, for what it runs in place."""
CREATOR: Final = "merlin.dev/creator"
"""Annotation of a Study: on whose behalf it runs, as the API server names that user; a child has its parent's."""
VARIABLES: Final = (SOCKET, TOKEN, CORES)
MAX_LINE: Final = 1 << 20
"""Bytes of a request or an answer."""
MAX_SUBMISSION: Final = 768 * 1024
"""Bytes of a submission as it travels; nats-server takes 1 MiB unless it is told otherwise."""
MAX_DEPTH: Final = 1000
"""Generations below the root: an iteration that submits itself goes one deeper each time."""
MAX_FAMILY: Final = 10_000
"""Studies below one root, over its whole life."""
MAX_PER_TASK: Final = 100
"""Studies that one execution of a task may ask for."""
MAX_NAME: Final = 52
"""Characters of a Study's name; what is derived from it still fits 63."""
_KEY: Final = re.compile(r"[0-9a-f]{16}")


class Request(Message):
    """A study to run: its specification as JSON, what its author calls it, and the directory that it should have."""

    token: str = Field(max_length=200)
    kind: Literal["submit"] = "submit"
    name: str = Field(max_length=200)
    spec: str = Field(max_length=MAX_LINE)
    workspace: str = Field(max_length=4096, pattern=r"^/")


Deed = Literal["cancel", "suspend", "resume", "purge", "restart"]
"""What may be done with a study."""
Queues = Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=1000)]


def changes(deed: Deed, *, word: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a deed changes in a study's ``spec``: ``word`` is that of a purge, ``request`` the one of a restart."""
    match deed:
        case "cancel":
            return {"cancel": True}
        case "suspend" | "resume":
            return {"suspend": deed == "suspend"}
        case "purge":
            return {"purge": word}
        case "restart":
            return {"cancel": False, "restart": dict(request)}


class Command(Message):
    """Something to be done with a study of the same user: by its name or its uid."""

    token: str = Field(max_length=200)
    kind: Literal["command"] = "command"
    deed: Deed
    target: str = Field(min_length=1, max_length=200)


class Stop(Message):
    """The agents that serve the studies of the same family shall leave; with ``queues`` those of them that serve one of these."""

    token: str = Field(max_length=200)
    kind: Literal["stop"] = "stop"
    queues: Queues = ()


class Where(Message):
    """In which directory is the study whose step asks?"""

    token: str = Field(max_length=200)
    kind: Literal["where"] = "where"


class Answer(Message):
    """What became of a request.

    ``refused``: why not, in one sentence; empty where it was taken. ``known``: the task had asked before, and what it
    asked for then counts; ``changed``: that was another specification. ``agents``: how many were told to leave.
    """

    refused: str = ""
    study: str = ""
    workspace: str = ""
    known: bool = False
    changed: bool = False
    agents: int = 0


class Submission(Message):
    """A study that a task of this one asks for: a `Request` as the agent passes it on, with who asks."""

    kind: Literal["submission"] = "submission"
    agent: str
    site: str
    step: str
    task: int = Field(ge=0)
    turn: int = Field(ge=0)
    number: int = Field(ge=1)
    name: str = Field(max_length=200)
    spec: str = Field(max_length=MAX_LINE)
    workspace: str = Field(max_length=4096)

    def key(self, parent: str) -> str:
        """Return the submission's name below its parent's uid."""
        return submission_key(parent, step=self.step, task=self.task, turn=self.turn, number=self.number)


class Dismissal(Message):
    """A `Stop` as the agent passes it on, with who gives it; ``word`` tells it from every other."""

    kind: Literal["dismissal"] = "dismissal"
    agent: str
    step: str
    task: int = Field(ge=0)
    queues: Queues = ()
    word: str = Field(pattern="^[0-9a-f]{16}$")


class Order(Message):
    """A `Command` as the agent passes it on, with who gives it; ``word`` tells it from every other."""

    kind: Literal["order"] = "order"
    agent: str
    step: str
    task: int = Field(ge=0)
    deed: Deed
    target: str = Field(min_length=1, max_length=200)
    word: str = Field(pattern="^[0-9a-f]{16}$")

    def changes(self) -> dict[str, Any]:
        """Return what it changes in the target's ``spec``."""
        return changes(self.deed, word=self.word, request={"id": self.word})


class Born(Message):
    """What became of a submission: the Study that it made, or why it made none. It makes one once, even if that is deleted.

    Of an order: the study that it changed, or how many agents were told to leave.
    """

    name: str = ""
    uid: str = ""
    refused: str = ""
    agents: int = 0


class Family(Message):
    """What agents have to know to refuse at once what the operator would: a study's generation, and why no more may come."""

    study: str
    depth: int = 0
    full: str = ""


AnyRequest = Request | Command | Stop | Where
_REQUEST: Final[TypeAdapter[AnyRequest]] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="kind")])
AnyOrder = Order | Dismissal
_ORDER: Final[TypeAdapter[AnyOrder]] = TypeAdapter(Annotated[AnyOrder, Field(discriminator="kind")])


def decode_order(data: bytes) -> AnyOrder:
    """Parse what an agent passes on of a step.

    Raises:
        pydantic.ValidationError: it is no order.
    """
    return _ORDER.validate_json(data)


def decode_request(data: bytes) -> AnyRequest:
    """Parse what a step sent.

    Raises:
        pydantic.ValidationError: it is no request.
    """
    return _REQUEST.validate_json(data)


def submission_key(parent: str, *, step: str, task: int, turn: int, number: int) -> str:
    """Return the name of a submission: the same whenever the same task asks for the same in its order.

    Args:
        parent: the uid of the study whose task asks.
        step: the step's name.
        task: the task's index in its step.
        turn: 0 for the step's script, however often that is tried; the attempt where the restart script asks.
        number: how many studies this execution has asked for, this one included.
    """
    text = "\0".join((parent, step, str(task), str(turn), str(number)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_key(text: str) -> bool:
    """Whether a text could be the name of a submission."""
    return _KEY.fullmatch(text) is not None


def child_name(name: str, key: str) -> str:
    """Return the name of the Study that a submission makes: what its author called it, and the submission's own name."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[: MAX_NAME - len(key) - 1].strip("-")
    return f"{plain or 'study'}-{key}"
