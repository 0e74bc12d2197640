"""The chart's tests: most need helm alone; `test_on_cluster.py` needs a cluster with pods and is left out without one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chart.brokersite import Site, serve
from tests.chart.rendering import Helm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a cluster where none is named: it is somebody else's, and nothing that this machine lacks."""
    if os.environ.get("MERLIN_CLUSTER_KUBECONFIG"):
        return
    left_out = [item for item in items if "cluster" in item.keywords and "tests/chart" in item.path.as_posix()]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The pinned helm, built where it is not there yet."""
    return Helm()


@pytest.fixture(scope="session")
def site(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """nats-server as the chart configures it."""
    with serve(helm, tmp_path_factory.mktemp("broker")) as running:
        yield running
