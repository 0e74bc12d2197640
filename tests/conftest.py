"""Fixtures over the test ground; what each costs is in `tests.ground`."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pydantic.validate_call_decorator  # noqa: F401 pytest parses it where it is imported first; CPython 3.11 can't do that in two threads
import pytest

from tests import sidebyside
from tests.chart.rendering import program as helm_binary
from tests.ground import Broker, ControlPlane, NetworkNamespace, Slurm
from tests.ground.control_plane import CRDS
from tests.ground.control_plane import binaries as control_plane_binaries

# A property has no time limit: how long an example takes says something of the machine, not of the property.
hypothesis.settings.register_profile("merlin", deadline=None)
hypothesis.settings.load_profile("merlin")


def pytest_configure(config: pytest.Config) -> None:
    """Start programs with the usual meaning of signals, also where the tests run in the background or under nohup.

    Both leave signals ignored, which every child inherits: it would not end as a test wants it to. A handler is not inherited.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if getattr(config.option, "loadscopereorder", None):
        config.option.loadscopereorder = False  # the order is that of `longest_first`, not that of the number of tests


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means."""
    return sidebyside.processes()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> sidebyside.Scheduling | None:
    """Give out the tests as `tests.sidebyside` says, unless ``--dist`` asks for something else."""
    return sidebyside.Scheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the order of files where one process runs them all."""
    if hasattr(config, "workerinput"):
        sidebyside.longest_first(items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what tests need before the first of them, not within its time limit.

    It takes minutes, once a machine, and several processes wait for the one that builds; a failure is left to the fixture,
    so that the other tests still run.
    """
    if session.config.option.collectonly:
        return
    needed = {name for item in session.items for name in (*item.keywords, *_fixtures(item))}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    with shown:
        for name, build in {"control_plane": control_plane_binaries, "helm": helm_binary}.items():
            if name in needed:
                with contextlib.suppress(subprocess.CalledProcessError):
                    build()


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
