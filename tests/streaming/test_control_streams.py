"""Suspend, purge, cancel and restart on a real nats-server: at once, exactly, and whatever engine carries them out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

import nats
import pytest

from merlin_operator.board import Submission
from merlin_operator.control import Switches
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from merlin_study.spec import RestartRequest
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.ground.waiting import eventually_async
from tests.streaming.engines import live
from tests.streaming.reporter import Reporter
from tests.streaming.test_engine import REF, SAMPLES, TEXT, Shown, until


@pytest.fixture
def plan() -> Plan:
    return plan_of(TEXT)


@contextlib.asynccontextmanager
async def running(
    broker: Broker, keyring: Keyring, plan: Plan, switches: Switches | None = None, *, lost_after: float = 60.0
) -> AsyncIterator[tuple[Engine, Shown]]:
    """An engine that holds the study, with these switches from the beginning."""
    shown = Shown()
    timing = wire.Timing(heartbeat=0.2, lost_after=lost_after)
    engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), shown)
    engine.add(REF, plan)
    engine.studies[REF.uid].switches = switches or Switches()
    async with live(engine):
        yield engine, shown


def switch(engine: Engine, switches: Switches) -> None:
    """Change the study's switches, as a change of its object does."""
    engine.studies[REF.uid].switches = switches
    engine.core.wake.set()


async def empty(engine: Engine) -> bool:
    """Whether the broker holds no chunk of the study, and agents were told of what is so."""
    return engine.studies[REF.uid].word is not None and not await engine.broker.chunks(REF.uid)


async def word(engine: Engine) -> wire.Control:
    """What agents are told of the study."""
    subject = engine.space.control(REF.uid)
    stored = await engine.broker.last(engine.space.control_stream, subject)
    assert stored is not None
    return wire.Control.model_validate_json(engine.core.open_own(REF.uid, stored))


def quiet(engine: Engine) -> bool:
    """Whether nothing of the study is out."""
    ledger = engine.studies[REF.uid].ledger
    return ledger is not None and not ledger.fences


def waits(engine: Engine) -> bool:
    """Whether a chunk of the study is out that nobody has started."""
    ledger = engine.studies[REF.uid].ledger
    return ledger is not None and any(fence.holder is None for fence in ledger.fences.values())


def test_a_suspended_study_comes_to_rest_and_resumes_under_another_engine(broker: Broker, plan: Plan) -> None:
    """What nobody had started is taken back from the broker; each task is claimed once all the same."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with reporter.working():
            async with running(broker, keyring, plan) as (engine, shown):
                await until(lambda: shown.done > 500)
                switch(engine, Switches(suspend=True))
                await until(lambda: quiet(engine))
                await eventually_async(functools.partial(empty, engine))
                assert (await word(engine)).drop_below > 0
            async with running(broker, keyring, plan, Switches(suspend=True)) as (engine, shown):
                await until(lambda: engine.studies[REF.uid].synced)
                await until(lambda: engine.counters().loops > 3)
                assert 500 < shown.done < 4 * SAMPLES
                assert quiet(engine)
                switch(engine, Switches())
                await until(lambda: shown.finished)
                assert set(reporter.runs.values()) == {1}
                assert shown.view is not None
                assert shown.view.succeeded

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", [Switches(purge="1"), Switches(cancel=True)], ids=["purge", "cancel"])
def test_what_waits_is_dropped_though_the_engine_dies_meanwhile(broker: Broker, plan: Plan, asked: Switches) -> None:
    """A first engine begins to carry it out and is gone at once; the next one ends the study, and it stays so."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        silent = Reporter(broker, keyring, plan, samples=SAMPLES, name="silent", works=False)
        async with silent.working():
            async with reporter.working(), running(broker, keyring, plan) as (_, shown):
                await until(lambda: shown.done > 500)
            async with running(broker, keyring, plan) as (engine, _):
                await until(lambda: engine.studies[REF.uid].synced and waits(engine))
                switch(engine, asked)
                await until(lambda: bool(engine.studies[REF.uid].withdrawn))
            for _ in range(2):
                # The reporter may have been stopped between a claim and its report, and has to count as lost.
                async with running(broker, keyring, plan, asked, lost_after=2.0) as (engine, shown):
                    await until(lambda: shown.finished)
                    await eventually_async(functools.partial(empty, engine))
                    assert shown.view is not None
                    assert shown.view.cancelled is asked.cancel
                    assert shown.done == shown.view.total == 4 * SAMPLES + 2
                    told = await word(engine)
                    assert (told.kill_below > 0) is asked.cancel
                    assert told.drop_below > 0

    asyncio.run(scenario())


def test_a_restart_runs_the_named_tasks_once_more_and_an_older_one_nothing(broker: Broker, plan: Plan) -> None:
    """A Study that comes back from an older backup asks for a restart that was done; nothing follows from it."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        first = Switches(restart=RestartRequest(id="1", steps=("b",), tasks="0-99", exit_codes=(0,)))
        second = Switches(restart=RestartRequest(id="2", steps=("c",), exit_codes=(0,)))
        async with reporter.working():
            async with running(broker, keyring, plan) as (engine, shown):
                await until(lambda: shown.finished)
                switch(engine, first)
                await until(lambda: sum(reporter.runs.values()) == 4 * SAMPLES + 2 + 100)
                await until(lambda: shown.finished)
                switch(engine, second)
                await until(lambda: sum(reporter.runs.values()) == 4 * SAMPLES + 2 + 101)
                await until(lambda: shown.finished)
            async with running(broker, keyring, plan, first) as (engine, shown):
                await until(lambda: shown.finished)
                switch(engine, second)
                loops = engine.counters().loops
                await until(lambda: engine.counters().loops > loops + 3)
                assert shown.finished
                assert sum(reporter.runs.values()) == 4 * SAMPLES + 2 + 101
                assert shown.view is not None
                assert shown.view.doubled == 0

    asyncio.run(scenario())


async def left_of(engine: Engine, uid: str = REF.uid) -> set[str]:
    """The subjects under which the broker holds something of the study."""
    space = engine.space
    filters = {
        space.task_stream: (space.chunks_of(uid), space.cursor(uid)),
        space.report_stream: (space.reports_of(uid),),
        space.control_stream: (space.plans_of(uid),),
    }
    return {
        subject
        for stream, matching in filters.items()
        for each in matching
        for subject in await engine.broker.subjects(stream, each)
    }


@pytest.mark.parametrize("retain", [False, True])
def test_what_comes_after_a_study_is_gone_is_swept(broker: Broker, plan: Plan, retain: bool) -> None:  # noqa: FBT001
    """A report that arrives after the purge goes at the second look; what was to be kept stays."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with running(broker, keyring, plan) as (engine, shown):
            async with reporter.working():
                await until(lambda: shown.done > 100)
                assert await engine.forget(REF, timeout=120, retain=retain)
                late = wire.Report(agent="reporter", fence=10**6, serial=1, step=0, attempt=1, final=True)
                await reporter.append(REF.uid, engine.space.reports(REF.uid, 10**6), late, expected=None)
            await until(lambda: REF.uid in engine.core.strays)
            await engine.sweep(frozenset({REF.uid}))  # its object is still there
            await engine.sweep(frozenset())
            assert await left_of(engine)
            await engine.sweep(frozenset())
            assert bool(await left_of(engine)) is retain

    asyncio.run(scenario())


def test_what_was_stored_while_nobody_looked_is_swept_and_nothing_else(broker: Broker, plan: Plan) -> None:
    """A plan of which nothing was issued, and a report that came after a purge. A name that would match all studies is none."""

    async def scenario() -> None:
        keyring, stays = Keyring.generate(), StudyRef("ns", "stays", "stays")
        config = EngineConfig("ns", broker.url, dict(broker.credentials), keyring)
        async with live(Engine(config, Shown())) as engine:
            engine.add(REF, plan)
            engine.add(stays, plan)
            await until(lambda: all(study.synced for study in engine.studies.values()))
        space, client = engine.space, await nats.connect(broker.url, **broker.credentials)
        await client.jetstream().publish(space.reports("late", 7), b"what nobody can open")
        await client.jetstream().publish(space.reports("*", 7), b"the server takes this, too")
        await client.close()
        async with live(Engine(config, Shown())) as engine:
            engine.add(stays, plan)
            await until(lambda: engine.studies[stays.uid].synced)
            await engine.sweep(frozenset({stays.uid}))
            assert await left_of(engine, REF.uid)
            assert await left_of(engine, "late")
            await engine.sweep(frozenset({stays.uid}))
            assert not await left_of(engine, REF.uid)
            assert not await left_of(engine, "late")
            assert await left_of(engine, stays.uid)

    asyncio.run(scenario())


def test_a_study_that_is_deleted_while_the_broker_is_away_is_cleaned_as_was_asked_for(
    broker: Broker, plan: Plan
) -> None:
    """Its log was to stay, and stays, though its object is gone once the broker is back; nothing of it waits for agents."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with running(broker, keyring, plan) as (engine, shown):
            async with reporter.working():
                await until(lambda: shown.done > 100)
            broker.stop()
            assert not await engine.forget(REF, timeout=0.5, retain=True)
            broker.restart()
            await until(lambda: engine.knows_broker)
            for _ in range(3):
                await engine.sweep(frozenset())
            assert (await word(engine)).retained
            assert not await engine.broker.chunks(REF.uid)
            assert await left_of(engine, REF.uid)

    asyncio.run(scenario())


def test_a_change_of_the_object_is_a_change_of_the_switches(broker: Broker) -> None:
    """Through `Engine.observe`, as kopf hands it over; one that cannot be read changes nothing, and is told."""
    spec = {
        "description": {"name": "n", "description": "d"},
        "study": [{"name": "a", "description": "d", "run": {"cmd": "true"}}],
    }
    accepted = {"conditions": [{"type": "Accepted", "status": "True"}]}

    async def scenario() -> None:
        engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), Keyring.generate()), Shown())

        async def change(generation: int, **switches: object) -> Switches:
            await engine.observe(Submission(REF, generation, "1", 1.0, {**spec, **switches}, accepted))
            return engine.studies[REF.uid].switches

        assert await change(1) == Switches()
        assert await change(2, suspend=True, priority=7) == Switches(suspend=True, priority=7)
        assert (await change(3, suspend=True, maxInFlight=0)).priority == 7
        assert [fault.path for fault in engine.studies[REF.uid].warnings] == ["spec.maxInFlight"]
        assert await change(4, maxInFlight=5, restart={"id": "1", "steps": ["no"]}) == Switches(
            max_in_flight=5, restart=RestartRequest(id="1", steps=("no",))
        )
        assert [fault.path for fault in engine.studies[REF.uid].warnings] == ["spec.restart.steps[0]"]

    asyncio.run(scenario())
