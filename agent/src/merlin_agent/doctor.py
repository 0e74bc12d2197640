"""``merlin-agent doctor``: looks at everything that an agent needs here, and says what it found, what is missing and the cure.

Each check is a function that returns a `Finding`; none raises, so that one fault does not hide the next.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from merlin_agent import allocation, config, launch, schedulers, warm
from merlin_agent.config import ConfigError, Credentials, Settings
from merlin_agent.schedulers import Found

FAULTY: Final = 5
"""Exit code where something is wrong; `merlin-agent --help` names the others."""
_PATIENCE: Final = 5.0
_FEW_FILES: Final = 1024
_GIGA: Final = 1 << 30


class State(StrEnum):
    """How a thing stands; only `WRONG` keeps an agent from its work."""

    GOOD = "ok"
    ODD = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``cure`` is empty where nothing needs one."""

    name: str
    state: State
    found: str
    cure: str = ""

    def __str__(self) -> str:
        """One line, and one more for the cure."""
        line = f"{self.state:>5}  {self.name:<12} {self.found}"
        return f"{line}\n{'':20}→ {self.cure}" if self.cure else line


def examine(settings: Settings, found: Found, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, in the order in which an agent would need it."""
    yield Finding("python", State.GOOD, f"{sys.version.split()[0]} at {sys.executable}")
    yield from allocation_findings(found, usable=allocation.usable_cores(), environ=environ, ask=allocation.ask)
    yield _limits()
    yield from _workspace(settings.workspace)
    yield from _shells()
    yield warm_finding(launch.environment(os.environb))
    yield from _broker(settings)


def allocation_findings(
    found: Found, *, usable: int, environ: Mapping[str, str], ask: schedulers.Ask
) -> Iterator[Finding]:
    """Say what the batch job is and what of it is odd; see `schedulers.found` for the arguments."""
    if found.scheduler == "none":
        cure = (
            "start merlin-agent inside of sbatch, flux batch, bsub or qsub, unless this machine is meant to work alone"
        )
        yield Finding("allocation", State.ODD, "none: this process runs in no batch job", cure)
    else:
        left = "no end known" if found.seconds_left is None else f"{found.seconds_left / 60:.0f} min left"
        hosts = f"{len(found.hosts) or 'unknown'} hosts"
        yield Finding("allocation", State.GOOD, f"{found.scheduler} {found.job_id}, {hosts}, {left}")
    if wrong := allocation.elsewhere(found):
        place, _, cure = wrong.partition("; ")
        yield Finding("host", State.WRONG, place, cure)
    for problem in found.problems:
        place, _, cure = problem.partition("; ")
        yield Finding("allocation", State.ODD, place, cure)
    bound = bool(found.cores) and usable < found.cores
    yield Finding(
        "cores",
        State.ODD if bound else State.GOOD,
        f"{usable} usable" + (f" of the job's {found.cores} here" if found.cores else ""),
        "the launcher bound this process to a part of them: srun --overlap -c ALL, or --cpu-bind=none" if bound else "",
    )
    if found.memory:
        yield Finding("memory", State.GOOD, f"{found.memory / _GIGA:.1f} GiB of this host are the job's")
    if found.gpus:
        yield Finding("gpus", State.GOOD, ", ".join(found.gpus))
    yield _launcher(found, environ, ask)


def _launcher(found: Found, environ: Mapping[str, str], ask: schedulers.Ask) -> Finding:
    kind = schedulers.launcher(found.scheduler, environ, ask)
    if kind is None:
        return Finding("launcher", State.GOOD, "none: steps with nodes or procs can't start in parallel here")
    program = kind.value.split()[0]
    path = shutil.which(program, path=environ.get("PATH"))
    if path is None:
        cure = f"load the module that brings {program}, or put it on PATH before the agent starts"
        return Finding("launcher", State.WRONG, f"expected {kind.value}, found no {program} on PATH", cure)
    version = schedulers.launcher_version(kind, ask)
    said = f", version {version}" if version else ", which does not say its version"
    return Finding("launcher", State.GOOD, f"{kind.value} at {path}{said}")


def _limits() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        return Finding("limits", State.ODD, f"{soft} open files", f"ulimit -n {hard} before the agent starts")
    return Finding("limits", State.GOOD, f"{soft} open files")


def _workspace(directory: Path) -> Iterator[Finding]:
    try:
        config.check_workspace(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        state = os.statvfs(directory)
    except (ConfigError, OSError) as error:
        yield Finding("workspace", State.WRONG, str(error), "give --workspace a directory that this user may write")
        return
    free = state.f_bavail * state.f_frsize / _GIGA
    inodes = f", {state.f_favail:,} files" if state.f_files else ""
    tight = free < 1 or (state.f_files > 0 and state.f_favail < 100_000)
    yield Finding(
        "workspace",
        State.ODD if tight else State.GOOD,
        f"{directory}: writable, {free:,.1f} GiB{inodes} free",
        "a task with Merlin's layout makes five files: free some, or give another --workspace" if tight else "",
    )


def _shells() -> Iterator[Finding]:
    for name in ("bash", "sh"):
        path = shutil.which(name)
        if path is None:
            yield Finding("shell", State.WRONG, f"no {name} on PATH", f"put {name} on PATH; steps run with it")
        else:
            yield Finding("shell", State.GOOD, path)


def warm_finding(environ: Mapping[bytes, bytes]) -> Finding:
    """Say whether bash steps can share a warm interpreter in this ``environ``; each short task is started at some cost otherwise."""
    try:
        why = warm.obstacle("/usr/bin/env bash", environ)
    except OSError as error:
        why = error.strerror or str(error)
    if not why:
        return Finding("warm shells", State.GOOD, "bash steps share one a slot")
    cure = "nothing fails; for tasks of milliseconds, start the agent from a batch script without it"
    return Finding("warm shells", State.ODD, f"each bash script is started: {why}", cure)


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        credentials = config.load_credentials(settings.credentials, ca=settings.ca)
        config.load_keys(settings, credentials)
        config.check_transport(settings, credentials)
    except ConfigError as error:
        yield Finding("keys", State.WRONG, str(error), "ask who runs the cluster for `merlin site credentials`")
        return
    yield Finding("keys", State.GOOD, "readable by this user alone")
    for server in settings.server.split(","):
        yield _reach(server, credentials)


def _reach(server: str, credentials: Credentials) -> Finding:
    """See that a way leads to the broker, and that it is the one whose certificate we trust; nothing is said to it."""
    address = urlsplit(server if "://" in server else f"nats://{server}")
    host, port = address.hostname or "", address.port or 4222
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE) as connection:
            if address.scheme != "tls":
                return Finding("broker", State.GOOD, f"{server}: reached")
            context = ssl.create_default_context(cadata=credentials.ca or None)
            with context.wrap_socket(connection, server_hostname=host) as secured:
                return Finding("broker", State.GOOD, f"{server}: reached, {secured.version()}")
    except ssl.SSLError as error:
        cure = f"check that the certificate authority is this server's; asked for {host!r}"
        return Finding("broker", State.WRONG, f"{server}: {error.reason or error}", cure)
    except OSError as error:
        cure = "check the address, and that compute nodes may reach it (a firewall, a login node only?)"
        return Finding("broker", State.WRONG, f"{server}: can't be reached: {error.strerror or error}", cure)


def run(settings: Settings, say: Callable[[str], object]) -> int:
    """Examine and report line by line; return the exit code."""
    findings = []
    for finding in examine(settings, allocation.here(), os.environ):
        say(str(finding))
        findings.append(finding)
    wrong = sum(finding.state is State.WRONG for finding in findings)
    notes = sum(finding.state is State.ODD for finding in findings)
    say(f"{wrong} wrong, {notes} to note" if wrong or notes else "an agent can work here")
    return FAULTY if wrong else 0
