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
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.engines import live
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


class Scene:
    """A study that was made a minute ago, of two steps, one on a queue of its own: who runs it, and who looks after it."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.keyring, self.plan, self.created = broker, Keyring.generate(), plan_of(TEXT), time.time() - 60

    def reporter(self, *, seconds: float = 0.001, queues: tuple[str, ...] = ()) -> Reporter:
        """Return an agent for it; with one that serves only some queues it is never over."""
        return Reporter(self.broker, self.keyring, self.plan, samples=SAMPLES, seconds=seconds, queues=queues)

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[tuple[Engine, Shown]]:
        """Run an engine for it."""
        shown = Shown()
        timing = wire.Timing(heartbeat=0.2)
        options = dict(self.broker.credentials)
        engine = Engine(EngineConfig("ns", self.broker.url, options, self.keyring, timing), shown)
        engine.add(REF, self.plan, created=self.created)
        async with live(engine):
            yield engine, shown


@pytest.fixture
def scene(broker: Broker) -> Scene:
    """One of the test's own."""
    return Scene(broker)


def _met_another(engine: Engine, server: str) -> bool:
    """Whether it is connected with another server, and has written down that the logs stand on that one, too."""
    return engine.broker.server_id not in ("", server) and engine.knows_broker


def test_an_engine_that_followed_the_log_doubts_nothing_of_it(scene: Scene) -> None:
    """The newest entry that it knew is there: the study goes on under the same fences, and so it does for the next engine."""

    async def scenario() -> None:
        reporter = scene.reporter(seconds=0.05)
        async with reporter.working():
            async with scene.engine() as (engine, shown):
                await until(lambda: shown.done > 10)
                before = engine.studies[REF.uid].epoch
                for _ in range(2):
                    server = engine.broker.server_id
                    scene.broker.kill()
                    scene.broker.start()
                    await until(functools.partial(_met_another, engine, server))
                assert engine.studies[REF.uid].epoch == before
            async with scene.engine() as (engine, shown):
                await until(lambda: shown.finished)
                assert engine.studies[REF.uid].epoch == before
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def test_a_study_that_is_over_is_shown_though_nobody_followed_its_log(scene: Scene) -> None:
    async def scenario() -> None:
        reporter = scene.reporter()
        async with reporter.working(), scene.engine() as (_, shown):
            await until(lambda: shown.finished)
        scene.broker.kill()
        scene.broker.start()
        async with scene.engine() as (engine, shown):
            await until(lambda: shown.finished)
            assert engine.studies[REF.uid].broken, "its log may lack something, and that changes nothing"
            assert shown.view is not None
            assert shown.view.succeeded
            assert (shown.view.lost_log, shown.view.waiting_for) == ("", "")

    asyncio.run(scenario())


def test_a_study_whose_log_nobody_can_complete_waits_for_agents_and_is_cancelled_at_a_word(scene: Scene) -> None:
    """Its log is there, so it is not called degraded; who cancels it need not start an agent for that."""

    async def scenario() -> None:
        reporter = scene.reporter(queues=("merlin",))
        async with reporter.working(), scene.engine() as (_, shown):
            await until(lambda: shown.done > 10)
        scene.broker.kill()
        scene.broker.start()
        async with scene.engine() as (engine, shown):
            await until(lambda: shown.view is not None and "start one" in shown.view.waiting_for)
            assert shown.view is not None
            assert shown.view.lost_log == ""
            engine.switch(REF.uid, {"cancel": True})
            await until(lambda: shown.finished)
            assert shown.view.cancelled

    asyncio.run(scenario())


def test_a_study_that_never_began_waits_for_agents_as_any_study_does(scene: Scene) -> None:
    """Those that come see that it has no workspace, and run it."""

    async def scenario() -> None:
        reporter = scene.reporter()
        async with scene.engine() as (engine, shown):
            await until(lambda: engine.studies[REF.uid].unheard)
            await until(lambda: shown.view is not None and "no agent serves" in shown.view.waiting_for)
            async with reporter.working():
                await until(lambda: shown.finished)
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def test_a_study_that_never_began_is_cancelled_without_agents(scene: Scene) -> None:
    async def scenario() -> None:
        async with scene.engine() as (engine, shown):
            await until(lambda: engine.studies[REF.uid].unheard)
            engine.switch(REF.uid, {"cancel": True})
            await until(lambda: shown.finished)
            assert shown.view is not None
            assert shown.view.cancelled

    asyncio.run(scenario())


def test_a_publication_that_did_not_go_through_leaves_a_log_that_nobody_doubts(scene: Scene) -> None:
    """Its fences are closed, since the next cursor counts them: the next engine finds each of them."""

    async def scenario() -> None:
        reporter = scene.reporter(seconds=0.05, queues=("merlin",))
        async with reporter.working():
            async with scene.engine() as (engine, shown):
                publications = _fail_third(engine.broker)
                await until(lambda: shown.done == 1 + SAMPLES)
                assert len(publications) > 3
                before = engine.studies[REF.uid].epoch
            async with scene.engine() as (engine, shown):
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


def test_a_study_that_is_deleted_while_another_is_published_ends_no_engine(scene: Scene) -> None:
    """Its removal waits for a round to end, but not for ever."""

    async def scenario() -> None:
        other = StudyRef("ns", "other", "9e107d9d")
        reporter = scene.reporter(seconds=0.05)
        async with scene.engine() as (engine, _):
            engine.add(other, scene.plan, created=scene.created)
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


def test_the_newest_entry_may_be_of_a_study_that_is_deleted(scene: Scene) -> None:
    """A server that starts anew puts none of the others in doubt, since their newest entries stand."""

    async def scenario() -> None:
        other = StudyRef("ns", "other", "9e107d9d")
        reporter = scene.reporter(queues=("merlin",))
        async with reporter.working(), scene.engine() as (engine, shown):
            await until(lambda: shown.done > 10 and _is_quiet(engine))
            before = engine.studies[REF.uid].epoch
            engine.add(other, scene.plan, created=time.time() - 30)
            await until(lambda: engine.studies[other.uid].folded > engine.studies[REF.uid].folded and _is_quiet(engine))
            assert await engine.forget(other, timeout=60)
            server = engine.broker.server_id
            scene.broker.kill()
            scene.broker.start()
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


def test_a_study_for_which_the_broker_does_not_answer_holds_up_no_other(scene: Scene) -> None:
    async def scenario() -> None:
        mute = StudyRef("ns", "mute", "9e107d9d")
        reporter = scene.reporter()
        async with scene.engine() as (engine, _):
            chunks = engine.broker.chunks

            async def asked(study: str) -> list[stream.Stored]:
                if study == mute.uid:
                    raise stream.Outage("no answer")
                return await chunks(study)

            engine.broker.chunks = asked  # type: ignore[method-assign]
            theirs = engine.studies.pop(REF.uid)
            engine.add(mute, scene.plan, created=scene.created)
            engine.studies[REF.uid] = theirs
            async with reporter.working():
                await until(lambda: theirs.over)
            assert not engine.studies[mute.uid].synced

    asyncio.run(scenario())
