"""What benches of the whole path run on: a real API server, and a namespace with a broker, an operator and an agent of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config

from merlin_study.seal import Keyring
from tests.ground import Broker, ControlPlane, eventually, free_port
from tests.ground.processes import Process

GROUP: Final = ("merlin.dev", "v1alpha1")
ROLE: Final = Path(__file__).resolve().parents[1] / "tests" / "operating" / "role.yaml"
_WRITES: Final = {"POST", "PUT", "PATCH", "APPLY", "DELETE"}
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Site:
    """One namespace and its processes, which sync each write as the chart has them do."""

    namespace: str
    broker: Broker
    operator: Process
    agent: Process
    custom: Any
    """The API of custom objects."""

    @property
    def parts(self) -> dict[str, Any]:
        """The processes that are measured, by name."""
        return {"operator": self.operator, "nats-server": self.broker.process, "agent": self.agent}

    def create(self, study: dict[str, Any]) -> None:
        """Create a Study through the API server."""
        self.custom.create_namespaced_custom_object(*GROUP, self.namespace, "studies", study)

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """Return all ``studies`` or ``allocations``."""
        found: list[dict[str, Any]] = self.custom.list_namespaced_custom_object(*GROUP, self.namespace, kind)["items"]
        return found


@contextlib.contextmanager
def site(plane: ControlPlane, root: Path, *, slots: int) -> Iterator[Site]:
    """Run a namespace with an agent that is known; ``root`` is an empty directory."""
    namespace = plane.namespace("bench")
    plane.apply(ROLE, namespace=namespace)
    untyped: Any = config
    untyped.load_kube_config(str(plane.kubeconfig))
    Keyring.generate().save(root / "keys")
    (root / "work").mkdir()
    with Broker(root / "broker") as broker:
        credentials = root / "credentials.json"
        credentials.touch(0o600)
        credentials.write_text(json.dumps(dict(broker.credentials)))
        common = (
            "--namespace",
            namespace,
            "--server",
            broker.url,
            "--credentials",
            credentials,
            "--keys",
            root / "keys",
        )
        programs = Path(sys.executable)
        operator = Process(
            [
                *(programs.with_name("merlin-operator"), *common, "--http", f"127.0.0.1:{free_port()}"),
                *("--log-level", "warning"),
            ],
            log=root / "operator.log",
            env=plane.environment(plane.user_kubeconfig("operator", namespace=namespace)),
        )
        agent = Process(
            [
                *(programs.with_name("merlin-agent"), *common, "--site", "bench", "--slots", str(slots)),
                *("--workspace", root / "work"),
            ],
            log=root / "agent.log",
        )
        running = Site(namespace, broker, operator, agent, client.CustomObjectsApi())
        operator.start()
        agent.start()
        try:
            eventually(lambda: running.listed("allocations"), timeout=60, message="the agent is known")
            yield running
        finally:
            agent.stop()
            operator.stop()


def peak_mib(pid: int) -> float:
    """Return a process's peak resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def processor_seconds(pid: int) -> float:
    """Return the processor seconds that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def writes(plane: ControlPlane) -> int:
    """Return how many writes of Studies, Allocations and Events the API server has counted."""
    text = plane.kubectl("get", "--raw", "/metrics").stdout
    found = 0
    for line in text.splitlines():
        ours = 'group="merlin.dev"' in line or 'resource="events"' in line
        if line.startswith("apiserver_request_total{") and ours:
            verb = line.split('verb="', 1)[1].split('"', 1)[0]
            found += int(float(line.rsplit(" ", 1)[1])) if verb in _WRITES else 0
    return found
