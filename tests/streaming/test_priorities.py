"""A priority that changes while studies run counts for the next chunk that any agent takes; on a real broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.reporter import SITE, Reporter
from tests.streaming.test_engine import Shown, until

TASKS = 24
TEXT = f"""
description: {{name: t, description: d}}
global.parameters: {{G: {{values: {list(range(TASKS))}, label: G.%%}}}}
study:
- {{name: a, description: d, run: {{cmd: "echo $(G)"}}}}
"""


class Ordered(Reporter):
    """Notes of which study it took chunks, and has patience: a busy machine must not make it ask for others too early."""

    patience = 5.0

    def __init__(self, *arguments: Any, **says: Any) -> None:
        super().__init__(*arguments, **says)
        self.order: list[str] = []

    async def _claim(self, chunk: wire.Chunk, subject: str) -> bool:
        won = await super()._claim(chunk, subject)
        self.order += [chunk.study] * len(chunk.tasks) if won else []
        return won


@pytest.mark.parametrize("other", [0, 1])
def test_a_priority_that_is_raised_counts_for_the_next_chunk(broker: Broker, other: int) -> None:
    """Also where the other study is above 0 and had handed out a window of chunks before."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(TEXT)
        timing = wire.Timing(heartbeat=0.2, lost_after=60.0)
        engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), Shown())
        for uid in ("first-uid", "second-uid"):
            engine.add(StudyRef("ns", uid, uid), plan)
        engine.switch("first-uid", {"priority": other})
        first, second = (engine.studies[uid] for uid in ("first-uid", "second-uid"))
        first.spec_site = second.spec_site = SITE  # else each has a route of its own until an agent has taken it
        one, two = first.ledger, second.ledger
        assert one is not None
        assert two is not None
        idle = Reporter(broker, keyring, plan, samples=0, name="idle", works=False)
        worker = Ordered(broker, keyring, plan, samples=0, name="worker", seconds=1.0)
        async with live(engine):
            async with idle.working():
                await until(lambda: len(one.fences) >= 4 and engine.counters().issued_chunks >= 8)
                engine.switch("second-uid", {"priority": 5})
                await until(lambda: len(two.fences) >= 8 and (other == 0 or not one.fences))
                async with worker.working():
                    await until(lambda: len(worker.order) >= TASKS)
            # Unlike an agent this one asks the bulk consumer too, once it has emptied the urgent one.
            assert set(worker.order[: TASKS if other else 8]) == {"second-uid"}
            assert one.doubled == two.doubled == 0

    asyncio.run(scenario())
