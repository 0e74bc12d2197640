"""A whole site in one network namespace: API server, nats-server, operator, and a Slurm whose jobs are agents.

Everything shares one loopback, as a cluster and a machine share a network; nothing can leave it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merlin_study.seal import Keyring
from tests.ground import Broker, ControlPlane, Slurm, eventually, free_port
from tests.ground.processes import Process

TIMING = ("--heartbeat", "1", "--lost-after", "15", "--presence", "1", "--presence-stale", "4")
"""A loss costs seconds; no agent that lives is silent for so long, however busy the machine is."""
ROLE = Path(__file__).parents[1] / "operating" / "role.yaml"


@dataclass
class Site:
    """What a test needs of the site; ``root`` is the shared file system."""

    control_plane: ControlPlane
    broker: Broker
    slurm: Slurm
    namespace: str
    root: Path
    operator: Process
    http_port: int
    jobs: list[str] = field(default_factory=list)

    def allocate(
        self,
        *flags: str,
        slots: int | None = 2,
        nodes: int = 1,
        launcher: str = "",
        time: str = "10:00",
        env: Mapping[str, str] | None = None,
        **options: str | int | bool,
    ) -> str:
        """Submit a batch script whose one line starts an agent, or a launcher that does; return the job's number."""
        agent = Path(sys.executable).with_name("merlin-agent")
        given = [*flags] if slots is None else ["--slots", str(slots), *flags]
        script = (
            "#!/bin/bash\n"
            f"exec {launcher} {agent} --server {self.broker.url} --credentials {self.root}/credentials.json "
            f"--keys {self.root}/keys --namespace {self.namespace} --site testsite "
            f"--workspace {self.root}/work --drain-grace 2 {' '.join(given)}\n"
        )
        job = self.slurm.sbatch(script, nodes=nodes, time=time, env=env, **options)
        self.jobs.append(job)
        return job

    def apply(self, text: str) -> None:
        """Apply a manifest with kubectl."""
        self.control_plane.apply(text, namespace=self.namespace)

    def study(self, name: str) -> dict[str, Any]:
        """Return a Study as the API server has it."""
        return self.control_plane.get("study", name, "-n", self.namespace)

    def wait_finished(self, name: str, *, seconds: int = 400) -> None:
        """Wait as a user does, with ``kubectl wait``."""
        self.control_plane.kubectl(
            "wait", "--for=condition=Finished", f"study/{name}", "-n", self.namespace, f"--timeout={seconds}s",
            timeout=seconds + 10,
        )  # fmt: skip

    def done(self, name: str) -> int:
        """Return how many tasks of a study are over, as its status says."""
        return int(self.study(name).get("status", {}).get("counts", {}).get("done", 0))

    def ask(self, path: str) -> str | None:
        """Return what the operator answers on a path of its HTTP port; None where it does not."""

        def get() -> str | None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=60) as answer:
                    return str(answer.read().decode())
            except OSError:
                return None

        return self.slurm.network.call(get)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's series, from the operator's own ``/metrics``."""
        text = self.ask("/metrics") or ""
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(map(float, values))

    def agent_pids(self) -> list[int]:
        """Return the processes of agents, as the kernel shows them in this namespace."""
        found = []
        for pid in self.slurm.network.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"/merlin-agent") for word in words[:2]):
                    found.append(pid)
        return found


@contextlib.contextmanager
def running_site(slurm: Slurm) -> Iterator[Site]:
    """Start everything but agents; end it all, jobs first."""
    netns = slurm.network.name
    root = Path(tempfile.mkdtemp(prefix="merlin-site-"))
    try:
        with ControlPlane(netns=netns) as control_plane, Broker(root / "broker", netns=netns) as broker:
            control_plane.install_crds()
            namespace = control_plane.namespace()
            (root / "work").mkdir()
            Keyring.generate().save(root / "keys")
            credentials = root / "credentials.json"
            credentials.touch(0o600)
            credentials.write_text(json.dumps(dict(broker.credentials)))
            http_port = free_port()
            kubeconfig = control_plane.granted("operator", ROLE, may="get studies", namespace=namespace)
            operator = Process(
                [
                    Path(sys.executable).with_name("merlin-operator"), "--namespace", namespace, "--server", broker.url,
                    "--credentials", credentials, "--keys", root / "keys", "--http", f"127.0.0.1:{http_port}", *TIMING,
                ],
                log=root / "operator.log",
                netns=netns,
                env=control_plane.environment(kubeconfig),
            )  # fmt: skip
            operator.start()
            site = Site(control_plane, broker, slurm, namespace, root, operator, http_port)
            try:
                eventually(lambda: site.ask("/readyz"), message="the operator is ready")
                yield site
            finally:
                for job in site.jobs:
                    slurm.scancel(job)
                eventually(lambda: not slurm.squeue(), message="the agents' jobs end")
                operator.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)
