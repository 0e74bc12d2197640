"""Both sides come back to a broker whatever became of their connection, with the credentials of the day (row 22 of the fault table)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merlin_agent.config import Credentials
from merlin_agent.link import Link
from merlin_operator.stream import Broker as OperatorSide
from merlin_study import subjects
from tests.faults.rig import PATIENT, a_rig
from tests.ground import Broker, eventually, eventually_async

PIECE, PIECES = b"x" * (1 << 20), 24
"""More than the kernel keeps for a server that does not read."""


@dataclass(frozen=True)
class Side:
    """A party of the broker: what keeps its connection, says something over it, and tells whether it stands."""

    run: Coroutine[Any, Any, None]
    say: Callable[[], Coroutine[Any, Any, None]]
    connected: Callable[[], bool]


async def _agents(broker: Broker) -> Side:
    link = Link(server=broker.url, credentials=Credentials(token=broker.credentials["token"]), name="tried")
    return Side(link.run(), lambda: link.publish("tried", PIECE), lambda: link.connected)


async def _operators(broker: Broker) -> Side:
    side = OperatorSide(subjects.Space("ns"), server=broker.url, options=dict(broker.credentials))

    async def nothing() -> None:
        pass

    async def say() -> None:
        await side.client().publish("tried", PIECE)

    return Side(side.run(nothing), say, lambda: side.connected)


@pytest.mark.parametrize("side", [_agents, _operators], ids=["agent", "operator"])
def test_a_connection_that_is_reset_with_words_unsent_is_made_anew(
    side: Callable[[Broker], Awaitable[Side]],
    broker: Broker,
) -> None:
    """nats-py then calls neither of its callbacks: the failed attempt to send the rest ends its reader."""

    async def scenario() -> None:
        party = await side(broker)
        running = asyncio.create_task(party.run)

        async def up() -> bool:
            return party.connected()

        await eventually_async(up, message="the first connection")
        broker.pause()
        saying: list[asyncio.Task[None]] = []
        for _ in range(PIECES):
            saying.append(asyncio.create_task(party.say()))
            await asyncio.sleep(0.01)  # what one of them sends the next ones wait for
        broker.kill()

        async def down() -> bool:
            return not party.connected()

        await eventually_async(down, message="the loss is noticed")
        broker.restart()
        await eventually_async(up, message="the next connection")
        for each in (*saying, running):
            each.cancel()
        await asyncio.gather(*saying, running, return_exceptions=True)

    asyncio.run(scenario())


def test_credentials_that_change_cut_nobody_off(broker: Broker, tmp_path: Path) -> None:
    """The broker takes others while tasks run; operator and agents read them from their files, and no task notices."""
    gate = tmp_path / "gate"
    cmd = f"[ $(MERLIN_SAMPLE_ID) -lt 20 ] || while [ ! -e {gate} ]; do sleep 0.02; done"
    with a_rig(broker, tmp_path, log_stands=True, tasks=60, cmd=cmd, timing=PATIENT) as rig:
        rig.operator()
        agent = rig.agent()
        rig.until_done(15)
        broker.kill()
        broker.rotate()
        broker.restart()
        eventually(lambda: "Authorization" in rig.operators[-1].log.read_text(), message="the old ones are refused")
        (tmp_path / "credentials.json").write_text(json.dumps(dict(broker.credentials)))
        gate.touch()
        finding = rig.finish()
        assert rig.succeeded()
        assert (finding.losses, finding.repeated) == (0, 0)
        assert agent.alive
