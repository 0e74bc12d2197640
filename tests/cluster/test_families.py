"""Steps that start, steer and stop through a real API server: operator and agent as processes, without a batch system."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from merlin_study import nested
from merlin_study.seal import Keyring
from tests.cluster.site import ROLE, TIMING
from tests.ground import Broker, ControlPlane, eventually, free_port
from tests.ground.processes import Process

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(600)]

WAITS = """
description: {name: waits, description: until it may go}
study:
- name: wait
  description: says that it is there
  run: {cmd: "touch ROOT/up; until [ -e ROOT/go ]; do sleep 0.1; done"}
- name: then
  description: what waits
  run: {cmd: "true", depends: [wait]}
"""
ORDERS = """
cd ROOT
child=$(merlin run waits.yaml | sed -n 's/^Submitted study \\(.*\\);.*/\\1/p')
until [ -e up ]; do sleep 0.1; done
merlin suspend $child && merlin resume $child && merlin purge $child || exit 1
merlin status $(ls -d waits_*) || exit 2
merlin cancel $child || exit 3
merlin cancel unrelated && exit 4
touch go
until merlin restart $child; do sleep 0.5; done
"""
ROUNDS = """
description: {name: rounds, description: iterates by itself}
env: {variables: {ROUND: 1}}
study:
- name: iterate
  description: starts the next round
  run: {cmd: "cd ROOT; merlin run rounds.yaml --vars ROUND=$(( $(ROUND) + 1 ))"}
"""


@dataclass
class Place:
    """An API server's namespace with an operator, and a directory that agents work in."""

    plane: ControlPlane
    namespace: str
    root: Path
    agent_command: list[str]
    agents: list[Process] = field(default_factory=list)

    def agent(self, *flags: str) -> Process:
        """Start an agent."""
        process = Process([*self.agent_command, *flags], log=self.root / f"agent-{len(self.agents)}.log")
        process.start()
        self.agents.append(process)
        return process

    def apply(self, name: str, steps: list[dict[str, Any]], *, creator: str = "ada") -> None:
        """Apply a study as a user's ``merlin run`` would."""
        spec = {"description": {"name": name, "description": "d"}, "study": steps}
        metadata = {"name": name, "annotations": {nested.CREATOR: creator}}
        body = {"apiVersion": "merlin.dev/v1alpha1", "kind": "Study", "metadata": metadata, "spec": spec}
        self.plane.apply(json.dumps(body), namespace=self.namespace)

    def studies(self) -> dict[str, Any]:
        """All studies, by name."""
        found: Any = self.plane.get("studies", "-n", self.namespace)["items"]
        return {each["metadata"]["name"]: each for each in found}

    def phase(self, name: str) -> str:
        """How a study stands, in a word."""
        return str(self.studies()[name].get("status", {}).get("phase"))


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str, broker: Broker, tmp_path: Path) -> Iterator[Place]:
    Keyring.generate().save(tmp_path / "keys")
    credentials = tmp_path / "credentials.json"
    credentials.touch(0o600)
    credentials.write_text(json.dumps(dict(broker.credentials)))
    kubeconfig = control_plane.granted("operator", ROLE, may="get studies", namespace=namespace)
    common = [
        "--namespace",
        namespace,
        "--server",
        broker.url,
        "--credentials",
        str(credentials),
        "--keys",
        f"{tmp_path}/keys",
    ]
    programs = Path(sys.executable).parent
    operator = Process(
        [programs / "merlin-operator", *common, "--http", f"127.0.0.1:{free_port()}", *TIMING],
        log=tmp_path / "operator.log",
        env=control_plane.environment(kubeconfig),
    )
    for name, text in {"waits.yaml": WAITS, "rounds.yaml": ROUNDS}.items():
        (tmp_path / name).write_text(text.replace("ROOT", str(tmp_path)))
    agent = [
        str(programs / "merlin-agent"),
        *common,
        "--site",
        "here",
        "--workspace",
        f"{tmp_path}/work",
        "--slots",
        "3",
    ]
    operator.start()
    made = Place(control_plane, namespace, tmp_path, agent)
    try:
        yield made
    finally:
        for process in (*made.agents, operator):
            if process.alive:
                process.kill()
            print(process.describe())


def test_steps_steer_the_studies_that_they_started_and_send_their_agents_away(place: Place) -> None:
    """Each order changes the object, for the root's creator; another's study is left alone; agents of other queues stay."""
    agent, other = place.agent(), place.agent("--queues", "elsewhere")
    place.apply(
        "unrelated",
        [{"name": "idle", "description": "d", "run": {"cmd": "true", "task_queue": "nowhere"}}],
        creator="bob",
    )
    orders = {"name": "orders", "description": "d", "run": {"cmd": ORDERS.replace("ROOT", str(place.root))}}
    last = {"name": "last", "description": "d", "run": {"cmd": "merlin stop-workers", "depends": ["orders"]}}
    place.apply("boss", [orders, last])
    eventually(
        lambda: place.phase("boss") == "Succeeded", timeout=240, interval=0.5, message="the orders are carried out"
    )
    assert agent.wait(timeout=240) == 0
    (child,) = (each for name, each in place.studies().items() if name.startswith("waits-"))
    metadata, spec = child["metadata"], child["spec"]
    assert metadata["annotations"][nested.CREATOR] == "ada"
    assert metadata["labels"]["merlin.dev/root"] == place.studies()["boss"]["metadata"]["uid"]
    assert (spec["suspend"], spec["cancel"]) == (False, False)
    assert spec["purge"]
    assert spec["restart"]["id"]
    assert "cancel" not in place.studies()["unrelated"]["spec"]
    allocations: Any = place.plane.get("allocations", "-n", place.namespace)["items"]
    told = [each for allocation in allocations for each in allocation["spec"].get("agents", ())]
    assert [each["drain"] for each in told] == [True]
    assert other.alive
    place.agent()
    name = metadata["name"]
    eventually(lambda: place.phase(name) == "Succeeded", timeout=240, interval=0.5, message="the restarted child ends")


def test_an_endless_iteration_is_cancelled_as_a_whole(place: Place) -> None:
    """By its root: every study of the family ends, and no further one comes."""
    place.agent()
    script = f"cd {place.root}; merlin run rounds.yaml"
    place.apply("root", [{"name": "begin", "description": "d", "run": {"cmd": script}}])
    eventually(lambda: len(place.studies()) > 3, timeout=240, interval=0.5, message="it iterates")
    patch = ("patch", "study", "root", "-n", place.namespace, "--type=merge", "-p", '{"spec": {"cancel": true}}')
    place.plane.kubectl(*patch)

    def over() -> bool:
        conditions = [each.get("status", {}).get("conditions", ()) for each in place.studies().values()]
        return all(any(c["type"] == "Finished" and c["status"] == "True" for c in each) for each in conditions)

    eventually(over, timeout=240, interval=0.5, message="all of them end")
    phases = {each["status"]["phase"] for each in place.studies().values()}
    assert phases <= {"Cancelled", "Succeeded"}
