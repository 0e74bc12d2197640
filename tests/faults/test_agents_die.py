"""Agents die or are ended at any moment of a chunk's life (rows 1–7 of the fault table): every task has one result that counts."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.rig import PATIENT, a_rig, linger
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


def test_agents_that_die_at_each_point_of_a_chunks_life_cost_no_task_and_no_success(
    broker: Broker, tmp_path: Path
) -> None:
    """One agent for each point, all at once; what they leave is done by the last one."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=60, cmd="sleep 0.01") as rig:
        rig.operator()
        doomed = []
        for point in POINTS:
            name, _, at = point.partition("@")
            doomed.append(rig.agent(failpoints=f"{name}=kill{'@' + at if at else ''}"))
        for point, agent in zip(POINTS, doomed, strict=True):
            eventually(lambda agent=agent: not agent.alive, message=f"{point} is reached")  # type: ignore[misc]
            assert agent.returncode == -signal.SIGKILL
        rig.agent()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses >= len(POINTS) - 1, "all but the one that had claimed nothing"


def test_an_idle_agent_that_dies_leaves_the_queue_to_others(broker: Broker, tmp_path: Path) -> None:
    """Its open requests for chunks die with it; the one that is there drains the queue."""
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.02; done; "
    with a_rig(broker, tmp_path, log_stands=True, tasks=20, generate=wait) as rig:
        rig.operator()
        rig.agent(slots=1)
        eventually((rig.root / "merlin_info" / "agents").exists, message="the first one makes the samples")
        idle = rig.agent()
        eventually(lambda: rig.view().get("agents") == 2, message="the second one waits for chunks")
        idle.kill()
        gate.touch()
        rig.finish()
        assert rig.succeeded()


def test_an_agent_that_stood_still_and_comes_back_reports_nothing_twice(broker: Broker, tmp_path: Path) -> None:
    """A zombie: frozen until it counts as lost and another has its chunks, then woken with results and tasks of its own."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=80, cmd=linger(tmp_path)) as rig:
        rig.operator()
        first = rig.agent()
        rig.until_done(5)
        first.pause()
        rig.agent()
        eventually(lambda: rig.losses() > 0, message="the frozen one is lost")
        rig.until_done(rig.done())
        first.resume()
        rig.hurry.touch()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses > 0
        assert finding.repeated >= finding.overlaps


def test_a_task_that_an_agent_has_taken_but_not_begun_when_it_leaves_is_begun_elsewhere(
    broker: Broker, tmp_path: Path
) -> None:
    """TERM comes between the last word before a script's start and the start: there is none, and nobody counts as lost."""
    gate = tmp_path / "gate"
    with a_rig(broker, tmp_path, log_stands=True, tasks=20, timing=PATIENT) as rig:
        rig.operator()
        leaves = rig.agent(slots=1, failpoints=f"agent.start=pause:{gate}@5")
        eventually(lambda: len(list(rig.root.glob("sim/**/sim.sh"))) == 5, message="it stands before its fifth script")
        leaves.signal(signal.SIGTERM)
        eventually(lambda: rig.view().get("agents") == 0, message="it has stopped what it held, and says so")
        gate.touch()
        rig.agent()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses == 0


def test_an_allocation_that_ends_gives_back_what_it_held(broker: Broker, tmp_path: Path) -> None:
    """TERM to all its agents, KILL before they have drained; another allocation goes on."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=60, cmd=linger(tmp_path)) as rig:
        rig.operator()
        allocation = [rig.agent(), rig.agent()]
        rig.until_done(4)
        for agent in allocation:
            agent.signal(signal.SIGTERM)
            eventually(lambda agent=agent: b"draining" in agent.log.read_bytes(), message="it has heard")  # type: ignore[misc]
        for agent in allocation:
            agent.kill()
        rig.hurry.touch()
        rig.agent()
        rig.finish()
        assert rig.succeeded()
