"""The operator dies at each point of a round, or there are two of it (rows 17 and 18 of the fault table)."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.rig import a_rig, linger
from tests.ground import Broker, eventually

POINTS = {
    "operator.publish": "with chunks decided and not published",
    "operator.published": "with chunks in the broker that it has not noted",
    "operator.sync": "while it reads what stands",
    "operator.verdict": "before a verdict of loss is written",
    "operator.judged": "with a verdict in the log that it never read",
}


def test_an_operator_that_dies_at_each_point_of_a_round_issues_nothing_twice(broker: Broker, tmp_path: Path) -> None:
    """One after the other, while agents work and one of them is lost."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=150, cmd=linger(tmp_path)) as rig:
        for point in ("operator.publish", "operator.published"):
            doomed = rig.operator(failpoints=f"{point}=kill@3")
            if len(rig.operators) == 1:
                victim = rig.agent()
                rig.agent()
            eventually(lambda doomed=doomed: not doomed.alive, message=f"{point} is reached")  # type: ignore[misc]
        rig.operator()
        rig.until_done(rig.done())
        rig.operators[-1].kill()
        victim.kill()
        for point in ("operator.sync", "operator.verdict", "operator.judged"):
            doomed = rig.operator(failpoints=f"{point}=kill")
            eventually(lambda doomed=doomed: not doomed.alive, message=f"{point} is reached")  # type: ignore[misc]
            assert doomed.returncode == -signal.SIGKILL
        rig.hurry.touch()
        rig.operator()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses > 0


def test_two_operators_at_once_issue_and_judge_everything_once(broker: Broker, tmp_path: Path) -> None:
    """Both publish and judge as they see it; compare-and-set lets one of them through each time."""
    with a_rig(broker, tmp_path, log_stands=True, tasks=150, cmd=linger(tmp_path)) as rig:
        rig.operator()
        rig.operator()
        victim = rig.agent()
        rig.until_done(3)
        rig.agent()
        victim.kill()
        rig.hurry.touch()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses > 0
