"""Three servers keep each stream (row 13 of the fault table): a leader dies, a minority is cut off, and the result is the same."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from nats.errors import Error as NatsError

from merlin_operator.load import BrokerLoad
from merlin_operator.stream import Broker as Connection
from merlin_operator.stream import ConsumerSpec, Outage
from merlin_study import subjects
from tests.faults.admin import SPACE
from tests.faults.rig import PATIENT, a_rig
from tests.ground import Broker, eventually
from tests.ground.cluster import Cluster

STREAMS = (SPACE.report_stream, SPACE.task_stream, SPACE.control_stream)
ROUTE = subjects.Route("local", "q", "n1-c1-g0-m0-w0", "bulk")


def test_a_leader_that_dies_and_a_minority_that_is_cut_off_change_nothing(tmp_path: Path) -> None:
    """Killed is the server that leads the log, then the one that leads the chunks; frozen to the end is one that leads both."""
    with (
        Cluster(tmp_path / "cluster") as cluster,
        a_rig(cluster, tmp_path, log_stands=True, tasks=300, cmd="sleep 0.05", timing=PATIENT) as rig,
    ):
        majority = ",".join(cluster.servers[name].url for name in ("n1", "n2"))
        rig.operator(flags="--replicas 3", server=majority)
        for _ in range(2):
            rig.agent(server=majority)
        for least, stream in ((20, SPACE.report_stream), (60, SPACE.task_stream)):
            rig.until_done(least, seconds=240)
            for each in (SPACE.report_stream, SPACE.task_stream):
                cluster.until_whole(each)
            old = cluster.leader(stream)
            old.kill()
            eventually(
                functools.partial(_led_by_another, cluster, stream, old), timeout=240, message="another one leads"
            )
            old.restart()
        for stream in (SPACE.report_stream, SPACE.task_stream):
            cluster.until_whole(stream)
            cluster.hand_over(stream, "n3")
        cluster.servers["n3"].pause()
        finding = rig.finish(seconds=240)
        assert rig.succeeded()
        assert (finding.losses, finding.repeated) == (0, 0)


def test_streams_of_one_server_get_more_where_the_setting_asks_for_them(tmp_path: Path) -> None:
    """An operator that is told so raises what another one made, while a study runs; none lowers it again."""
    with Cluster(tmp_path / "cluster") as cluster, a_rig(cluster, tmp_path, tasks=40, timing=PATIENT) as rig:
        rig.operator()
        rig.agent()
        rig.until_done(0, seconds=240)
        for flags in ("--replicas 3", ""):
            rig.operators[-1].kill()
            rig.operator(flags=flags)
            rig.finish(seconds=240)
            eventually(lambda: [_keepers(cluster, stream) for stream in STREAMS] == [3, 3, 3], timeout=240)


def test_it_is_said_how_many_servers_hold_each_stream_so_that_one_may_be_stopped(tmp_path: Path) -> None:
    """While streams are raised the server that made them must stay; once all hold them, any one may die."""
    with Cluster(tmp_path / "cluster") as cluster:
        alone = _load(cluster, replicas=1)
        assert alone is not None
        assert (alone.thin, {each.replicas for each in alone.streams}) == ("", {1})
        _until(cluster, "", "all servers hold all streams")
        dead = cluster.leader(SPACE.task_stream)
        dead.kill()
        _until(
            cluster, "tasks 2 of 3, reports 2 of 3, control 2 of 3", "it is seen that one is missing, while two serve"
        )
        dead.restart()
        _until(cluster, "", "all servers hold all streams again")


def _until(cluster: Cluster, thin: str, message: str) -> None:
    def seen() -> bool:
        found = _load(cluster, replicas=3)
        if found is None or {each.replicas for each in found.streams} != {3}:
            return False
        return thin in found.thin if thin else not found.thin

    eventually(seen, timeout=240, interval=0.2, message=message)


def _load(cluster: Cluster, *, replicas: int) -> BrokerLoad | None:
    """Connect as the operator does, and ask; None where the cluster does not answer at the moment."""
    up = ",".join(server.url for server in cluster.servers.values() if server.process.alive)

    async def ask() -> BrokerLoad:
        connection = Connection(SPACE, server=up, options=dict(cluster.credentials), replicas=replicas)
        try:
            await connection._connect()
            await connection.ensure_streams()
            await connection.ensure_consumer(ConsumerSpec(ROUTE.consumer, SPACE.chunks(ROUTE), ROUTE.token))
            return await connection.load()
        finally:
            await connection.close()

    try:
        return asyncio.run(ask())
    except (Outage, NatsError, OSError, TimeoutError):
        return None


def _led_by_another(cluster: Cluster, stream: str, old: Broker) -> bool:
    return cluster.leader(stream) is not old


def _keepers(cluster: Cluster, stream: str) -> int | None:
    found = eventually(lambda: cluster.info(stream), timeout=240)
    return found.config.num_replicas if found is not None else None
