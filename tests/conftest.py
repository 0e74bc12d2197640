"""Fixtures over the test ground; what each costs is in `tests.ground`."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.ground import Broker, ControlPlane, NetworkNamespace, Slurm
from tests.ground.control_plane import CRDS, binaries

# A property has no time limit: how long an example takes says something of the machine, not of the property.
hypothesis.settings.register_profile("merlin", deadline=None)
hypothesis.settings.load_profile("merlin")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the control plane before the first test that needs it, not within that test's time limit.

    It takes minutes, once a machine; a failure is left to the fixture, so that the other tests still run.
    """
    needed = any("control_plane" in item.keywords or "control_plane" in _fixtures(item) for item in session.items)
    if not needed or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    with shown, contextlib.suppress(subprocess.CalledProcessError):
        binaries()


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A real nats-server with JetStream and nothing in it."""
    with Broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real API server with this repository's CRDs; shared, so a test leaves it running and works in a `namespace`."""
    with ControlPlane() as started:
        if any(CRDS.glob("*.yaml")):
            started.install_crds()
        yield started


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the control plane that no other test has."""
    return control_plane.namespace()


@pytest.fixture(scope="module")
def network() -> Iterator[NetworkNamespace]:
    """A network namespace with only loopback, for a Slurm and whatever talks with its jobs."""
    NetworkNamespace.require()
    with NetworkNamespace() as made:
        yield made


@pytest.fixture(scope="module")
def slurm(network: NetworkNamespace) -> Iterator[Slurm]:
    """A real Slurm with the idle nodes n1 and n2 in `network`; shared by a module, so a test ends its own jobs."""
    Slurm.require()
    with Slurm(network) as started:
        yield started
