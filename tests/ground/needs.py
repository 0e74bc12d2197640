"""What a test does when this machine cannot give it its neighbour."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]


def missing(reason: str) -> NoReturn:
    """Skip the test where something is missing; under CI=true fail it.

    A skip that nobody reads is how a test ground rots: where the machine is ours to set up, its absence is a fault.
    """
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (a skip elsewhere; a failure because CI is set)", pytrace=False)
    pytest.skip(reason)


def debian(packages: Sequence[str], programs: Sequence[str]) -> None:
    """See to it that the programs are there: install Debian's packages where this user may, else do as `missing` says.

    Processes that run tests side by side take turns: apt-get waits for another's installation and fails at another's update.
    """
    if all(system_program(name) for name in programs):
        return
    what = ", ".join(name for name in programs if not system_program(name))
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        missing(f"not installed: {what}; and this user may not install Debian's packages {', '.join(packages)}")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q"]
    # RUNLEVEL: no package starts a service of its own, which would listen on every address.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with Path("/run/merlin-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if all(system_program(name) for name in programs):
            return
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run([*apt, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{', '.join(packages)} could not be installed: {done.stderr.strip()}")


def system_program(name: str) -> str | None:
    """The path of a program of this machine; daemons lie in folders that a user's PATH may lack."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def program(name: str) -> str:
    """The path of a program that the locked packages bring (beside the interpreter), or one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: neither beside {sys.executable} nor on PATH; `tools/bootstrap` installs it")
    return found
