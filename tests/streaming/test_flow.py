"""What one engine hands out to whom, on a real broker: no barrier where there is none, fair shares, nobody held up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.reporter import Reporter
from tests.streaming.test_engine import Shown, until

TASKS = 40
CHAIN = f"""
description: {{name: t, description: d}}
global.parameters: {{G: {{values: {list(range(TASKS))}, label: G.%%}}}}
study:
- {{name: a, description: d, run: {{cmd: "echo $(G)"}}}}
- {{name: b, description: d, run: {{cmd: "ls $(a.workspace)", depends: [a]}}}}
"""
STRANDED = f"""
description: {{name: t, description: d}}
global.parameters: {{G: {{values: {list(range(TASKS))}, label: G.%%}}}}
study:
- {{name: a, description: d, run: {{cmd: "echo $(G)", task_queue: nobody}}}}
- {{name: b, description: d, run: {{cmd: "echo $(G)"}}}}
"""
WINDOW = 0.001
"""Seconds of work ahead: these agents are done at once with what they say takes long, and two chunks a slot are out anyway."""
A, B = 0, 1
"""Steps by number."""


def wide(tasks: int) -> str:
    """A study of one step with so many tasks."""
    return f"""
description: {{name: t, description: d}}
global.parameters: {{G: {{values: {list(range(tasks))}, label: G.%%}}}}
study:
- {{name: a, description: d, run: {{cmd: "echo $(G)"}}}}
"""


class Worker(Reporter):
    """Notes what it claims; puts off what the test says, and lets tasks of each study take as long as that says."""

    def __init__(self, *arguments: Any, puts_off: Callable[[wire.Chunk], bool] = lambda _: False, **says: Any) -> None:
        super().__init__(*arguments, **says)
        self.order: list[tuple[str, int, int]] = []
        self.lasting: dict[str, float] = {}
        self.put_off: list[wire.Chunk] = []
        self._puts_off = puts_off

    async def _take(self, chunk: wire.Chunk) -> None:
        if self._puts_off(chunk):
            self.put_off.append(chunk)
            return
        self._seconds = self.lasting.get(chunk.study, self._seconds)
        await super()._take(chunk)

    async def _claim(self, chunk: wire.Chunk, subject: str) -> bool:
        won = await super()._claim(chunk, subject)
        self.order += [(chunk.study, chunk.step, index) for index in chunk.tasks.indices()] if won else []
        return won

    async def make_up(self) -> None:
        """Run what was put off."""
        self._puts_off = lambda _: False
        for chunk in self.put_off:
            await self._take(chunk)


@contextlib.asynccontextmanager
async def an_engine(broker: Broker, keyring: Keyring, plans: dict[str, Plan]) -> AsyncIterator[Engine]:
    """An engine with a study for each plan, by uid."""
    timing = wire.Timing(heartbeat=0.2, lost_after=60.0)
    config = EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing)
    engine = Engine(replace(config, window_seconds=WINDOW), Shown())
    for uid, plan in plans.items():
        engine.add(StudyRef("ns", uid, uid), plan)
    async with live(engine):
        yield engine


def finished(engine: Engine, uid: str) -> bool:
    ledger = engine.studies[uid].ledger
    return ledger is not None and ledger.finished


def test_tasks_of_a_step_follow_those_that_they_depend_on_and_wait_for_no_others(broker: Broker) -> None:
    """While one task of the first step has not begun, every task of the second runs but the one that depends on it."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(CHAIN)

        def is_last(chunk: wire.Chunk) -> bool:
            return chunk.step == A and TASKS - 1 in chunk.tasks.indices()

        worker = Worker(broker, keyring, plan, samples=0, puts_off=is_last)

        def ran(step: int) -> set[int]:
            return {index for _, at, index in worker.order if at == step}

        async with an_engine(broker, keyring, {"uid": plan}) as engine, worker.working():
            await until(lambda: bool(worker.put_off))
            others = set(range(TASKS)) - set(worker.put_off[0].tasks.indices())
            await until(lambda: ran(B) == others)
            assert ran(A) == others
            await worker.make_up()
            await until(lambda: finished(engine, "uid"))
            assert sorted(worker.order) == sorted(("uid", step, index) for step in (A, B) for index in range(TASKS))

    asyncio.run(scenario())


def test_studies_on_one_queue_get_the_same_share_of_its_seconds(broker: Broker) -> None:
    """Not of its tasks: where those of one take eight times as long, it gets an eighth as many."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(wide(1200))
        worker = Worker(broker, keyring, plan, samples=0)
        worker.lasting = {"long": 4.0, "short": 0.5}
        async with an_engine(broker, keyring, {"long": plan, "short": plan}), worker.working():
            await until(lambda: sum(worker.lasting[study] for study, _, _ in worker.order) > 400)
            found = Counter(study for study, _, _ in worker.order)
        assert found["short"] < 1200, "both had more to do"
        shares = {study: count * worker.lasting[study] for study, count in found.items()}
        assert 0.5 < shares["long"] / shares["short"] < 2, shares

    asyncio.run(scenario())


def test_a_queue_that_no_agent_serves_holds_up_nobody(broker: Broker) -> None:
    """Neither the other steps of its study, which has the higher priority, nor another study; and nothing of it is handed out."""

    async def scenario() -> None:
        keyring, mixed, plain = Keyring.generate(), plan_of(STRANDED), plan_of(wide(TASKS))
        worker = Worker(broker, keyring, plain, samples=0, queues=("merlin",))
        async with an_engine(broker, keyring, {"mixed": mixed, "plain": plain}) as engine:
            engine.switch("mixed", {"priority": 5})
            async with worker.working():
                served = {("mixed", B, index) for index in range(TASKS)} | {
                    ("plain", A, index) for index in range(TASKS)
                }
                await until(lambda: set(worker.order) == served)
                await until(lambda: finished(engine, "plain"))
            assert len(worker.order) == len(served)
            assert not finished(engine, "mixed")
            assert await engine.broker.chunks("mixed") == []

    asyncio.run(scenario())
