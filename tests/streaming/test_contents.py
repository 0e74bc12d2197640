"""What agents need beside chunks is in the broker before the first chunk, and a file that is missing holds its study up."""

import asyncio
import dataclasses
import hashlib

from merlin_operator import acceptance
from merlin_operator.board import Submission
from merlin_operator.contents import ContentError, Contents
from merlin_operator.core import Core, EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.view import StudyRef
from merlin_study import blob, table, wire
from merlin_study.seal import Keyring
from merlin_study.table import Column
from tests.ground import Broker
from tests.streaming.engines import live
from tests.streaming.test_engine import Shown, until

REF = StudyRef("ns", "t", "0001-uid")
ROWS = 100_000


class Maps:
    """ConfigMaps that a test fills while the engine looks for them."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], bytes] = {}

    async def content(self, name: str, key: str) -> bytes:
        """Return one."""
        try:
            return self.held[name, key]
        except KeyError:
            raise ContentError(f"ConfigMap {name}: expected it, found none; create it") from None


def submission(**keys: object) -> Submission:
    step = {"name": "a", "description": "d", "run": {"cmd": "cat $(SPECROOT)/f $(N)"}}
    spec = {"description": {"name": "t", "description": "d"}, "study": [step], **keys}
    return Submission(REF, 1, "1", 1e9, spec, {})


def test_a_table_from_two_places_or_beside_another_is_refused_and_not_waited_for() -> None:
    """What the operator asks before it judges: the fault is told, though none of the ConfigMaps is there."""
    sources = {"configMap": {"name": "t", "key": "part"}, "configMaps": ["t"], "sha256": "0" * 64}
    held = {"N": {"values": ["1"], "label": "N.%%"}}
    contents = Contents(Core(EngineConfig("ns", "nats://unused", {}, Keyring.generate())), Maps())
    for keys, told in (
        ({"parametersFrom": sources}, "one of configMap, configMaps and data, found 2"),
        ({"parametersFrom": {"sha256": "0" * 64}}, "one of configMap, configMaps and data, found 0"),
        ({"parametersFrom": {"configMaps": ["t"], "sha256": "0" * 64}, "global.parameters": held}, "keep one"),
    ):
        given = submission(vars={"SPECROOT": "/s"}, **keys)
        [fault] = acceptance.judge(given, asyncio.run(contents.table(given))).faults
        assert fault.path == "spec.parametersFrom"
        assert told in fault.message


def test_large_content_is_brought_in_parts_and_what_is_missing_is_waited_for(broker: Broker) -> None:
    """The table decides the tasks and a file is read from two ConfigMaps; both come late, one wrong at first."""
    maps, shown = Maps(), Shown()
    content = bytes(blob.PART + 7)
    digest = hashlib.sha256(content).hexdigest()
    encoded = table.encode({"N": Column(tuple(map(str, range(ROWS))), "N.%%")})
    given = submission(
        files=[{"name": "f", "configMaps": ["one", "two"], "sha256": digest}],
        parametersFrom={"configMaps": ["t"], "sha256": hashlib.sha256(encoded).hexdigest()},
    )

    async def scenario() -> None:
        keyring = Keyring.generate()
        timing = wire.Timing(heartbeat=0.2, lost_after=2.0)
        engine = Engine(EngineConfig("ns", broker.url, dict(broker.credentials), keyring, timing), shown, reader=maps)
        async with live(engine):
            await engine.observe(given)
            await until(lambda: shown.view is not None and "ConfigMap t" in shown.view.waiting_for)
            maps.held |= {("t", "part"): encoded, ("one", "part"): content[:100], ("two", "part"): b"wrong"}
            await until(lambda: shown.view is not None and "restore it" in shown.view.waiting_for)
            assert shown.view is not None
            assert shown.view.steps[0].total == ROWS
            assert not engine.studies[REF.uid].synced
            maps.held["two", "part"] = content[100:]
            await until(lambda: engine.studies[REF.uid].synced)
            await engine.observe(dataclasses.replace(given, generation=2, spec={**given.spec, "suspend": True}))
            assert engine.studies[REF.uid].switches.suspend, "its table need not be read again for that"
            space, found = engine.space, b""
            subject = space.file(REF.uid, digest)
            stored = await engine.broker.last(space.control_stream, subject)
            assert stored is not None
            count, found = blob.read_head(engine.core.open_own(REF.uid, stored))
            for number in range(1, count + 1):
                part = await engine.broker.last(space.control_stream, blob.part(subject, number))
                assert part is not None
                found += engine.core.open_own(REF.uid, part)
            assert (count, found) == (1, content)
            assert await engine.forget(REF, timeout=120)
            assert not await engine.broker.subjects(space.control_stream, space.files_of(REF.uid))
            assert not await engine.broker.subjects(space.control_stream, space.plans_of(REF.uid))

    asyncio.run(scenario())
