"""Two agents of one allocation, as real processes: what one is told, the other heeds at once."""

import signal
import time
from pathlib import Path

from merlin_study import wire
from tests.agent.standin import Standin, a_plan, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2)
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}


def test_an_allocation_that_is_warned_of_its_end_takes_nothing_on_any_host(broker: Broker, tmp_path: Path) -> None:
    """The warning comes to the batch script, and so to the first host; what others took from then on would be cut off."""
    job = JOB | {"SLURM_JOB_END_TIME": str(int(time.time()) + 100_000)}
    with Standin(broker, tmp_path) as operator:
        waits = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
        operator.up(a_plan(a_step("one", waits), a_step("two", waits)), timing=QUICK)
        leader, member = (operator.agent(env=job | {"SLURMD_NODENAME": name}, slots=1) for name in ("n1", "n2"))
        leads, led = operator.id_of(leader), operator.id_of(member)
        eventually(lambda: operator.heartbeats[leads][-1].nodes == 2, message="they know each other")
        chunks = [operator.issue(range(1), step=step) for step in range(2)]
        eventually(lambda: all(operator.heartbeats[each][-1].busy for each in (leads, led)), message="both have a task")
        leader.signal(signal.SIGUSR1)
        eventually(lambda: operator.heartbeats[led][-1].leaving, message="the other one is told")
        assert (leader.alive, operator.heartbeats[leads][-1].busy) == (True, 1), "while the leader's task runs on"
        (tmp_path / "go").touch()
        for chunk in chunks:
            assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 1}
        eventually(lambda: not leader.alive and not member.alive, message="both have left")
