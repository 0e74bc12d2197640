"""Studies for which nothing is to be done cost nothing, and are looked at again as soon as something is."""

from __future__ import annotations

import asyncio

import pytest

from merlin_operator.core import Core, EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.roll import Roll
from merlin_operator.showing import Gallery
from merlin_operator.study import Study
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.errors import Fault
from merlin_study.outcome import STOP_WORKERS, Outcome
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


def beat(name: str, queue: str) -> wire.Heartbeat:
    return wire.Heartbeat(agent=name, site="s", host=name, pid=1, version="0", slots=1, queues=(queue,))


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
            await until(lambda: engine.core.studies.rests(waits))
            assert not waits.over
            async with worker.working():
                await until(lambda: works.over)
                await until(lambda: engine.core.studies.rests(works) and engine.core.studies.rests(waits))
                await until(lambda: not list(engine.core.awake()))
                engine.switch("works", {"restart": {"id": "again", "exitCodes": [0]}})
                await until(lambda: set(worker.runs.values()) == {2})
                await until(lambda: works.over and engine.core.studies.rests(works))
                async with late.working():
                    await until(lambda: waits.over and engine.core.studies.rests(waits))
            assert sum((worker.runs + late.runs).values()) == 9, "either may take what is offered to the site"
            assert works.ledger is not None
            assert works.ledger.doubled == 0

    asyncio.run(scenario())


def test_a_study_that_ends_by_stopping_its_agents_does_not_rest_before_they_are_told(broker: Broker) -> None:
    """Though it was over, and at rest, before: a task of its restart stops the agents."""

    async def scenario() -> None:
        keyring, plan = Keyring.generate(), plan_of(STUDY.replace("QUEUE", "here"))
        timing = wire.Timing(heartbeat=0.2, lost_after=60.0)
        config = EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing, stop_after=2.0)
        engine = Engine(config, Shown())
        engine.add(StudyRef("ns", "t", "uid"), plan)
        study = engine.studies["uid"]
        worker = Reporter(broker, keyring, plan, samples=0)
        async with live(engine), worker.working():
            await until(lambda: study.over and engine.core.studies.rests(study))
            worker.comes_to = (Outcome.CANCELLED, STOP_WORKERS)
            engine.switch("uid", {"restart": {"id": "again", "exitCodes": [0]}})
            await until(lambda: study.over and study.ledger is not None and study.ledger.stops.stop_asked is not None)
            await until(lambda: study.word is not None and study.word.retired)

    asyncio.run(scenario())


def test_a_study_at_rest_shows_no_rate_of_before_and_knows_one_agent_from_another() -> None:
    """What is shown of it last is what holds; and as one agent goes another one is heard again, which serves it."""
    core = Core(EngineConfig("ns", "nats://127.0.0.1:1", {}, Keyring.generate(), wire.Timing()))
    study = Study(StudyRef("ns", "t", "uid"), 1, synced=True)
    study.adopt(plan_of(STUDY.replace("QUEUE", "here")))
    core.studies["uid"], gallery = study, Gallery(core)
    core.fleet.hear(beat("y", "here"), 0.0)
    core.fleet.hear(beat("x", "other"), 50.0)
    study.samples.extend([(0.0, -1), (59.0, 0)])

    def around(now: float) -> None:
        core.look(now)
        study.note_progress(now)
        core.let_rest(now)

    core.look(60.2)
    [shown] = gallery.views(60.2)
    assert shown.rate
    around(61.0)
    assert not core.studies.rests(study), "it shows a rate still"
    [shown] = gallery.views(61.2)
    around(61.5)
    assert core.studies.rests(study)
    assert not shown.rate
    core.fleet.hear(beat("z", "another"), 62.0)
    core.look(62.0)
    assert core.studies.rests(study), "an agent that has nothing to do with it"
    core.fleet.hear(beat("z", "another").model_copy(update={"full": ("uid",)}), 63.0)
    core.look(63.0)
    assert list(core.awake()) == [study], "it finds no room in its workspace"
    gallery.views(63.1)
    around(63.2)
    assert core.studies.rests(study)
    core.fleet.hear(beat("y", "here"), 111.0)
    core.look(111.0)
    assert list(core.awake()) == [study], "the other agent is gone since"


def test_of_many_studies_those_are_shown_anew_that_have_changed() -> None:
    """A view that nothing has happened to is the same object, and what is shown of all is the same list while none has changed."""
    core = Core(EngineConfig("ns", "nats://127.0.0.1:1", {}, Keyring.generate()))
    fault = Fault("spec", "expected a study, found none")
    for name in "abc":
        core.studies[name] = Study(StudyRef("ns", name, name), 1, faults=(fault,))
    gallery = Gallery(core)
    core.look(0.0)
    shown = gallery.views(0.0)
    assert [view.ref.name for view in gallery.news()] == [view.ref.name for view in shown] == ["a", "b", "c"]
    core.let_rest(0.0)
    assert not core.studies.awake()
    assert gallery.views(1.0) is shown
    assert gallery.news() == []
    core.studies["b"].generation = 2
    assert core.studies.awake() == [core.studies["b"]]
    assert gallery.news() == []
    assert [view.generation for view in gallery.views(2.0)] == [1, 2, 1]
    assert [view.ref.name for view in gallery.news()] == ["b"]
    core.studies.pop("a")
    assert [view.ref.name for view in gallery.views(3.0)] == ["b", "c"]
    assert gallery.news() == []
    core.broker.problem = "no route to host"
    assert {view.broker_problem for view in gallery.views(4.0)} == {"no route to host"}
    assert [view.ref.name for view in gallery.news()] == ["b", "c"]


@pytest.mark.parametrize(
    "field",
    "folded generation synced cancelled torn awaited epoch switches excuse word recall lacking end_told".split(),  # noqa: SIM905
)
def test_what_decides_about_a_study_ends_its_rest(field: str) -> None:
    roll, study = Roll(), Study(StudyRef("ns", "s", "u"), 1)
    roll["u"] = study
    roll.let_rest(study)
    assert (roll.rests(study), roll.awake()) == (True, [])
    setattr(study, field, getattr(study, field))
    assert (roll.rests(study), roll.awake()) == (False, [study])
