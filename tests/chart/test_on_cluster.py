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
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CHART, program
from tests.ground import Process, eventually, needs
from tests.ground.needs import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NODE_PORT = 30422
TASKS = 1000
PREFIX = shlex.split(os.environ.get("MERLIN_CLUSTER_EXEC", ""))
RELEASE = "merlin"
STUDY = f"""
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: first-light}}
spec:
  description: {{name: first-light, description: many short tasks and a funnel}}
  study:
  - name: say
    description: one line into the task's directory and one into the shared count of executions
    run:
      cmd: |
        sleep 0.2
        echo "$(NUMBER)" > said.txt
        echo "$(NUMBER)" >> $(MERLIN_WORKSPACE)/executions
  - name: count
    description: the funnel
    run:
      cmd: find $(say.workspace) -name said.txt -exec cat {{}} + | sort -u | wc -l > total.txt
      depends: [say_*]
  merlin:
    samples:
      generate: {{cmd: "seq {TASKS} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""


@dataclass
class Cluster:
    """Commands against the cluster, and the release in it."""

    namespace: str
    directory: Path
    server: str = ""
    agents: list[Process] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What every command gets; nothing of the user's own agents or clusters."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MERLIN_", "KUBE", "SLURM_"))}
        return {**kept, "KUBECONFIG": os.environ["MERLIN_CLUSTER_KUBECONFIG"]}

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
        return int(self.get("study", "first-light").get("status", {}).get("counts", {}).get("done", 0))

    def show(self, stage: str) -> None:
        """Print what a user would look at."""
        print(f"== {stage}\n{self.kubectl('get', 'studies')}{self.kubectl('get', 'allocations', check=False)}")

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

        eventually(ready, timeout=120, interval=0.5, message=f"another pod of {component} is ready")

    def start_agent(self, job: int) -> Process:
        """Start an agent beside the cluster: a directory for outputs, the site file, and a batch job's number."""
        site = self.directory / "site.yaml"
        agent = Process(
            [*PREFIX, str(Path(sys.executable).with_name("merlin-agent")), "--credentials", str(site), "--slots", "2"],
            log=self.directory / f"agent-{job}.log",
            cwd=self.directory,
            env={
                **self.environment,
                "HOME": str(self.directory),
                "SLURM_JOB_ID": str(job),
                "SLURM_CLUSTER_NAME": "testsite",
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


@pytest.mark.usefixtures("values")
def test_helm_test_runs_a_study_in_a_pod(cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in cluster.helm("test", "--timeout", "180s")
    assert not cluster.get("studies")["items"], "it leaves no study behind"


def test_a_study_outlives_every_pod_and_an_upgrade(cluster: Cluster, values: list[str]) -> None:
    """Two agents with nothing but the site file; each kind of pod killed and the release upgraded in the middle."""
    merlin = Path(sys.executable).with_name("merlin")
    site = cluster.directory / "site.yaml"
    cluster.run(merlin, "site", "credentials", "-n", cluster.namespace, "--release", RELEASE, "-o", site)
    assert site.stat().st_mode & 0o777 == 0o600
    first = cluster.start_agent(1001)
    cluster.kubectl("apply", "-f", "-", stdin=STUDY)
    cluster.show("applied")
    eventually(lambda: cluster.done() > 20, timeout=120, interval=0.5, message="the first agent works")
    second = cluster.start_agent(1002)
    eventually(lambda: cluster.done() > 60, timeout=120, interval=0.5, message="both work")
    cluster.show("two agents")

    def goes_on(after: str) -> None:
        mark = cluster.done()
        assert mark < TASKS, f"the study was over before {after}: make it longer"
        eventually(lambda: cluster.done() > mark + 20, timeout=180, interval=0.5, message=f"it goes on after {after}")
        cluster.show(after)

    cluster.kill("operator")
    goes_on("a kill of the operator")
    cluster.kill("nats")
    goes_on("a kill of NATS")
    before, pods = cluster.digests(), {part: cluster.pod(part)["metadata"]["uid"] for part in ("operator", "nats")}
    # Another configuration of NATS and another operator: both pods are replaced, keys and streams are not.
    changes = ["--set", "operator.logLevel=debug", "--set", "nats.maxPayload=7MB"]
    cluster.helm("upgrade", str(CHART), *values, *changes, "--wait", "--timeout", "180s")
    assert cluster.digests() == before
    eventually(lambda: all(cluster.pod(part)["metadata"]["uid"] != pods[part] for part in pods), timeout=60)
    goes_on("helm upgrade")
    cluster.kubectl("wait", "--for=condition=Finished", "study/first-light", "--timeout=300s")
    cluster.show("finished")

    status = cluster.get("study", "first-light")["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Succeeded"] == "True", status
    assert (status["counts"]["total"], status["counts"]["succeeded"]) == (TASKS + 2, TASKS + 2)
    assert status.get("doubled", 0) == 0
    (workspace,) = cluster.directory.glob("first-light_*")
    assert (workspace / "count" / "total.txt").read_text().strip() == str(TASKS)
    runs = Counter((workspace / "executions").read_text().splitlines())
    assert (len(runs), set(runs.values())) == (TASKS, {1}), "every task ran, and none twice"
    allocations = cluster.get("allocations")["items"]
    assert {each["spec"]["jobId"] for each in allocations} == {"1001", "1002"}
    assert len(list((workspace / "merlin_info" / "outcomes").glob("*.jsonl"))) == 2, "both agents took part"
    for agent in (first, second):
        agent.stop()
        assert agent.returncode == 0, agent.describe()


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
