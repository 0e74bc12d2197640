"""Messages of another version beside ours (row 23 of the fault table): refused, counted, and nobody's loss."""

from __future__ import annotations

import json
from pathlib import Path

from merlin_study import wire
from merlin_study.seal import Keyring
from merlin_study.taskset import TaskSet
from tests.faults.admin import SPACE, act
from tests.faults.rig import Rig, a_rig, linger
from tests.ground import Broker, eventually


def test_words_of_a_later_version_are_refused_by_name_and_the_study_ends(broker: Broker, tmp_path: Path) -> None:
    """A chunk that agents cannot read, a claim and a report that the operator cannot read: each is properly sealed."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=120, cmd=linger(tmp_path)) as rig:
        rig.operator()
        rig.agent()
        rig.until_done(3)
        act(broker, lambda js: _speak(js.publish, rig))
        said = rig.operators[-1].log
        eventually(
            lambda: said.read_text().count("log entry refused") >= 2, message="the operator refuses what it can't read"
        )
        rig.hurry.touch()
        rig.finish()
        assert rig.succeeded()


async def _speak(publish, rig: Rig) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    """Publish what an operator and an agent of a later version might."""
    keys = Keyring.load(rig.directory / "keys")
    chunk = wire.Chunk(
        study=rig.study, plan=rig.plan.hash, epoch=1, fence=900, step=1, tasks=TaskSet(first=0, width=5), attempt=1
    )
    start = wire.Start(agent="later", chunk=chunk)
    report = wire.Report(agent="later", fence=900, serial=1, step=1, attempt=1, final=True)
    for message in (start, report):
        subject = SPACE.reports(rig.study, 900)
        words = json.dumps({**json.loads(message.encode()), "since_version_9": True}).encode()
        await publish(subject, keys.seal(words, scope=rig.study, context=subject))
    envelope = bytearray(keys.seal(chunk.encode(), scope=rig.study, context=subject))
    envelope[0] += 1
    await publish(subject, bytes(envelope))
