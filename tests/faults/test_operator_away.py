"""While the operator is away agents work through what it had published, and its status is right as soon as it is back."""

from __future__ import annotations

from pathlib import Path

from tests.faults.checker import read
from tests.faults.rig import PATIENT, Rig, a_rig, linger
from tests.ground import Broker, eventually


def test_agents_work_through_the_window_while_the_operator_is_away(broker: Broker, tmp_path: Path) -> None:
    """All tasks fit into the window, so all of them end without it; its successor has only to read that."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=150, cmd=linger(tmp_path), timing=PATIENT, window=600) as rig:
        rig.operator()
        rig.agent()
        eventually(lambda: rig.view().get("unrolled"), message="every task is published")
        assert rig.done() < rig.tasks
        rig.operators[-1].kill()
        rig.hurry.touch()
        eventually(lambda: _ended(rig) >= rig.tasks, message="all tasks end")
        rig.operator()
        eventually(lambda: rig.view().get("finished"), message="its first words are right")
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.repeated == 0


def _ended(rig: Rig) -> int:
    return sum(event["event"] == "ended" for event in read(rig.history))
