"""Snapshots on a real nats-server: whoever dies while one is kept, a new engine knows what the log says, and reads its end only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.keeper import Head
from merlin_operator.stream import Outage
from merlin_operator.view import StudyRef
from merlin_study import snapshot, subjects, wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker, eventually_async
from tests.streaming.engines import live
from tests.streaming.reporter import Reporter
from tests.streaming.test_births import ASKED, Counting, ask, order
from tests.streaming.test_engine import Shown, until

REF = StudyRef("ns", "t", "0000-uid")
SPACE = subjects.Space("ns")
TEXT = """
description: {name: t, description: d}
global.parameters: {G: {values: [VALUES], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G) $(S)", walltime: 60}}
- {name: b, description: d, run: {cmd: "ls $(a.workspace) $(S)", depends: [a]}}
merlin: {samples: {file: x.csv, column_labels: [S]}}
""".replace("VALUES", ", ".join(map(str, range(10))))
SAMPLES = 100
TASKS = 2 * 10 * SAMPLES + 1


@contextlib.asynccontextmanager
async def running(
    broker: Broker,
    keyring: Keyring,
    plan: Plan,
    *,
    every: int,
    puts: int | None = None,
    nursery: Counting | None = None,
) -> AsyncIterator[tuple[Engine, Shown]]:
    """Run an engine that keeps its ledger after so many entries; after so many ``puts`` of a snapshot it can write none."""
    shown = Shown()
    timing = wire.Timing(heartbeat=0.2, lost_after=60.0)
    config = EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing, snapshot_entries=every)
    engine = Engine(config, shown, nursery)
    put, left = engine.broker.put, [puts]

    async def limited(subject: str, data: bytes, **how: Any) -> None:
        if left[0] is not None and (".snapshot." in subject or ".kept." in subject):
            if left[0] == 0:
                raise Outage("dead")
            left[0] -= 1
        await put(subject, data, **how)

    engine.broker.put = limited  # type: ignore[method-assign]
    engine.add(REF, plan)
    async with live(engine):
        yield engine, shown


def state_of(engine: Engine) -> dict[str, Any]:
    """Return all that an engine knows of the study; a hint where to search says nothing of it."""
    ledger = engine.studies[REF.uid].ledger
    assert ledger is not None
    state: dict[str, Any] = snapshot.freeze(ledger)[0].model_dump()
    for step in state["steps"]:
        del step["hint"]
    return state


async def bounded(engine: Engine) -> bool:
    """Return whether the broker has a snapshot that less than ten entries came after."""
    stored = await engine.broker.last(SPACE.control_stream, SPACE.snapshot(REF.uid))
    head = None if stored is None else Head.model_validate_json(engine.core.open_own(REF.uid, stored))
    return head is not None and engine.studies[REF.uid].folded - head.sequence < 10


async def synced(engine: Engine) -> None:
    await until(lambda: engine.studies[REF.uid].synced)


def test_a_new_engine_reads_the_snapshot_and_the_end_of_the_log(broker: Broker) -> None:
    """It knows what one knows that reads everything, and goes on to the end; nothing runs twice."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(TEXT)
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=1.0)
        async with reporter.working():
            for least in (100, 800, 1400):
                async with running(broker, keyring, plan, every=10) as (engine, shown):
                    await until(lambda least=least, shown=shown: shown.done > least)  # type: ignore[misc]
                    await until(lambda engine=engine: engine.counters().snapshots_kept > 0)  # type: ignore[misc]
            async with running(broker, keyring, plan, every=10) as (engine, shown):
                await until(lambda: shown.finished)
                assert engine.counters().snapshots_found == 1
                await eventually_async(lambda: bounded(engine), message="what came after the newest snapshot is little")
        async with running(broker, keyring, plan, every=10**9) as (late, _):
            await synced(late)
            assert late.counters().snapshots_found == 1
            assert late.counters().reports < 10, "replay is bounded"
            await late.broker.purge(SPACE.control_stream, SPACE.snapshot(REF.uid))
            async with running(broker, keyring, plan, every=10**9) as (whole, _):
                await synced(whole)
                assert whole.counters().snapshots_found == 0
                assert whole.counters().reports > 50
                assert state_of(late) == state_of(whole)
        assert set(reporter.runs.values()) == {1}
        assert len(reporter.runs) == TASKS

    asyncio.run(scenario())


def test_whoever_dies_while_it_keeps_a_snapshot_leaves_the_older_one(broker: Broker) -> None:
    """Before each block, the state, and the head: a new engine knows what the log says, whatever was written."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(TEXT)
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=1.0)
        async with reporter.working():
            async with running(broker, keyring, plan, every=5) as (engine, _):
                await until(lambda: engine.counters().snapshots_kept > 0)
            for puts in range(12):
                async with running(broker, keyring, plan, every=5, puts=puts) as (engine, shown):
                    least = (puts + 2) * 100
                    await until(lambda least=least, shown=shown: shown.done >= least)  # type: ignore[misc]
            async with running(broker, keyring, plan, every=5) as (engine, shown):
                await until(lambda: shown.finished)
                assert engine.counters().snapshots_found == 1
                await until(lambda: engine.studies[REF.uid].entries < 5 and bool(engine.studies[REF.uid].kept))
                names = await engine.broker.subjects(SPACE.control_stream, SPACE.kept_of(REF.uid))
                assert len(names) <= 2 * len(engine.studies[REF.uid].kept) + 2, "what no head names goes"
                known = state_of(engine)
            # Once nobody keeps anything more: a report that was told twice may be the fifth entry since.
            await reporter.purge(SPACE.control_stream, SPACE.snapshot(REF.uid))
        async with running(broker, keyring, plan, every=10**9) as (whole, _):
            await synced(whole)
            assert whole.counters().snapshots_found == 0
            assert state_of(whole) == known
        assert set(reporter.runs.values()) == {1}

    asyncio.run(scenario())


def test_a_snapshot_of_another_log_is_not_believed(broker: Broker) -> None:
    """A log that was wiped is another one, though the snapshot of the old one still lies beside it."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(TEXT)
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=1.0)
        async with reporter.working(), running(broker, keyring, plan, every=5) as (engine, shown):
            await until(lambda: shown.finished and engine.counters().snapshots_kept > 0)
            js = engine.broker.jetstream()
            await js.delete_stream(SPACE.report_stream)
        async with running(broker, keyring, plan, every=10**9) as (engine, shown):
            await synced(engine)
            assert engine.counters().snapshots_found == 0
            assert state_of(engine)["tried"] == [0, 0, 0]

    asyncio.run(scenario())


@pytest.mark.parametrize("remembers", [True, False])
def test_what_steps_asked_for_is_kept_beside_the_ledger(broker: Broker, *, remembers: bool) -> None:
    """With what became of it; but not by an engine whose studies go with it, since a new one has to make them again."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(TEXT)
        nursery = Counting(remembers=remembers)
        reporter = Reporter(broker, keyring, plan, samples=SAMPLES, seconds=1.0)
        async with reporter.working(), running(broker, keyring, plan, every=5, nursery=nursery) as (engine, shown):
            await synced(engine)
            await ask(broker, keyring, ASKED)
            await order(broker, keyring, "t", word="0" * 16, deed="suspend")
            await until(lambda: bool(nursery.changed) and bool(nursery.made))
            before = engine.counters().snapshots_kept
            await until(lambda: shown.finished)
            if remembers:
                await until(lambda: engine.counters().snapshots_kept > before)
                await eventually_async(lambda: bounded(engine), message="what came after the newest snapshot is little")
        async with running(broker, keyring, plan, every=10**9, nursery=nursery) as (late, _):
            await synced(late)
            study = late.studies[REF.uid]
            await until(lambda: all(child.born for child in study.children.values()))
            await until(lambda: all(each.born for each in study.orders.values()))
            assert (list(study.children), list(study.orders)) == ([ASKED.key(REF.uid)], ["0" * 16])
            assert (late.counters().reports < 20) is remembers
        assert len(nursery.made) == 1
        assert len(nursery.changed) == (1 if remembers else 2)

    asyncio.run(scenario())
