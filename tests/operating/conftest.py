"""A namespace in which the operator's user may do what its role says, and nothing else."""

from pathlib import Path

import pytest
from kubernetes import client

from merlin_operator import cluster
from tests.ground import ControlPlane

ROLE = Path(__file__).with_name("role.yaml")


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch) -> client.Configuration:
    """The way into the cluster of a user with the operator's rights in `namespace`."""
    kubeconfig = control_plane.granted("operator", ROLE, may="get configmaps", namespace=namespace)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return cluster.connect()
