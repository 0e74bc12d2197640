"""Studies for which nothing is to be done cost nothing, and are looked at again as soon as something is."""

from __future__ import annotations

import asyncio

from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.seal import Keyring
from tests.folding.studies import plan_of
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.reporter import Reporter
from tests.streaming.test_engine import Shown, until

STUDY = """
description: {name: t, description: d}
global.parameters: {G: {values: [1, 2, 3], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", task_queue: QUEUE}}
"""


def test_studies_that_are_over_or_that_no_agent_serves_rest_until_there_is_news_for_them(broker: Broker) -> None:
    """One works, one waits for agents: the first rests once it is over, the second until an agent comes that serves it."""

    async def scenario() -> None:
        keyring = Keyring.generate()
        served, unserved = (plan_of(STUDY.replace("QUEUE", queue)) for queue in ("here", "nobody"))
        timing = wire.Timing(heartbeat=0.2, lost_after=60.0)
        engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), Shown())
        engine.add(StudyRef("ns", "works", "works"), served)
        engine.add(StudyRef("ns", "waits", "waits"), unserved)
        works, waits = engine.studies["works"], engine.studies["waits"]
        worker = Reporter(broker, keyring, served, samples=0, queues=("here",))
        late = Reporter(broker, keyring, unserved, samples=0, name="late", queues=("nobody",))
        async with live(engine):
            await until(lambda: engine.core.rests(waits))
            assert not waits.over
            async with worker.working():
                await until(lambda: works.over)
                await until(lambda: engine.core.rests(works) and engine.core.rests(waits))
                await until(lambda: not list(engine.core.awake()))
                engine.switch("works", {"restart": {"id": "again", "exitCodes": [0]}})
                await until(lambda: set(worker.runs.values()) == {2})
                await until(lambda: works.over and engine.core.rests(works))
                async with late.working():
                    await until(lambda: waits.over and engine.core.rests(waits))
            assert sum((worker.runs + late.runs).values()) == 9, "either may take what is offered to the site"
            assert works.ledger is not None
            assert works.ledger.doubled == 0

    asyncio.run(scenario())
