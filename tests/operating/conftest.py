"""A namespace in which the operator's user may do what its role says, and nothing else; and the program as a pod runs it."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from merlin_operator import cluster
from merlin_study.seal import Keyring
from tests.ground import Broker, ControlPlane, Process, free_port

ROLE = Path(__file__).with_name("role.yaml")


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch) -> client.Configuration:
    """The way into the cluster of a user with the operator's rights in `namespace`."""
    kubeconfig = control_plane.granted("operator", ROLE, may="get configmaps", namespace=namespace)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return cluster.connect()


@pytest.fixture
def port() -> int:
    """Where the operator serves its probes."""
    return free_port()


@pytest.fixture
def process(
    broker: Broker, restricted: client.Configuration, namespace: str, tmp_path: Path, port: int
) -> Iterator[Process]:
    """The operator, not started."""
    del restricted  # it has set KUBECONFIG
    Keyring.generate().save(tmp_path / "keys")
    argv = [sys.executable, "-m", "merlin_operator", "--namespace", namespace, "--keys", str(tmp_path / "keys")]
    argv += ["--http", f"127.0.0.1:{port}", "--server", broker.url]
    options = tmp_path / "credentials"
    options.write_text(json.dumps(broker.credentials))
    options.chmod(0o600)
    made = Process([*argv, "--credentials", str(options)], log=tmp_path / "operator.log", env=dict(os.environ))
    yield made
    made.stop()
