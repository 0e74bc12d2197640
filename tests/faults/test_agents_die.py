"""An agent dies at each point of a chunk's life (rows 1–5 of the fault table): one result of each task, and no task twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rig import a_rig
from tests.ground import Broker, eventually

POINTS = {
    "agent.claim": "before its claim is written: the chunk is delivered again",
    "agent.claimed": "with its claim in the log and nothing run",
    "agent.start@3": "between two tasks",
    "agent.exited@3": "after a task's exit 0, before anything of it is recorded",
    "agent.record": "with results in memory only",
    "agent.recorded": "with results in the workspace that the broker never heard of",
    "agent.reported": "right after the broker has them",
}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.replace("agent.", "").split("@")[0])
def test_an_agent_that_dies(point: str, broker: Broker, tmp_path: Path) -> None:
    name, _, at = point.partition("@")
    with a_rig(broker, tmp_path, tasks=40, cmd="sleep 0.01") as rig:
        rig.operator()
        first = rig.agent(failpoints=f"{name}=kill{'@' + at if at else ''}")
        eventually(lambda: not first.alive, timeout=30, message="the point is reached")
        rig.agent()
        rig.finish()
        assert rig.succeeded()
