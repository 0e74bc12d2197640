"""The program as a pod runs it: the real engine and broker, the operator's rights, signals, and a kill."""

import json
import os
import signal
from typing import Any

import pytest

from tests.ground import Broker, ControlPlane, Process, eventually
from tests.operating.test_operator_health import probe
from tests.operating.test_study_arrival import STUDY

pytestmark = pytest.mark.control_plane


def condition(plane: ControlPlane, namespace: str, name: str, kind: str) -> str:
    path = f"jsonpath={{.status.conditions[?(@.type=='{kind}')].status}}"
    return plane.kubectl("get", "study", name, "--namespace", namespace, "--output", path).stdout


def accepted(process: Process, plane: ControlPlane, namespace: str) -> None:
    """Start the operator, and wait until it has accepted a study."""
    process.start()
    plane.apply(json.dumps(STUDY), namespace=namespace)
    eventually(lambda: condition(plane, namespace, "probe", "Accepted") == "True")


def test_a_study_is_accepted_by_an_operator_that_ends_cleanly_when_asked(
    process: Process, control_plane: ControlPlane, namespace: str, port: int
) -> None:
    try:
        accepted(process, control_plane, namespace)
        eventually(lambda: probe(f"http://127.0.0.1:{port}/readyz") == (200, "ok\n"), message="it is ready")
        assert "merlin_broker_connected 1.0" in probe(f"http://127.0.0.1:{port}/metrics")[1]
        process.signal(signal.SIGTERM)
        assert process.wait(timeout=180) == 0
    except BaseException:
        print(process.describe())
        raise


def test_a_killed_operator_goes_on_where_it_was(process: Process, control_plane: ControlPlane, namespace: str) -> None:
    accepted(process, control_plane, namespace)
    process.kill()
    refused = json.loads(json.dumps(STUDY).replace("echo hello", "echo $(MERLIN_NONSENSE)"))
    refused["metadata"]["name"] = "refused"
    control_plane.apply(json.dumps(refused), namespace=namespace)
    process.start()
    wait = ("wait", "--for=condition=Finished", "study/refused", "--namespace", namespace, "--timeout=180s")
    control_plane.kubectl(*wait)
    assert condition(control_plane, namespace, "refused", "Accepted") == "False"
    assert condition(control_plane, namespace, "probe", "Accepted") == "True"
    control_plane.kubectl("delete", "studies", "--all", "--namespace", namespace, "--timeout=180s")


def test_a_study_goes_away_while_the_broker_is_down(
    process: Process, control_plane: ControlPlane, namespace: str, broker: Broker
) -> None:
    accepted(process, control_plane, namespace)
    broker.kill()
    control_plane.kubectl("delete", "study", "probe", "--namespace", namespace, "--timeout=180s")
    assert "study deleted without cleaning the broker: study=probe" in process.tail(200)


def test_a_namespace_that_is_deleted_with_its_operator_and_broker_keeps_no_study(
    process: Process, control_plane: ControlPlane, namespace: str, broker: Broker
) -> None:
    """As with the chart: pods end first, and no operator is left that would take a finalizer off."""
    accepted(process, control_plane, namespace)
    broker.kill()
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")
    process.signal(signal.SIGTERM)
    assert process.wait(timeout=180) == 0
    found: Any = control_plane.get("study", "probe", "--namespace", namespace)
    assert "finalizers" not in found["metadata"], process.tail(50)
    control_plane.kubectl("delete", "studies", "--all", "--namespace", namespace, "--timeout=60s")


def test_a_port_that_is_taken_ends_the_program_with_a_reason(process: Process, broker: Broker) -> None:
    process.argv[process.argv.index("--http") + 1] = broker.url.removeprefix("nats://").rpartition("@")[2]
    process.start()
    assert process.wait(timeout=180) == 1
    assert "address already in use" in process.tail(100)


def test_an_operator_that_dies_in_a_status_or_in_a_deletion_is_followed_by_one_that_finishes_both(
    process: Process, control_plane: ControlPlane, namespace: str
) -> None:
    """Killed right before its second write of the status, then right before it cleans up after a Study."""
    plain = dict(os.environ)
    process.env = plain | {"MERLIN_FAILPOINTS": "operator.status=kill@2"}
    process.start()
    control_plane.apply(json.dumps(STUDY), namespace=namespace)
    refused = json.loads(json.dumps(STUDY).replace("echo hello", "echo $(MERLIN_NONSENSE)"))
    refused["metadata"]["name"] = "refused"
    control_plane.apply(json.dumps(refused), namespace=namespace)
    eventually(lambda: not process.alive, message="it dies in a write of the status")
    process.env = plain | {"MERLIN_FAILPOINTS": "operator.finalizer=kill"}
    process.start()
    eventually(lambda: condition(control_plane, namespace, "probe", "Accepted") == "True")
    eventually(lambda: condition(control_plane, namespace, "refused", "Accepted") == "False")
    control_plane.kubectl("delete", "study", "probe", "--namespace", namespace, "--wait=false")
    eventually(lambda: not process.alive, message="it dies in the deletion")
    assert process.returncode == -signal.SIGKILL
    process.env = plain
    process.start()
    control_plane.kubectl("wait", "--for=delete", "study/probe", "--namespace", namespace, "--timeout=180s")
    control_plane.kubectl("delete", "studies", "--all", "--namespace", namespace, "--timeout=180s")
