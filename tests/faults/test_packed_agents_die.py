"""Agents die while they pack: what was not told runs again, what was is in exactly one archive, and nothing half is left."""

from __future__ import annotations

import signal
from pathlib import Path

from merlin_study import archive
from tests.faults.rig import Rig, a_rig
from tests.folding.studies import plan_of
from tests.ground import Broker, Process, eventually

TASKS = 40
TEXT = f"""
description: {{name: study, description: d}}
outputs: packed
study:
- name: sim
  description: leaves a file
  run: {{retry_delay: 0, cmd: "echo run >> runs; sleep 0.01; : $(S)"}}
merlin:
  samples:
    generate: {{cmd: "seq {TASKS} > $(MERLIN_INFO)/s.csv"}}
    file: $(MERLIN_INFO)/s.csv
    column_labels: [S]
"""
WITH_A_HALF = "agent.packed@1"
"""With a whole archive that has no name yet."""
POINTS = {
    "agent.packing@2": "before a byte of an archive is written",
    "agent.record@3": "with an archive of which nobody has heard",
    "agent.recorded@3": "with an archive that the broker never heard of",
}


def test_agents_that_die_while_they_pack_cost_no_task_and_no_success(broker: Broker, tmp_path: Path) -> None:
    """One agent for each point; what they leave is done, and tidied up, by the last one."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=TASKS, plan=plan_of(TEXT)) as rig:
        rig.operator()
        logs = rig.root / "merlin_info/tasks/sim"
        _dies(rig, WITH_A_HALF)
        assert len(list(logs.rglob(".*.zip.*"))) == 1
        doomed = [rig.agent(failpoints=_kill(point), slots=1) for point in POINTS]
        for point, agent in zip(POINTS, doomed, strict=True):
            _is_dead(agent, point)
        rig.agent()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses > len(POINTS)
        found = [each.ran.task for each in archive.executions(str(logs), range(TASKS))]
        assert sorted(found) == list(range(TASKS)), "each success is in one archive"
        assert list(logs.rglob(".*")) == []


def _kill(point: str) -> str:
    name, _, at = point.partition("@")
    return f"{name}=kill@{at}"


def _dies(rig: Rig, point: str) -> None:
    _is_dead(rig.agent(failpoints=_kill(point), slots=1), point)


def _is_dead(agent: Process, point: str) -> None:
    eventually(lambda: not agent.alive, message=f"{point} is reached")
    assert agent.returncode == -signal.SIGKILL
