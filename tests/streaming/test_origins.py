"""A server that is started again on its own disk: what follows from it for studies, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from merlin_operator import stream
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.ledger import Ledger
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


def test_a_publication_that_did_not_go_through_leaves_a_log_that_nobody_doubts(broker: Broker, plan: Plan) -> None:
    """Its fences are closed, since the next cursor counts them: the next engine finds each of them."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        reporter = Reporter(
            broker, keyring, plan, samples=SAMPLES, seconds=0.05, queues=("merlin",)
        )  # so it is never over
        async with reporter.working():
            async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
                publications = _fail_third(engine.broker)
                await until(lambda: shown.done == 1 + SAMPLES)
                assert len(publications) > 3
                before = engine.studies[REF.uid].epoch
            async with engine_of(broker, keyring, plan, created=created) as (engine, shown):
                await until(lambda: engine.studies[REF.uid].counted)
                study = engine.studies[REF.uid]
                assert (study.epoch, study.lost, study.broken) == (before, False, False)
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def _fail_third(broker: stream.Broker) -> list[int]:
    """Have the third publication of chunks be lost on its way; the list that is returned says how many each has."""
    publish, publications = broker.publish_batch, list[int]()

    async def publish_batch(cursor: tuple[str, bytes], chunks: Sequence[tuple[str, bytes]], *, expected: int) -> int:
        if chunks:
            publications.append(len(chunks))
            if len(publications) == 3:
                raise stream.Outage("lost on its way")
        return await publish(cursor, chunks, expected=expected)

    broker.publish_batch = publish_batch  # type: ignore[method-assign]
    return publications


def test_a_study_that_is_deleted_while_another_is_published_ends_no_engine(broker: Broker, plan: Plan) -> None:
    """Its removal waits for a round to end, but not for ever."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        other = StudyRef("ns", "other", "9e107d9d")
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=0.05)
        async with engine_of(broker, keyring, plan, created=created) as (engine, _):
            engine.add(other, plan, created=created)
            publish, issued = engine.broker.publish_batch, set[str]()

            async def publish_batch(
                cursor: tuple[str, bytes], chunks: Sequence[tuple[str, bytes]], *, expected: int
            ) -> int:
                sequence = await publish(cursor, chunks, expected=expected)
                if chunks and not issued:
                    issued.add(cursor[0])
                    gone = other if REF.uid in cursor[0] else REF
                    engine.studies.pop(gone.uid)
                return sequence

            engine.broker.publish_batch = publish_batch  # type: ignore[method-assign]
            async with reporter.working():
                await until(lambda: bool(issued))
                loops = engine.counters().loops
                await until(lambda: engine.counters().loops > loops + 3)

    asyncio.run(scenario())


def test_the_newest_entry_may_be_of_a_study_that_is_deleted(broker: Broker, plan: Plan) -> None:
    """A server that starts anew puts none of the others in doubt, since their newest entries stand."""

    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        other = StudyRef("ns", "other", "9e107d9d")
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, queues=("merlin",))
        async with reporter.working(), engine_of(broker, keyring, plan, created=created) as (engine, shown):
            await until(lambda: shown.done > 10 and _is_quiet(engine))
            before = engine.studies[REF.uid].epoch
            engine.add(other, plan, created=time.time() - 30)
            await until(lambda: engine.studies[other.uid].folded > engine.studies[REF.uid].folded and _is_quiet(engine))
            assert await engine.forget(other, timeout=60)
            server = engine.broker.server_id
            broker.kill()
            broker.start()
            await until(functools.partial(_met_another, engine, server))
            await until(lambda: engine.studies[REF.uid].synced)
            assert engine.studies[REF.uid].epoch == before

    asyncio.run(scenario())


def _is_quiet(engine: Engine) -> bool:
    """Whether no chunk of any study is out but those that no agent takes."""
    ledgers = [study.ledger for study in engine.studies.values()]
    return all(ledger is not None and _has_run(ledger) for ledger in ledgers)


def _has_run(ledger: Ledger) -> bool:
    return all(step.complete for step in ledger.steps[:-1]) and all(
        each.holder is None for each in ledger.fences.values()
    )


def test_a_study_for_which_the_broker_does_not_answer_holds_up_no_other(broker: Broker, plan: Plan) -> None:
    async def scenario() -> None:
        keyring, created = Keyring.generate(), time.time() - 60
        mute = StudyRef("ns", "mute", "9e107d9d")
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with engine_of(broker, keyring, plan, created=created) as (engine, _):
            chunks = engine.broker.chunks

            async def asked(study: str) -> list[stream.Stored]:
                if study == mute.uid:
                    raise stream.Outage("no answer")
                return await chunks(study)

            engine.broker.chunks = asked  # type: ignore[method-assign]
            theirs = engine.studies.pop(REF.uid)
            engine.add(mute, plan, created=created)
            engine.studies[REF.uid] = theirs
            async with reporter.working():
                await until(lambda: theirs.over)
            assert not engine.studies[mute.uid].synced

    asyncio.run(scenario())
