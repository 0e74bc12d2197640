"""The engine on a real nats-server: it may die, be doubled, or be lied to, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from nats.aio.client import Client
from nats.errors import ConnectionClosedError

from merlin_operator.board import AgentView
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef, StudyView
from merlin_study import subjects, wire
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.ground.waiting import eventually_async
from tests.streaming.engines import live
from tests.streaming.reporter import Reporter

SAMPLES = 2000
TEXT = """
description: {name: t, description: d}
global.parameters: {G: {values: [1, 2], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G) $(S)"}}
- {name: b, description: d, run: {cmd: "ls $(a.workspace) $(S)", depends: [a]}}
- {name: c, description: d, run: {cmd: "echo", depends: [b_*]}}
merlin: {samples: {file: x.csv, column_labels: [S]}}
"""
REF = StudyRef("ns", "t", "0000-uid")


class Shown:
    """A board that remembers the last view."""

    def __init__(self) -> None:
        self.view: StudyView | None = None

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Remember."""
        del agents, news
        self.view = views[0] if views else None

    @property
    def done(self) -> int:
        return self.view.done if self.view is not None else 0

    @property
    def finished(self) -> bool:
        return self.view is not None and self.view.finished


async def until(holds: Callable[[], bool], *, seconds: float = 240) -> None:
    """Wait until something holds."""

    async def ask() -> bool:
        return holds()

    await eventually_async(ask, timeout=seconds)


@contextlib.asynccontextmanager
async def running(
    broker: Broker, keyring: Keyring, plan: Plan, *, lost_after: float = 60.0
) -> AsyncIterator[tuple[Engine, Shown]]:
    """Run an engine; agents are lost after a silence that no busy machine makes, unless it is that what is tried."""
    shown = Shown()
    timing = wire.Timing(heartbeat=0.2, lost_after=lost_after)
    engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), shown)
    engine.add(REF, plan)
    async with live(engine):
        try:
            yield engine, shown
        except AssertionError:
            for study in engine.studies.values():
                out = study.ledger.fences if study.ledger is not None else None
                print(
                    f"done={shown.done} synced={study.synced} folded={study.folded} "
                    f"pending={len(study.pending)} out={out}"
                )
            print(engine.counters())
            raise


def more(shown: Shown, least: int) -> bool:
    """Whether more than so many tasks are over."""
    return shown.done > least


def _check(reporters: list[Reporter], shown: Shown, plan: Plan) -> None:
    assert shown.view is not None
    assert {step.name: step.succeeded for step in shown.view.steps} == {
        "merlin_info": 1, "a": 2 * SAMPLES, "b": 2 * SAMPLES, "c": 1,
    }  # fmt: skip
    runs = sum((reporter.runs for reporter in reporters), start=reporters[0].runs.__class__())
    assert len(runs) == 4 * SAMPLES + 2
    assert set(runs.values()) == {1}, "a task was claimed more than once"
    assert shown.view.doubled == 0
    assert shown.view.plan_hash == plan.hash


@pytest.fixture
def plan() -> Plan:
    return plan_of(TEXT)


def test_an_engine_that_is_replaced_goes_on_from_the_log(broker: Broker, plan: Plan) -> None:
    """Killed in the middle and started again it folds the same log, and issues nothing that was issued before."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with reporter.working():
            for least in (500, 2500, 5000):
                async with running(broker, keyring, plan) as (_, shown):
                    await until(functools.partial(more, shown, least))
            async with running(broker, keyring, plan) as (_, shown):
                await until(lambda: shown.finished)
                _check([reporter], shown, plan)

    asyncio.run(scenario())


def test_two_engines_at_once_double_nothing(broker: Broker, plan: Plan) -> None:
    """The cursor lets one of them publish at a time; the other reads and goes on."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with (
            reporter.working(),
            running(broker, keyring, plan) as (_, first),
            running(broker, keyring, plan) as (_, second),
        ):
            await until(lambda: first.finished and second.finished)
            _check([reporter], first, plan)
            _check([reporter], second, plan)

    asyncio.run(scenario())


def test_a_broker_that_is_killed_and_comes_back_costs_a_pause(broker: Broker, plan: Plan) -> None:
    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with reporter.working(), running(broker, keyring, plan) as (_, shown):
            for least in (500, 3000):
                await until(functools.partial(more, shown, least))
                broker.kill()
                broker.start()
            await until(lambda: shown.finished)
            _check([reporter], shown, plan)

    asyncio.run(scenario())


def test_a_cancellation_that_meets_the_end_of_the_connection_is_heeded(broker: Broker, plan: Plan) -> None:
    """nats-py answers it, now and then, with the connection's error: an engine that took that for an outage would go on for ever."""

    async def scenario() -> None:
        waits = asyncio.Event()

        async def swallow(_: object) -> None:
            waits.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionClosedError from None

        async with running(broker, Keyring.generate(), plan) as (engine, _):
            await engine.broker.wait_connected()
            asking = asyncio.create_task(engine.broker.ask(swallow))
            await waits.wait()
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()

    asyncio.run(scenario())


def test_an_agent_that_falls_silent_loses_its_chunks_to_another(broker: Broker, plan: Plan) -> None:
    """A claim whose holder is never heard is called lost; the tasks are issued again and name the lost holder."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        silent = Reporter(broker, keyring, plan, samples=SAMPLES, name="silent")
        async with running(broker, keyring, plan, lost_after=2.0) as (_, shown):
            async with silent.working():
                await until(lambda: shown.done > 0)
                chunk = wire.Chunk(
                    study=REF.uid, plan=plan.hash, epoch=1, fence=10**6, step=1, attempt=1, samples=SAMPLES,
                    tasks=TaskSet(first=2 * SAMPLES - 1, width=1),
                )  # fmt: skip
                start = wire.Start(agent="silent", chunk=chunk)
                await silent.append(REF.uid, silent.space.reports(REF.uid, 10**6), start, expected=0)
            async with reporter.working():
                await until(lambda: shown.finished)
            assert shown.view is not None
            assert sum(step.lost for step in shown.view.steps) >= 1
            assert shown.view.doubled == 0
            assert shown.view.succeeded

    asyncio.run(scenario())


def test_an_engine_that_was_frozen_calls_nobody_lost(broker: Broker, plan: Plan) -> None:
    """After its own pause longer than the limit it listens first: the heartbeats of that time lie unread."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with running(broker, keyring, plan, lost_after=5.0) as (engine, shown), reporter.working():
            await until(lambda: shown.done > 100)
            chunk = wire.Chunk(
                study=REF.uid, plan=plan.hash, epoch=1, fence=10**6, step=1, attempt=1, samples=SAMPLES,
                tasks=TaskSet(first=2 * SAMPLES - 1, width=1),
            )  # fmt: skip
            start = wire.Start(agent="reporter", chunk=chunk)
            await reporter.append(REF.uid, reporter.space.reports(REF.uid, 10**6), start, expected=0)
            await until(lambda: 10**6 in engine.studies[REF.uid].ledger.fences)  # type: ignore[union-attr]
            time.sleep(7.0)  # noqa: ASYNC251 the whole process stands still, as under SIGSTOP; lost_after is 5 s
            await until(lambda: shown.done > 4 * SAMPLES - 10)
            assert not engine.tally.lost.total()

    asyncio.run(scenario())


def test_a_chunk_that_vanishes_unstarted_is_issued_again(
    broker: Broker, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminated by somebody who could not read it, a chunk is in no log; the engine looks into the stream again."""
    monkeypatch.setattr("merlin_operator.engine._PATIENCE", 1.0)

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        silent = Reporter(broker, keyring, plan, samples=SAMPLES, name="silent", works=False)
        async with running(broker, keyring, plan) as (engine, shown):
            async with silent.working():
                await until(lambda: engine.counters().issued_chunks > 0)
                await engine.broker.purge(engine.space.task_stream, engine.space.chunks_of(REF.uid))
                await until(lambda: engine.studies[REF.uid].broken)
                assert not engine.studies[REF.uid].lost, "a chunk is gone, which says nothing of the log for sure"
            async with reporter.working():
                await until(lambda: shown.finished)
                _check([reporter], shown, plan)

    asyncio.run(scenario())


def test_noise_in_the_task_stream_stops_nobody(broker: Broker, plan: Plan) -> None:
    """An engine that starts on a stream with a foreign message refuses it, counts it, and runs the study."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with running(broker, keyring, plan, lost_after=2.0) as (engine, shown), reporter.working():
            await until(lambda: shown.done > 100)
            route = subjects.Route("elsewhere", "q", "n1-c1-g0-m0-w0", "bulk")
            await engine.broker.put(engine.space.chunk(route, REF.uid, 5000), b"noise")
        # Another agent: the first one may have been stopped between a claim and its report, and has to count as lost.
        second = Reporter(broker, keyring, plan, samples=SAMPLES, name="second")
        async with running(broker, keyring, plan, lost_after=2.0) as (engine, shown), second.working():
            await until(lambda: shown.finished)
            assert engine.counters().refused >= 1
            assert shown.view is not None
            assert shown.view.succeeded

    asyncio.run(scenario())


def test_a_broker_that_comes_back_empty_does_not_stall_the_study(broker: Broker, plan: Plan) -> None:
    """Its store wiped while it was down: streams are made again, the study is folded anew, and ends."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with reporter.working(), running(broker, keyring, plan, lost_after=2.0) as (_, shown):
            await until(lambda: shown.done > 500)
            broker.kill()
            shutil.rmtree(broker.directory / "store")
            broker.start()
            await until(lambda: shown.finished)
            assert shown.view is not None
            assert shown.view.succeeded

    asyncio.run(scenario())


def test_what_is_forged_is_refused_and_counted(broker: Broker, plan: Plan) -> None:
    """A report with other keys, and noise, change nothing; the study ends all the same."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        forger = Reporter(broker, Keyring.generate(), plan, samples=SAMPLES, name="forger")
        async with running(broker, keyring, plan) as (engine, shown):
            async with reporter.working(), forger.working():
                await until(lambda: shown.done > 0)
                lost = wire.Lost(fence=1, agent="reporter")
                await forger.append(REF.uid, forger.space.verdicts(REF.uid), lost, expected=None)
                await forger.append(REF.uid, forger.space.reports(REF.uid, 999), lost, expected=None)
                await until(lambda: shown.finished)
                _check([reporter], shown, plan)
            assert engine.counters().refused >= 2
            assert not engine.fleet.members.get("forger")

    asyncio.run(scenario())


LANES = """
description: {name: lanes, description: d}
global.parameters: {G: {values: [1, 2], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", task_queue: q$(G)}}
"""


def test_a_log_that_cannot_be_folded_holds_up_no_other_study_and_ends_no_engine(broker: Broker, plan: Plan) -> None:
    """Neither the engine that follows the log nor the next one, which reads it from its beginning; the study's user is told."""
    odd, sound = StudyRef("ns", "odd", "0odd-uid"), plan_of(LANES)
    torn = sound.steps[0].model_copy(
        update={"lane_of": (99,) * len(sound.steps[0].lane_of)}
    )  # a plan that no compiler makes
    lanes = sound.model_copy(update={"steps": (torn, *sound.steps[1:])})

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, queues=("merlin",))

        def is_told(engine: Engine) -> bool:
            (view,) = (each for each in engine.views() if each.ref == odd)
            return "please report it" in view.waiting_for

        async with reporter.working():
            async with running(broker, keyring, plan) as (engine, _):
                engine.add(odd, lanes)
                await until(lambda: engine.studies[odd.uid].synced)
                subject, tasks = reporter.space.reports(odd.uid, 1000), TaskSet(first=0, width=1)
                chunk = wire.Chunk(study=odd.uid, plan=lanes.hash, epoch=1, fence=1000, step=0, tasks=tasks, attempt=1)
                await reporter.append(odd.uid, subject, wire.Start(agent="reporter", chunk=chunk), expected=0)
                again = wire.Result(outcome=Outcome.RETRY, code=1, tasks=tasks)
                report = wire.Report(
                    agent="reporter", fence=1000, serial=1, step=0, attempt=1, results=(again,), final=True
                )
                await reporter.append(odd.uid, subject, report, expected=None)
                await until(lambda: is_told(engine))
            async with running(broker, keyring, plan) as (engine, shown):
                engine.add(odd, lanes)
                await until(lambda: shown.finished and is_told(engine))
                _check([reporter], shown, plan)
                assert not engine.studies[odd.uid].synced
                assert await engine.forget(odd, timeout=120)

    asyncio.run(scenario())


def test_a_forgotten_study_leaves_nothing_but_the_word_to_stop(broker: Broker, plan: Plan) -> None:
    """Chunks, cursor, log and plan are gone; the cancellation stays for a day, for agents that are out of reach."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES)
        async with running(broker, keyring, plan) as (engine, shown):
            async with reporter.working():
                await until(lambda: shown.done > 100)
            assert await engine.forget(REF, timeout=120)
            client = Client()
            await client.connect(broker.url, **broker.credentials)
            try:
                js = client.jetstream()
                for stream in (engine.space.task_stream, engine.space.report_stream, engine.space.control_stream):
                    info = await js.stream_info(stream, subjects_filter=">")
                    left = [name for name in info.state.subjects or {} if REF.uid in name]
                    assert left == ([engine.space.control(REF.uid)] if stream == engine.space.control_stream else [])
            finally:
                await client.close()

    asyncio.run(scenario())
