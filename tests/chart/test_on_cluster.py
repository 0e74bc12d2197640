"""The chart on a real Kubernetes, as its users meet it: install, `helm test`, agents outside, kills, upgrade, uninstall.

Any cluster will do whose nodes' ports can be reached from here:

    MERLIN_CLUSTER_KUBECONFIG   its kubeconfig; without it these tests are left out
    MERLIN_CLUSTER_EXEC         words before every command, where the cluster is reached through another (nsenter …), which
                                has to become the command that it starts
    MERLIN_CLUSTER_LOAD         a command that takes image archives and makes them known to the nodes; without it the images
                                `localhost/merlin/operator` and `…/agent` of this version have to be there (kind load …)
    MERLIN_CLUSTER_SERVER       the broker as agents reach it; without it port 30422 of the first node

kind:  kind create cluster --config kind-config.yaml && tools/images
       MERLIN_CLUSTER_KUBECONFIG=~/.kube/config MERLIN_CLUSTER_SERVER=tls://127.0.0.1:4222 \
       MERLIN_CLUSTER_LOAD='kind load image-archive --name merlin' make test PYTEST_ARGS=tests/chart

They work in a namespace of their own and remove it; definitions and cluster roles stay where they were there before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CHART, program
from tests.cluster.funnel import COMBINATIONS, check_complete, manifest, taking_part
from tests.ground import Process, eventually, free_port, needs
from tests.ground.needs import ROOT
from tests.metrics.prometheus import Prometheus
from tests.metrics.test_alerts import ALERTS, RULES
from tests.metrics.watched import PANELS, Watched, answer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NODE_PORT = 30422
NAME = "first-light"
SAMPLES = 500
TASKS = COMBINATIONS * SAMPLES
SITE = "testsite"
WALLTIME = 3600
EXPECTED = {"BrokerUnavailable", "OperatorDown"}
"""Alerts whose expression must have held for a moment."""
PREFIX = shlex.split(os.environ.get("MERLIN_CLUSTER_EXEC", ""))
RELEASE = "merlin"


@dataclass
class Cluster:
    """Commands against the cluster, and the release in it."""

    namespace: str
    directory: Path
    server: str = ""
    agents: list[Process] = field(default_factory=list)

    @property
    def outside(self) -> dict[str, str]:
        """What an agent gets: nothing of the user's own agents, and no way to any cluster."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("MERLIN_", "KUBE", "SLURM_"))}

    @property
    def environment(self) -> dict[str, str]:
        """What a command of the cluster's user gets."""
        return {**self.outside, "KUBECONFIG": os.environ["MERLIN_CLUSTER_KUBECONFIG"]}

    def run(self, *command: str | Path, check: bool = True, timeout: float = 300, stdin: str | None = None) -> str:
        """Run a command that reaches the cluster; return its output, AssertionError where it fails."""
        done = subprocess.run(
            [*PREFIX, *command],
            env=self.environment, input=stdin, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}{done.stdout}"
            )
        return done.stdout + ("" if check else done.stderr)

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Kubectl in the release's namespace."""
        return self.run(needs.program("kubectl"), "-n", self.namespace, *arguments, check=check, stdin=stdin)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get -o json`."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def helm(self, command: str, *arguments: str) -> str:
        """Run helm on the release."""
        return self.run(program(), command, RELEASE, *arguments, "-n", self.namespace)

    def done(self) -> int:
        """How many tasks are over, as the Study's status says."""
        return int(self.get("study", NAME).get("status", {}).get("counts", {}).get("done", 0))

    def table(self, kind: str) -> dict[str, dict[str, str]]:
        """What `kubectl get` shows: for each object the cells of its row by their column."""
        heads, *rows = self.kubectl("get", kind).splitlines() or [""]
        starts = [(match.start(), match.group()) for match in re.finditer(r"\S+(?: \S+)*", heads)]
        ends = [start for start, _ in starts[1:]] + [None]
        cells = [{head: row[at:end].strip() for (at, head), end in zip(starts, ends, strict=True)} for row in rows]
        return {each["NAME"]: each for each in cells}

    def show(self, stage: str, *, state: str = "Running", agents: int) -> None:
        """Wait until `kubectl get` says how the study and so many allocations stand, and print it."""

        def stands() -> bool:
            study, allocations = self.table("studies")[NAME], self.table("allocations")
            active = [each for each in allocations.values() if each["STATE"] == "Running" and each["SITE"] == SITE]
            return study["STATUS"] == state and len(active) == agents

        message = f"{stage}: the study is {state}, {agents} allocations running"
        try:
            eventually(stands, interval=0.5, message=message)
        except AssertionError:
            print(
                self.table("studies"), self.table("allocations"), *(each.describe() for each in self.agents), sep="\n"
            )
            raise
        print(f"== {stage}\n{self.kubectl('get', 'studies')}{self.kubectl('get', 'allocations')}")

    def pod(self, component: str) -> dict[str, Any]:
        """The one pod of a component that is not on its way out."""
        found = self.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
        (pod,) = [each for each in found if "deletionTimestamp" not in each["metadata"]]
        return dict(pod)

    def kill(self, component: str) -> None:
        """Delete a component's pod without grace, and wait until another one is ready."""
        before = self.pod(component)["metadata"]["uid"]
        selector = f"app.kubernetes.io/component={component}"
        self.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force", check=False)

        def ready() -> bool:
            try:
                pod = self.pod(component)
            except ValueError:  # none yet, or two for a moment
                return False
            conditions = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", [])}
            return pod["metadata"]["uid"] != before and conditions.get("Ready") == "True"

        eventually(ready, interval=0.5, message=f"another pod of {component} is ready")

    def start_agent(self, job: int) -> Process:
        """Start an agent beside the cluster: a directory for outputs, the site file, and a batch job's number."""
        site = self.directory / "site.yaml"
        agent = Process(
            [*PREFIX, str(Path(sys.executable).with_name("merlin-agent")), "--credentials", str(site), "--slots", "2"],
            log=self.directory / f"agent-{job}.log",
            cwd=self.directory,
            env={
                **self.outside,
                "HOME": str(self.directory),
                "SLURM_JOB_ID": str(job),
                "SLURM_JOB_END_TIME": str(int(time.time()) + WALLTIME),
                "SLURM_CLUSTER_NAME": SITE,
            },
        )
        agent.start()
        self.agents.append(agent)
        return agent

    def digests(self) -> dict[str, str]:
        """Each Secret's content, as a digest."""
        return {
            name: hashlib.sha256(json.dumps(self.get("secret", f"{RELEASE}-{name}")["data"]).encode()).hexdigest()
            for name in ("keys", "broker", "operator", "agents")
        }


def _values(cluster: Cluster) -> list[str]:
    known = cluster.run(
        needs.program("kubectl"), "get", "crds", "studies.merlin.dev", "--ignore-not-found", "-o", "name"
    )
    roles = cluster.run(
        needs.program("kubectl"), "get", "clusterrole", "merlin-study-view", "--ignore-not-found", "-o", "name"
    )
    return [
        "--values", str(CHART / "ci" / "kind-values.yaml"),
        "--set", f"nats.service.nodePort={NODE_PORT},nats.externalAddress={cluster.server},nats.storage.size=1Gi",
        "--set", f"nats.maxFileStore=900Mi,crds.install={json.dumps(not known)},rbac.aggregate={json.dumps(not roles)}",
        # As long as a pod needs to come back on a slow machine, and no longer.
        "--set", "operator.timing.heartbeat=2,operator.timing.lostAfter=30,operator.timing.presence=2",
        "--set", "operator.timing.presenceStale=10",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A namespace that admits only restricted pods, images that the nodes know, and what is left at the end removed."""
    if load := os.environ.get("MERLIN_CLUSTER_LOAD"):
        archives = [str(ROOT / ".cache" / "images" / f"{part}.tar") for part in ("operator", "agent")]
        subprocess.run([*shlex.split(load), *archives], check=True, timeout=300)
    directory = Path(tempfile.mkdtemp(prefix="merlin-chart-"))
    made = Cluster(f"merlin-test-{secrets.token_hex(3)}", directory)
    made.server = os.environ.get("MERLIN_CLUSTER_SERVER") or f"tls://{_node_address(made)}:{NODE_PORT}"
    made.run(needs.program("kubectl"), "create", "namespace", made.namespace)
    try:
        made.kubectl("label", "namespace", made.namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield made
    finally:
        for agent in made.agents:
            agent.stop()
        with contextlib.suppress(AssertionError):
            made.kubectl("delete", "studies", "--all", "--timeout=30s")
        made.run(program(), "uninstall", RELEASE, "-n", made.namespace, "--ignore-not-found", check=False)
        made.run(needs.program("kubectl"), "delete", "namespace", made.namespace, "--wait=false", check=False)
        shutil.rmtree(directory, ignore_errors=True)


def _node_address(cluster: Cluster) -> str:
    nodes = json.loads(cluster.run(needs.program("kubectl"), "get", "nodes", "-o", "json"))["items"]
    addresses = [each["address"] for each in nodes[0]["status"]["addresses"] if each["type"] == "InternalIP"]
    return str(addresses[0])


@pytest.fixture(scope="module")
def values(cluster: Cluster) -> list[str]:
    """The release, installed: `helm install --wait` returns once everything is ready."""
    chosen = _values(cluster)
    cluster.helm("install", str(CHART), *chosen, "--wait", "--timeout", "180s")
    return chosen


@pytest.fixture(scope="module")
def began() -> float:
    """When all of this began."""
    return time.time()


@pytest.fixture(scope="module")
def watch(cluster: Cluster, values: list[str], began: float) -> Iterator[Prometheus]:  # noqa: ARG001 in their order
    """A Prometheus beside the cluster that scrapes the operator's Service as its user reaches it: through the API server.

    `kubectl proxy` signs in for it, so that any kubeconfig does. It may lose the pod for a while, and finds the next one.
    """
    port = free_port()
    proxy = Process(
        [*PREFIX, needs.program("kubectl"), "proxy", f"--port={port}"],
        log=cluster.directory / "proxy.log",
        env=cluster.environment,
    )
    proxy.start()
    service = f"/api/v1/namespaces/{cluster.namespace}/services/{RELEASE}-operator:http/proxy/metrics"
    try:
        with Prometheus(
            cluster.directory, target=f"127.0.0.1:{port}", path=service, rules=RULES, prefix=PREFIX
        ) as prometheus:
            scraped = "merlin_broker_connected == 1"
            eventually(lambda: prometheus.now(scraped), message="the operator is scraped")
            yield prometheus
    finally:
        proxy.stop()


@pytest.mark.usefixtures("values")
def test_helm_test_runs_a_study_in_a_pod(cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in cluster.helm("test", "--timeout", "180s")
    assert not cluster.get("studies")["items"], "it leaves no study behind"


def test_a_study_outlives_every_pod_and_an_upgrade(cluster: Cluster, values: list[str], watch: Prometheus) -> None:
    """Two agents with nothing but the site file; each kind of pod killed and the release upgraded in the middle."""
    merlin = Path(sys.executable).with_name("merlin")
    site = cluster.directory / "site.yaml"
    cluster.run(merlin, "site", "credentials", "-n", cluster.namespace, "--release", RELEASE, "-o", site)
    assert site.stat().st_mode & 0o777 == 0o600
    first = cluster.start_agent(1001)
    cluster.kubectl("apply", "-f", "-", stdin=manifest(NAME, samples=SAMPLES, before="sleep 0.2"))
    cluster.show("applied", agents=1)
    eventually(lambda: cluster.done() > 20, interval=0.5, message="the first agent works")
    second = cluster.start_agent(1002)
    eventually(lambda: cluster.done() > 60, interval=0.5, message="both work")
    cluster.show("two agents", agents=2)

    def goes_on(after: str) -> None:
        mark = cluster.done()
        assert mark < TASKS, f"the study was over before {after}: make it longer"
        eventually(lambda: cluster.done() > mark + 20, timeout=180, interval=0.5, message=f"it goes on after {after}")
        cluster.show(after, agents=2)

    cluster.kill("operator")
    goes_on("a kill of the operator")
    cluster.kill("nats")
    goes_on("a kill of NATS")
    before, pods = cluster.digests(), {part: cluster.pod(part)["metadata"]["uid"] for part in ("operator", "nats")}
    # Another configuration of NATS and another operator: both pods are replaced, keys and streams are not.
    changes = ["--set", "operator.logLevel=debug", "--set", "nats.maxPayload=7MB"]
    cluster.helm("upgrade", str(CHART), *values, *changes, "--wait", "--timeout", "180s")
    assert cluster.digests() == before
    eventually(lambda: all(cluster.pod(part)["metadata"]["uid"] != pods[part] for part in pods))
    goes_on("helm upgrade")
    cluster.kubectl("wait", "--for=condition=Finished", f"study/{NAME}", "--timeout=300s")
    cluster.show("finished", state="Succeeded", agents=2)

    study = cluster.get("study", NAME)
    check_complete(study, cluster.directory, samples=SAMPLES, most_doubled=0)
    assert taking_part(study, cluster.directory) == 2, "both agents"
    allocations = cluster.get("allocations")["items"]
    assert {each["spec"]["jobId"] for each in allocations} == {"1001", "1002"}
    total = f'sum(merlin_tasks{{study="{NAME}", state="succeeded"}}) == {TASKS + 2}'
    eventually(lambda: watch.now(total), message="the end is scraped")
    for agent in (first, second):
        agent.stop()
        assert agent.returncode == 0, agent.describe()
    cluster.show("agents ended", state="Succeeded", agents=0)


@pytest.mark.usefixtures("values")
def test_dashboards_and_alerts_tell_what_happened(watch: Prometheus, began: float) -> None:
    """Every expression of every panel and alert, in the Prometheus that scraped the operator through its Service."""
    run = Watched(watch, began, time.time(), study=NAME)
    unanswered = {panel.title: found for _, panel in PANELS if (found := run.unanswered(panel))}
    asked = sum(len(panel.queries) for _, panel in PANELS)
    assert unanswered == {}, f"of {asked} expressions"
    assert run.most(answer("How far is it?")) == 1
    assert run.highest("What do its tasks do?", "state")["succeeded"] == TASKS + 2
    assert run.most(answer("How many tasks did not succeed?")) == 0
    assert run.most(answer("Did anything run twice without a reason?")) == 0
    assert max(run.highest("How many agents are there?", "site").values()) == 2
    assert 0.5 <= run.highest("What share of the slots is busy?", "site")[SITE] <= 1
    assert WALLTIME - 600 < run.highest("How long do the allocations still last?", "site")[SITE] <= WALLTIME
    assert 0 < run.most(answer("How full is the broker's store?")) < 0.1
    assert run.most("changes(merlin_operator_start_timestamp_seconds[15m])") == 2, "a kill and an upgrade"
    assert run.faults() == {}
    held = {alert["alert"] for alert in ALERTS if run.held(alert)}
    assert held >= EXPECTED, "the pods were killed"
    assert held <= EXPECTED | {"NoAgentsForQueue"}, "before the first agent was heard"
    print(f"== metrics: {asked} expressions of {len(PANELS)} panels, {len(ALERTS)} alerts; held: {sorted(held)}")


@pytest.mark.usefixtures("values")
def test_uninstalling_leaves_what_is_dear(cluster: Cluster) -> None:
    """Streams, keys and definitions stay; pods, rights and Services go. A release that is installed again goes on with them."""
    cluster.kubectl("delete", "studies", "--all", "--timeout=60s")
    before = cluster.digests()
    cluster.helm("uninstall", "--wait", "--timeout", "120s")
    left = cluster.kubectl(
        "get", "deployments,statefulsets,services,roles,rolebindings,networkpolicies,jobs,configmaps,serviceaccounts",
        "-l", "app.kubernetes.io/part-of=merlin", "-o", "name",
    )  # fmt: skip
    # Hooks of `helm test` are helm's no more; a pod of the last test may still be there.
    assert not [name for name in left.split() if not name.endswith("-test")]
    assert cluster.digests() == before
    assert cluster.kubectl("get", "pvc", f"data-{RELEASE}-nats-0", "-o", "name").strip()
    assert cluster.run(needs.program("kubectl"), "get", "crds", "studies.merlin.dev", "-o", "name").strip()
