"""`nats.replicas: 3`: the rendered configuration on three real nats-servers, and what the pods around them need."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from merlin_operator.load import BrokerLoad
from merlin_operator.stream import Broker, Outage
from tests.chart.brokersite import SPACE, Cluster, Site, serve_several
from tests.chart.rendering import CHART, DEFAULT, Helm, named
from tests.ground import eventually_async

CASE = "three-servers-values.yaml"


def test_three_servers_become_one_broker_that_keeps_each_stream_thrice(helm: Helm, tmp_path: Path) -> None:
    """Under the operator's own rights; between the servers nobody gets in who has no certificate of theirs."""
    with serve_several(helm, tmp_path) as cluster:
        load = asyncio.run(_whole(cluster, cluster.sites[0]))
        assert {each.replicas for each in load.streams} == {3}
        assert load.store_limit == 3 * (9 << 30), "the account's limit counts what all servers keep"
        assert (tmp_path / "merlin-nats-0" / "data" / "cluster" / "jetstream").is_dir(), (
            "apart from what one alone keeps"
        )
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _ask_without_certificate(cluster.routes[0], cluster.sites[0])


async def _whole(cluster: Cluster, site: Site) -> BrokerLoad:
    broker = Broker(SPACE, server=cluster.server, options=site.options("operator"), replicas=3)
    running = asyncio.create_task(broker.run(broker.ensure_streams))
    found: list[BrokerLoad] = []

    async def whole() -> bool:
        with contextlib.suppress(Outage):
            found[:] = [await broker.load()]
        return bool(found) and not found[0].thin and {each.replicas for each in found[0].streams} == {3}

    try:
        await eventually_async(whole, timeout=240, message="three servers hold all streams")
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    return found[0]


def _ask_without_certificate(port: int, site: Site) -> None:
    context = ssl.create_default_context(cadata=site.keys["ca.crt"].decode())
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        plain.recv(65_536)  # the greeting, after which the server waits for a handshake
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            if not secured.recv(1):  # TLS 1.3 refuses a client after the handshake, with its first answer
                raise ConnectionError("the server hung up")


def test_the_pods_start_together_on_different_nodes_and_one_at_most_is_away(helm: Helm) -> None:
    rendered = helm.render(case=CASE)
    servers = named(rendered, "StatefulSet", "merlin-nats")["spec"]
    pod = servers["template"]["spec"]
    (apart,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    budget = named(rendered, "PodDisruptionBudget", "merlin-nats")["spec"]
    assert (servers["replicas"], servers["podManagementPolicy"]) == (3, "Parallel")
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"]["matchLabels"].items() <= servers["template"]["metadata"]["labels"].items()
    assert (budget["maxUnavailable"], budget["selector"]) == (1, servers["selector"])
    operator = named(rendered, "Deployment", "merlin-operator")["spec"]["template"]["spec"]["containers"][0]
    assert "--replicas=3" in operator["args"]


def test_servers_reach_each_other_and_names_and_nothing_else(helm: Helm) -> None:
    policy = named(helm.render(case=CASE), "NetworkPolicy", "merlin-nats")["spec"]
    dns, routes = policy["egress"]
    assert [each["port"] for each in dns["ports"]] == [53, 53]
    assert [each["port"] for each in routes["ports"]] == ["routes"]
    (peers,) = [each for each in policy["ingress"] if each["ports"] == routes["ports"]]
    assert peers["from"] == routes["to"] == [{"podSelector": policy["podSelector"]}]


def test_one_server_has_neither_routes_nor_a_budget_and_one_s_own_affinity_counts(helm: Helm) -> None:
    alone = helm.render()
    assert not [each for each in alone if each["kind"] == "PodDisruptionBudget"]
    assert "cluster {" not in named(alone, "ConfigMap", "merlin-nats")["data"]["nats.conf"]
    assert named(alone, "NetworkPolicy", "merlin-nats")["spec"]["egress"] == []
    mine = helm.render("--set-json", 'nats.affinity={"podAntiAffinity": {}}', case=CASE)
    assert named(mine, "StatefulSet", "merlin-nats")["spec"]["template"]["spec"]["affinity"] == {"podAntiAffinity": {}}


@pytest.mark.parametrize("count", ["0", "2", "4", "three"])
def test_a_number_of_servers_without_a_clear_majority_is_refused(helm: Helm, count: str) -> None:
    values = ["--values", str(CHART / "ci" / DEFAULT)]
    done = helm.run("template", "merlin", CHART, *values, "--set", f"nats.replicas={count}", check=False)
    assert done.returncode != 0
    assert "nats/replicas" in done.stderr or "nats.replicas" in done.stderr
