"""From an Allocation's wishes to words for its agents, until their heartbeats show it; with a real nats-server."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client

from merlin_operator import allocations
from merlin_operator.assignments import Wish, Wishes, drained, due, wishes_of
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_study import subjects, wire
from merlin_study.seal import Keyring, Signer
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.test_engine import Shown, until

SPACE = subjects.Space("ns")


def beat(agent: str, **says: object) -> wire.Heartbeat:
    fields: dict[str, object] = {"agent": agent, "site": "s", "host": "h", "pid": 1, "version": "1", "slots": 2, **says}
    return wire.Heartbeat.model_validate(fields)


def test_what_is_said_of_one_agent_counts_before_what_is_said_of_all() -> None:
    wishes = wishes_of(
        {"site": "s", "queues": ["a"], "agents": [{"name": "x", "queues": []}, {"name": "y", "drain": True}]}
    )
    assert [wishes.of(name) for name in "xyz"] == [
        Wish(queues=()),
        Wish(drain=True, queues=("a",)),
        Wish(queues=("a",)),
    ]
    assert wishes_of({"drain": True}).of("x").drain
    assert wishes_of({"site": "s", "drain": "yes", "queues": "a", "agents": 3}) == Wishes(), (
        "what is of a wrong type is left out"
    )


def test_an_agent_is_told_what_its_heartbeat_does_not_show() -> None:
    """Under the next number; one that is leaving is not told again, and who serves what is wished is left alone."""
    leave, serve = Wish(drain=True), Wish(queues=("b", "a"))
    assert due(beat("x", assigned=4), leave) == wire.Assignment(agent="x", number=5, leave=True)
    assert due(beat("x", leaving=True), leave) is None
    assert due(beat("x", queues=["a", "b"]), serve) is None
    told = due(beat("x"), serve)
    assert told is not None
    assert (told.number, told.queues, told.leave) == (1, ("b", "a"), False)
    assert due(beat("x"), Wish()) is None


def test_agents_are_added_to_those_that_shall_leave() -> None:
    before = {"agents": [{"name": "x", "queues": ["a"]}, {"name": "y"}]}
    after = [{"name": "x", "queues": ["a"], "drain": True}, {"name": "y"}, {"name": "z", "drain": True}]
    assert drained(before, ["x", "z"]) == after


def test_a_wish_is_told_under_the_agent_s_own_subject_until_it_is_shown(broker: Broker) -> None:
    """To the agent that is meant and to no other; a new number after one that came to nothing; and by the operator's key."""

    async def scenario() -> None:
        keys, agent_keys = Keyring.generate_pair()
        engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keys), Shown())
        client = Client()
        await client.connect(broker.url, **broker.credentials)

        async def announce(each: wire.Heartbeat) -> None:
            subject = SPACE.heartbeat("s", each.agent)
            await client.publish(subject, agent_keys.seal(each.encode(), scope="agents", context=subject))

        async def told(agent: str) -> wire.Assignment | None:
            subject = SPACE.assignment("s", agent)
            stored = await engine.broker.last(SPACE.control_stream, subject)
            if stored is None:
                return None
            data = agent_keys.open(stored.data, scope="agents", context=subject, signer=Signer.OPERATOR)
            return wire.Assignment.model_validate_json(data)

        async def shows(agent: str, number: int) -> None:
            async with asyncio.timeout(60):
                while (word := await told(agent)) is None or word.number != number:  # noqa: ASYNC110 the broker tells nobody
                    await asyncio.sleep(0.05)

        async with live(engine):
            try:
                await until(engine.met_broker)
                await announce(beat("x"))
                await announce(beat("y"))
                await until(lambda: len(engine.fleet.members) == 2)
                engine.direct(allocations.name_of(beat("x")), {"agents": [{"name": "x", "queues": ["q"]}]})
                await shows("x", 1)
                await announce(beat("x", queues=["other"], assigned=1))
                await shows("x", 2)
                assert await told("y") is None
                engine.direct(allocations.name_of(beat("x")), {"drain": True})
                await shows("y", 1)
                engine.direct(allocations.name_of(beat("x")), {})
            finally:
                await client.close()

    asyncio.run(scenario())
