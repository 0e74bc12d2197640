"""``merlin info``: what is installed, for a report of a problem."""

import platform
import shutil
import subprocess
import sys
from importlib import metadata

from merlin_cli import broker
from merlin_cli.exits import CliError, Exit

_DISTRIBUTIONS = ("merlin-cli", "merlin-study", "merlin-operator", "merlin-agent")


def info() -> Exit:
    """Print versions and places."""
    rows = [("Python", f"{platform.python_version()} ({sys.executable})"), ("platform", platform.platform())]
    rows += [(name, version(name)) for name in _DISTRIBUTIONS]
    rows += [("nats-server", _nats_server()), ("kubectl", shutil.which("kubectl") or "not on PATH")]
    for name, value in rows:
        print(f"{name:<16} {value}")
    return Exit.OK


def version(distribution: str) -> str:
    """The version of one of our distributions."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed (part of merlin-cli[local])"


def _nats_server() -> str:
    try:
        path = broker.find_server()
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except CliError:
        return "not installed (part of merlin-cli[local])"
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not start: {error}"
    return f"{said.strip().removeprefix('nats-server: v')} ({path})"
