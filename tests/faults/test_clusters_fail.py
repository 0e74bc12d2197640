"""Three servers keep each stream (row 13 of the fault table): a leader dies, a minority is cut off, and the result is the same."""

from __future__ import annotations

from pathlib import Path

from tests.faults.admin import SPACE
from tests.faults.rig import TIMING, a_rig
from tests.ground import eventually
from tests.ground.cluster import Cluster

PATIENT = TIMING.model_copy(update={"lost_after": 60.0})


def test_a_leader_that_dies_and_a_minority_that_is_cut_off_change_nothing(tmp_path: Path) -> None:
    """Killed is the server that leads the log, then the one that leads the chunks; frozen to the end is one that leads both.

    The streams are one server's at first: an operator that is told so raises them while the study runs.
    """
    with (
        Cluster(tmp_path / "cluster") as cluster,
        a_rig(cluster, tmp_path, tasks=300, cmd="sleep 0.05", timing=PATIENT) as rig,
    ):
        majority = ",".join(cluster.servers[name].url for name in ("n1", "n2"))
        rig.operator(server=majority)
        for _ in range(2):
            rig.agent(server=majority)
        rig.until_done(5, seconds=240)
        rig.operators[-1].kill()
        rig.operator(flags="--replicas 3", server=majority)
        for least, stream in ((20, SPACE.report_stream), (60, SPACE.task_stream)):
            rig.until_done(least, seconds=240)
            for each in (SPACE.report_stream, SPACE.task_stream):
                cluster.until_whole(each)
            old = cluster.leader(stream)
            old.kill()
            eventually(lambda was=old, of=stream: cluster.leader(of) is not was, message="another one leads")  # type: ignore[misc]
            old.restart()
        for stream in (SPACE.report_stream, SPACE.task_stream):
            cluster.until_whole(stream)
            cluster.hand_over(stream, "n3")
        for stream in (SPACE.report_stream, SPACE.task_stream, SPACE.control_stream):
            found = cluster.info(stream)
            assert found is not None
            assert found.config.num_replicas == 3
        cluster.servers["n3"].pause()
        finding = rig.finish(seconds=240)
        assert rig.succeeded()
        assert (finding.losses, finding.repeated) == (0, 0)
