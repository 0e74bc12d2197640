"""The broker dies, stands still, runs full or is meddled with (rows 9–12, 14 and 16 of the fault table)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from merlin_operator.view import FULL
from tests.faults import admin
from tests.faults.checker import read
from tests.faults.rig import PATIENT, Rig, a_rig, linger
from tests.ground import Broker, eventually
from tests.ground.disks import Disk, a_disk


def test_a_broker_that_dies_and_one_that_stands_still_cost_a_pause(broker: Broker, tmp_path: Path) -> None:
    """Killed, then frozen for longer than a request waits: no agent counts as lost for that."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=200, cmd="sleep 0.02", timing=PATIENT) as rig:
        rig.operator()
        rig.agent()
        rig.agent()
        rig.until_done(40)
        broker.kill()
        broker.restart()
        rig.until_done(100)
        broker.pause()
        time.sleep(6)  # more than the five seconds that a request waits for its answer
        broker.resume()
        finding = rig.finish()
        assert rig.succeeded()
        assert (finding.losses, finding.repeated) == (0, 0)


def test_a_broker_without_room_holds_the_study_up_and_loses_nothing(tmp_path: Path) -> None:
    """Nothing more can be stored, neither chunks nor reports; what runs is kept in the workspace until there is room."""
    with (
        Broker(tmp_path / "broker", user="merlin", store_limit="4Mi") as broker,
        a_rig(broker, tmp_path, log_stands=True, tasks=120, cmd=linger(tmp_path), timing=PATIENT) as rig,
    ):
        rig.operator()
        rig.agent()
        rig.until_done(3)
        admin.act(broker, admin.fill)
        ended = _ended(rig)
        rig.hurry.touch()
        eventually(lambda: _ended(rig) > ended, message="what agents hold runs on")
        eventually(lambda: rig.done() < _ended(rig), message="its results wait")
        eventually(lambda: rig.view()["broker_problem"] == FULL, message="the study says why it stands")
        assert not rig.view()["finished"]
        admin.act(broker, admin.make_room)
        eventually(lambda: not rig.view()["broker_problem"], message="it says so no longer")
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.repeated == 0


def _ended(rig: Rig) -> int:
    """How many executions have ended."""
    return sum(event["event"] == "ended" for event in read(rig.history))


def test_consumers_that_somebody_deletes_are_made_again(broker: Broker, tmp_path: Path) -> None:
    with a_rig(broker, tmp_path, log_stands=True, tasks=120, cmd=linger(tmp_path)) as rig:
        rig.operator()
        rig.agent()
        rig.until_done(3)
        assert admin.act(broker, admin.delete_consumers) > 0
        rig.hurry.touch()
        rig.finish()
        assert rig.succeeded()


def test_all_messages_twice_and_in_another_order_have_one_effect(broker: Broker, tmp_path: Path) -> None:
    """Every chunk, claim and report is published a second time, shuffled, while the study runs and once more before its end."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=120, cmd="sleep 0.03", timing=PATIENT) as rig:
        rig.operator()
        rig.agent()
        for least in (20, 80):
            rig.until_done(least)
            assert admin.act(broker, lambda js, seed=least: admin.play_back(js, seed=seed)) > 0  # type: ignore[misc]
        finding = rig.finish()
        assert rig.succeeded()
        assert (finding.repeated, finding.overlaps) == (0, 0)
        rig.operators[-1].kill()
        rig.operator()
        assert rig.finish().faults == [], "who reads that log from its beginning comes to the same"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of its own for the broker."""
    with a_disk(tmp_path / "disk", tmp_path / "broker") as made:
        yield made


def test_a_loss_of_power_loses_nothing_that_was_acknowledged(disk: Disk, tmp_path: Path) -> None:
    """The broker comes back with what had reached its disk when the power went, and not what the kernel still held."""
    broker = Broker(disk.mounted)
    try:
        broker.start()
        with broker.config.open() as config:
            os.fsync(config.fileno())
        with a_rig(broker, tmp_path, log_stands=True, tasks=150, cmd="sleep 0.02", timing=PATIENT) as rig:
            rig.operator()
            rig.agent()
            rig.until_done(40)
            broker.kill()
            disk.lose_power()
            broker.restart()
            finding = rig.finish()
            assert rig.succeeded()
            assert (finding.losses, finding.repeated) == (0, 0)
    finally:
        broker.stop()
