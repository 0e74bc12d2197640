"""A network namespace with a loopback of its own: what binds every address in it is reachable from nowhere else."""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.ground.needs import missing
from tests.ground.waiting import eventually

T = TypeVar("T")

_NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def inside(netns: str | None, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the namespace (None: where we are).

    `nsenter` becomes the program, so the pid is the program's. Unlike `ip netns exec` it leaves the mounts alone, and
    with them /sys/fs/cgroup.
    """
    return [*(["nsenter", f"--net={_NAMED / netns}", "--"] if netns else []), *argv]


class NetworkNamespace:
    """A named namespace with nothing but loopback; whatever still runs in it at the end is ended with it."""

    def __init__(self) -> None:
        """Choose a name; two runs on one machine do not meet."""
        self.name = f"merlin-{os.getpid()}-{next(_numbers)}"

    @staticmethod
    def require() -> None:
        """Skip the test (fail it under CI) where this user cannot make one."""
        if os.geteuid() != 0:
            missing("a network namespace of its own needs root; run the tests as root to include these")
        if shutil.which("ip") is None:
            missing("a network namespace needs the program `ip` (on Debian: apt-get install iproute2)")
        probe = subprocess.run(
            ["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False
        )
        if probe.returncode:
            missing(f"this machine allows no network namespace: {probe.stderr.strip()}")

    def __enter__(self) -> Self:
        """Make it, with loopback up."""
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        # With loopback's own address alone, getaddrinfo(AI_ADDRCONFIG) finds that this host speaks no IP at all.
        _ip("-n", self.name, "address", "add", "198.18.0.1/32", "dev", "lo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is left in it (it can only descend from us), then remove it."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.pids(), message=f"the processes of {self.name} end")
        _ip("netns", "delete", self.name)

    def pids(self) -> list[int]:
        """The processes inside."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split() if int(pid) != os.getpid()]

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        return inside(self.name, argv)

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return its text; AssertionError with both outputs where it fails and `check`."""
        done = subprocess.run(self.enter(argv), capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in a thread that has entered the namespace: its sockets (and its event loop's) are inside."""
        outcome: Future[T] = Future()
        thread = threading.Thread(target=self._call, args=(function, outcome), name=f"inside-{self.name}")
        thread.start()
        thread.join()
        return outcome.result()

    def _call(self, function: Callable[[], T], outcome: Future[T]) -> None:
        try:
            _set_namespace(_NAMED / self.name)
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits for it
            outcome.set_exception(error)


def _set_namespace(path: Path) -> None:
    # os.setns is Python 3.12's.
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
