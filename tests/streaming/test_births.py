"""What steps ask for is made once, whoever asks, dies or lies; with a real nats-server and a nursery that counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from merlin_operator import family
from merlin_operator.births import NotNowError
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.study import Study
from merlin_operator.view import StudyRef
from merlin_study import nested, subjects, wire
from merlin_study.seal import Keyring, Signer
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.test_engine import Shown, until

REF = StudyRef("ns", "t", "0000-uid")
SPACE = subjects.Space("ns")
PLAN = plan_of("{description: {name: t, description: d}, study: [{name: a, description: d, run: {cmd: x}}]}")
ASKED = nested.Submission(
    agent="a", site="s", step="a", task=0, turn=0, number=1, name="child", spec="{}", workspace="/w"
)


@dataclass
class Counting:
    """A nursery that remembers what it bore; its first ``fails`` attempts fail."""

    fails: int = 0
    remembers: bool = True
    made: list[str] = field(default_factory=list)
    there: set[str] = field(default_factory=set)
    changed: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    dismissed: list[dict[str, list[str]]] = field(default_factory=list)

    async def bear(self, parent: StudyRef, own: family.Lineage, child: family.Child) -> nested.Born:
        """Make it, unless it is there."""
        del own
        name = nested.child_name(child.asked.name, child.key)
        if self.fails:
            self.fails -= 1
            raise NotNowError("the API server is away")
        if name not in self.there:
            self.made.append(name)
            self.there.add(name)
        return nested.Born(name=name, uid=f"{parent.uid}/{name}")

    async def change(self, ref: StudyRef, changes: Mapping[str, Any]) -> str:
        """Note what was changed."""
        self.changed.append((ref.uid, dict(changes)))
        return ""

    async def dismiss(self, agents: Mapping[str, Collection[str]]) -> str:
        """Note who was sent away."""
        self.dismissed.append({name: sorted(each) for name, each in agents.items()})
        return ""


@contextlib.asynccontextmanager
async def engine(broker: Broker, keyring: Keyring, nursery: Counting | None) -> AsyncIterator[tuple[Engine, Shown]]:
    shown = Shown()
    made = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring), shown, nursery)
    made.add(REF, PLAN)
    async with live(made):
        yield made, shown


async def synced(engine: Engine) -> None:
    """Wait until the engine knows the log."""
    await until(lambda: engine.studies[REF.uid].synced)


async def ask(broker: Broker, keyring: Keyring, asked: nested.Submission, *, key: str = "") -> None:
    """Append what an agent would."""
    client = Client()
    await client.connect(broker.url, **broker.credentials)
    await append(client, keyring, SPACE.child(REF.uid, key or asked.key(REF.uid)), asked)
    await client.close()


async def append(client: Client, keyring: Keyring, subject: str, entry: wire.Message) -> None:
    await client.jetstream().publish(subject, keyring.seal(entry.encode(), scope=REF.uid, context=subject))


async def order(broker: Broker, keyring: Keyring, target: str, *, word: str, deed: nested.Deed = "cancel") -> None:
    """Append what an agent would whose step gives an order."""
    client = Client()
    await client.connect(broker.url, **broker.credentials)
    entry = nested.Order(agent="a", step="a", task=0, deed=deed, target=target, word=word)
    await append(client, keyring, SPACE.order(REF.uid, word), entry)
    await client.close()


async def word(broker: Broker, subject: str) -> bytes:
    client = Client()
    await client.connect(broker.url, **broker.credentials)
    try:
        message = await client.jetstream().get_msg(SPACE.control_stream, subject=subject, direct=True)
        return message.data or b""
    finally:
        await client.close()


def children(shown: Shown) -> tuple[int, int]:
    """How many studies were started and how many refused, as the view says."""
    return (shown.view.children, shown.view.refused_children) if shown.view is not None else (0, 0)


def test_each_is_made_once_by_whichever_engine_comes_to_it(broker: Broker) -> None:
    """Asked for twice, made by the first engine, deleted, found settled by the second; one more while none was there."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting(fails=1)
        async with engine(broker, keyring, nursery) as (made, shown):
            await synced(made)
            await ask(broker, keyring, ASKED)
            await ask(broker, keyring, ASKED.model_copy(update={"agent": "b", "name": "twin"}))
            await until(lambda: len(nursery.made) == 1 and children(shown) == (1, 0))
        nursery.there.clear()  # somebody deleted it
        await ask(broker, keyring, ASKED.model_copy(update={"number": 2}))
        async with engine(broker, keyring, nursery) as (_, shown):
            await until(lambda: children(shown) == (2, 0) and len(nursery.made) == 2)
        assert len(set(nursery.made)) == 2
        assert all(name.startswith("child-") for name in nursery.made)

    asyncio.run(scenario())


def test_an_engine_that_died_before_it_wrote_what_it_made_finds_it(broker: Broker) -> None:
    """The word is lost, the Study stands: no second one."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        nursery.there.add(nested.child_name("child", ASKED.key(REF.uid)))
        async with engine(broker, keyring, nursery) as (made, shown):
            await synced(made)
            await ask(broker, keyring, ASKED)
            subject = SPACE.born(REF.uid, ASKED.key(REF.uid))
            await until(lambda: children(shown) == (1, 0))
            data = keyring.open(await word(broker, subject), scope=REF.uid, context=subject, signer=Signer.OPERATOR)
        assert nested.Born.model_validate_json(data).uid
        assert not nursery.made

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["another's name", "another key", "no operator that may"])
def test_what_may_not_be_is_not_made(broker: Broker, how: str) -> None:
    """A submission under a name that does not follow from who asks, or by nobody's key, is counted and left alone."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        async with engine(broker, keyring, None if how == "no operator that may" else nursery) as (made, shown):
            await synced(made)
            if how == "another's name":
                await ask(broker, keyring, ASKED, key="0123456789abcdef")
            elif how == "another key":
                await ask(broker, Keyring.generate(), ASKED)
            else:
                await ask(broker, keyring, ASKED)
                await until(lambda: children(shown) == (0, 1))
                return
            await until(lambda: made.counters().refused == 1)
            await ask(broker, keyring, ASKED.model_copy(update={"number": 2}))
            await until(lambda: children(shown) == (1, 0))
        assert len(nursery.made) == 1

    asyncio.run(scenario())


def test_agents_are_told_what_they_can_refuse(broker: Broker) -> None:
    """A study below a root has its generation in the control stream; deleting it takes the words along."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        async with engine(broker, keyring, Counting()) as (made, shown):
            await synced(made)
            made.studies[REF.uid].lineage = family.Lineage("r", "r", "p", 7)
            await until(lambda: made.studies[REF.uid].told is not None)
            subject = SPACE.family(REF.uid)
            data = keyring.open(await word(broker, subject), scope=REF.uid, context=subject, signer=Signer.OPERATOR)
            assert nested.Family.model_validate_json(data) == nested.Family(study=REF.uid, depth=7)
            await ask(broker, keyring, ASKED)
            await until(lambda: children(shown) == (1, 0))
            assert await made.forget(REF, timeout=120)
            for gone in (subject, SPACE.born(REF.uid, ASKED.key(REF.uid))):
                with pytest.raises(NotFoundError):
                    await word(broker, gone)

    asyncio.run(scenario())


def test_log_entries_of_both_kinds_fold_side_by_side(broker: Broker) -> None:
    """A submission is no entry of the ledger and stops none."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        async with engine(broker, keyring, Counting()) as (made, shown):
            await synced(made)
            await ask(broker, keyring, ASKED)
            client = Client()
            await client.connect(broker.url, **broker.credentials)
            subject = SPACE.bound(REF.uid)
            bound = wire.Bound(site="s", agent="a", mark="m", workspace="/w")
            await client.jetstream().publish(subject, keyring.seal(bound.encode(), scope=REF.uid, context=subject))
            await client.close()
            await until(lambda: made.studies[REF.uid].site == "s" and children(shown) == (1, 0))
            assert made.counters().refused == 0

    asyncio.run(scenario())


def test_orders_are_carried_out_once_and_within_the_family_or_for_its_creator(broker: Broker) -> None:
    """By name or uid; another's study and one that is not there are refused, and a new engine repeats nothing."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        words = {name: f"{number:016x}" for number, name in enumerate(("t", "other-uid", "relative", "nobody"))}
        async with engine(broker, keyring, nursery) as (made, _):
            for uid, lineage in (
                ("other-uid", family.Lineage(creator="bob")),
                ("relative", family.Lineage(root=REF.uid, root_name="t", parent=REF.uid, depth=1, creator="bob")),
            ):
                made.add(StudyRef("ns", f"name-{uid}", uid), PLAN)
                made.studies[uid].lineage = lineage
            made.studies[REF.uid].lineage = family.Lineage(creator="ada")
            await synced(made)
            for target, key in words.items():
                await order(broker, keyring, target, word=key, deed="suspend")
            orders = made.studies[REF.uid].orders
            await until(lambda: len(orders) == 4 and all(each.born is not None for each in orders.values()))
            refused = {target: orders[key].born.refused for target, key in words.items()}  # type: ignore[union-attr]
        assert sorted(nursery.changed) == [(REF.uid, {"suspend": True}), ("relative", {"suspend": True})]
        assert "belongs to somebody else" in refused["other-uid"]
        assert "no study nobody" in refused["nobody"]
        assert refused["t"] == refused["relative"] == ""
        async with engine(broker, keyring, nursery) as (made, _):
            await until(lambda: all(each.born for each in made.studies[REF.uid].orders.values()))
            await until(lambda: len(made.studies[REF.uid].orders) == 4)
        assert len(nursery.changed) == 2

    asyncio.run(scenario())


def test_what_a_cancelled_study_started_is_cancelled_with_it(broker: Broker) -> None:
    """All generations, each told once; and what it asks for from then on is refused."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        async with engine(broker, keyring, nursery) as (made, shown):
            parent = REF.uid
            for depth, uid in enumerate(("child", "grandchild"), start=1):
                made.add(StudyRef("ns", uid, uid), PLAN, family.Lineage(REF.uid, "t", parent, depth))
                parent = uid
            await synced(made)
            made.switch(REF.uid, {"cancel": True})
            await until(lambda: len(nursery.changed) == 2)
            assert nursery.changed == [("child", {"cancel": True}), ("grandchild", {"cancel": True})]
            await ask(broker, keyring, ASKED)
            await until(lambda: children(shown) == (0, 1))
        assert not nursery.made
        assert len(nursery.changed) == 2

    asyncio.run(scenario())


def test_a_cancelled_root_ends_a_chain_whose_middle_is_over(broker: Broker) -> None:
    """An iteration: each round is over once it has started the next, and the last one starts no more."""

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        async with engine(broker, keyring, nursery) as (made, _):
            await synced(made)
            made.studies["root"] = Study(StudyRef("ns", "root", "root"), 1)
            made.studies["middle"] = Study(
                StudyRef("ns", "middle", "middle"), 1, lineage=family.Lineage("root", "root", "root", 1)
            )
            made.studies[REF.uid].lineage = family.Lineage("root", "root", "middle", 2)
            made.switch("root", {"cancel": True})
            await until(lambda: nursery.changed == [(REF.uid, {"cancel": True})])
            await ask(broker, keyring, ASKED)
            await until(lambda: bool(made.studies[REF.uid].children))
            await until(lambda: all(each.born is not None for each in made.studies[REF.uid].children.values()))
        assert not nursery.made

    asyncio.run(scenario())


def test_a_step_sends_away_only_agents_of_its_user_that_serve_its_family(broker: Broker) -> None:
    """Each by its allocation, once; neither another user's, nor another site's, nor one that serves other queues alone."""
    own: dict[str, object] = {
        "agent": "own",
        "site": "s",
        "host": "h",
        "pid": 1,
        "version": "1",
        "slots": 1,
        "user": "ada",
    }
    others: list[dict[str, object]] = [
        {"agent": "mate", "host": "h2"},
        {"agent": "narrow", "queues": ["merlin", "x"]},
        {"agent": "elsewhere", "queues": ["x"]},
        {"agent": "bobs", "user": "bob"},
        {"agent": "afar", "site": "t"},
    ]

    async def scenario() -> None:
        keyring, nursery = Keyring.generate(), Counting()
        async with engine(broker, keyring, nursery) as (made, _):
            await synced(made)
            for each in ({}, *others):
                made.fleet.hear(wire.Heartbeat.model_validate({**own, **each}), time.monotonic())
            client = Client()
            await client.connect(broker.url, **broker.credentials)
            for number, (agent, queues) in enumerate((("own", ()), ("own", ("x",)), ("gone", ()))):
                key = f"{number:016x}"
                entry = nested.Dismissal(agent=agent, step="a", task=0, queues=queues, word=key)
                await append(client, keyring, SPACE.order(REF.uid, key), entry)
            await client.close()
            orders = made.studies[REF.uid].orders
            await until(lambda: len(orders) == 3 and all(each.born is not None for each in orders.values()))
            refused = [orders[key].born.refused for key in sorted(orders)]  # type: ignore[union-attr]
        (sent,) = nursery.dismissed
        assert sorted(sent.values()) == [["mate"], ["narrow", "own"]]
        assert refused[0] == ""
        assert "no step of this family of studies has queue x" in refused[1]
        assert "is not known by now" in refused[2]

    asyncio.run(scenario())
