"""Whose word counts in the log: agents say what they did, the operator alone judges, each on its own subject."""

from __future__ import annotations

import pytest

from merlin_operator.board import AgentView
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.stream import Stored
from merlin_operator.view import StudyView
from merlin_study import subjects, wire
from merlin_study.seal import Keyring, SealError
from merlin_study.taskset import TaskSet

UID = "0000-uid"
SPACE = subjects.Space("ns")
OPERATOR, AGENTS = Keyring.generate_pair()
CHUNK = wire.Chunk(study=UID, plan="p", epoch=1, fence=7, step=0, tasks=TaskSet(first=0, width=1), attempt=1)
START = wire.Start(agent="a", chunk=CHUNK)
LOST = wire.Lost(fence=7, agent="a")


class Nobody:
    """A board that nobody looks at."""

    async def show(self, views: list[StudyView], agents: list[AgentView], news: list[StudyView] | None = None) -> None:
        """Show nothing."""


def opened(keys: Keyring, subject: str, entry: wire.Message) -> wire.Message:
    """What the engine makes of an entry that these keys signed."""
    engine = Engine(EngineConfig("ns", "nats://127.0.0.1:1", {}, OPERATOR), Nobody())  # type: ignore[arg-type]
    data = keys.seal(entry.encode(), scope=UID, context=subject)
    return engine._reader.entry(UID, Stored(1, subject, 0.0, data))


def test_each_is_believed_in_its_place() -> None:
    assert opened(AGENTS, SPACE.reports(UID, 7), START) == START
    assert opened(OPERATOR, SPACE.verdicts(UID), LOST) == LOST


@pytest.mark.parametrize(
    ("keys", "subject", "entry", "says"),
    [
        (AGENTS, SPACE.verdicts(UID), LOST, "not trusted as operator"),
        (AGENTS, SPACE.reports(UID, 7), LOST, "has no place on"),
        (OPERATOR, SPACE.reports(UID, 7), START, "not trusted as agent"),
        (OPERATOR, SPACE.verdicts(UID), START, "has no place on"),
    ],
)
def test_nobody_is_believed_elsewhere(keys: Keyring, subject: str, entry: wire.Message, says: str) -> None:
    """An agent that calls another one's chunk lost would make its tasks run twice."""
    with pytest.raises(SealError, match=says):
        opened(keys, subject, entry)
