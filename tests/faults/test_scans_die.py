"""A restart that looks at the workspace's own marks, whose operator and agent die while they look; the next ones go on."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.rig import a_rig
from tests.ground import Broker, eventually

TASKS = 40
SCAN = "--again " + json.dumps({"id": "1", "scan": True}, separators=(",", ":"))


def test_a_scan_whose_operator_and_agent_are_killed_is_finished_by_others(broker: Broker, tmp_path: Path) -> None:
    """Exactly the tasks without a mark run again, each once, however often the scan begins."""
    with a_rig(broker, tmp_path, tasks=TASKS) as rig:
        rig.operator()
        agent = rig.agent()
        rig.finish(seconds=240)
        agent.kill()
        rig.operators[-1].kill()
        before = rig.runs()
        assert set(before.values()) == {1}
        missing = [
            path for path in sorted(rig.root.glob("sim/**/MERLIN_FINISHED")) if path.parent.name in ("07", "31", "7")
        ]
        for mark in missing:
            mark.unlink()
        assert missing
        scanning = rig.operator(flags=SCAN)
        dying = rig.agent(failpoints="agent.claimed=kill@1")
        eventually(lambda: not dying.alive, timeout=240, message="the agent dies with its first chunk of the scan")
        scanning.kill()
        assert rig.runs() == before, "nothing has run again yet"
        rig.operator(flags=SCAN)
        rig.agent()
        eventually(lambda: rig.view().get("finished"), timeout=240, message="the scan is over")
        again = {str(mark.parent.relative_to(rig.root / "sim")) for mark in missing}
        assert rig.runs() == {task: 1 + (task in again) for task in before}
        assert rig.succeeded()
        assert rig.view()["doubled"] == 0
