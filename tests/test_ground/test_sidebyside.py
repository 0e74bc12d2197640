"""How tests are shared between processes; that all of them run is pytest-xdist's own promise."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests import sidebyside
from tests.ground import waiting
from tests.ground.needs import ROOT


def test_the_files_that_come_first_are_there() -> None:
    assert [name for name in sidebyside.LONG if not (ROOT / name).is_file()] == []


def test_no_port_is_that_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    found: list[int] = []
    for name in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
        found += waiting.own(range(1000))
    assert sorted(found) == list(range(1000))


def _ignored() -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("before", [None, _ignored], ids=["as usual", "in the background"])
def test_programs_of_a_test_end_on_an_interrupt(before: Callable[[], None] | None) -> None:
    """However the tests were started: an ignored signal would be inherited."""
    child = f"{__file__}::test_an_interrupt_ends_a_child"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", child]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=before)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_an_interrupt_ends_a_child(number: signal.Signals) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(number)
        assert child.wait() == -number
