"""A server that is started again on its own disk: what follows from it for studies, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator

import pytest

from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.reporter import Reporter
from tests.streaming.test_engine import REF, Shown, until

SAMPLES = 400
TEXT = """
description: {name: t, description: d}
study:
- {name: a, description: d, run: {cmd: "echo $(S)"}}
- {name: b, description: d, run: {cmd: "echo", task_queue: other}}
merlin: {samples: {file: x.csv, column_labels: [S]}}
"""


@pytest.fixture
def plan() -> Plan:
    """A study of two steps, one on a queue of its own."""
    return plan_of(TEXT)


@contextlib.asynccontextmanager
async def engine_of(
    broker: Broker, keyring: Keyring, plan: Plan, *, created: float
) -> AsyncIterator[tuple[Engine, Shown]]:
    """Run an engine for a study that was made then."""
    shown = Shown()
    timing = wire.Timing(heartbeat=0.2)
    engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), shown)
    engine.add(REF, plan, created=created)
    task = asyncio.create_task(engine.run())
    try:
        yield engine, shown
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _met_another(engine: Engine, server: str) -> bool:
    """Whether it is connected with another server, and has written down that the logs stand on that one, too."""
    return engine.broker.server_id not in ("", server) and engine.knows_broker


def test_an_engine_that_followed_the_log_doubts_nothing_of_it(broker: Broker, plan: Plan) -> None:
    """The newest entry that it knew is there: the study goes on under the same fences, and so it does for the next engine."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=0.05)
        async with reporter.working():
            async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
                await until(lambda: shown.done > 10)
                before = engine.studies[REF.uid].epoch
                for _ in range(2):
                    server = engine.broker.server_id
                    broker.kill()
                    broker.start()
                    await until(functools.partial(_met_another, engine, server))
                assert engine.studies[REF.uid].epoch == before
            async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
                await until(lambda: shown.finished)
                assert engine.studies[REF.uid].epoch == before
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def test_a_study_that_is_over_is_shown_though_nobody_followed_its_log(broker: Broker, plan: Plan) -> None:
    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with reporter.working(), engine_of(broker, keyring, plan, created=created) as (_, shown):
            await until(lambda: shown.finished)
        broker.kill()
        broker.start()
        async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
            await until(lambda: shown.finished)
            assert engine.studies[REF.uid].broken, "its log may lack something, and that changes nothing"
            assert shown.view is not None
            assert shown.view.succeeded
            assert (shown.view.lost_log, shown.view.waiting_for) == ("", "")

    asyncio.run(scenario())


def test_a_study_whose_log_nobody_can_complete_waits_for_agents_and_is_cancelled_at_a_word(
    broker: Broker, plan: Plan
) -> None:
    """Its log is there, so it is not called degraded; who cancels it need not start an agent for that."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, queues=("merlin",))  # so it is never over
        async with reporter.working(), engine_of(broker, keyring, plan, created=created) as (_, shown):
            await until(lambda: shown.done > 10)
        broker.kill()
        broker.start()
        async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
            await until(lambda: shown.view is not None and "start one" in shown.view.waiting_for)
            assert shown.view is not None
            assert shown.view.lost_log == ""
            engine.switch(REF.uid, {"cancel": True})
            await until(lambda: shown.finished)
            assert shown.view.cancelled

    asyncio.run(scenario())


def test_a_study_that_never_began_waits_for_agents_as_any_study_does(broker: Broker, plan: Plan) -> None:
    """Those that come see that it has no workspace, and run it."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
            await until(lambda: engine.studies[REF.uid].unheard)
            await until(lambda: shown.view is not None and "no agent serves" in shown.view.waiting_for)
            async with reporter.working():
                await until(lambda: shown.finished)
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def test_a_study_that_never_began_is_cancelled_without_agents(broker: Broker, plan: Plan) -> None:
    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
            await until(lambda: engine.studies[REF.uid].unheard)
            engine.switch(REF.uid, {"cancel": True})
            await until(lambda: shown.finished)
            assert shown.view is not None
            assert shown.view.cancelled

    asyncio.run(scenario())
