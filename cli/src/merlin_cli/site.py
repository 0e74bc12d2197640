"""``merlin site credentials``: takes the one file that an agent needs out of the cluster, for its user alone.

The chart's bootstrap Job made it; whoever may read that Secret (the chart's Role ``…-site-credentials``) may start agents. The
file is never written where others could read it, and an existing one is left alone unless told otherwise.
"""

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import yaml

from merlin_cli.exits import CliError, Exit
from merlin_cli.kube import KubeConfig
from merlin_study import sitefile, transport

KEY: Final = "site.yaml"
_CHART: Final = "merlin"


@dataclass(frozen=True)
class Request:
    """What the command line said; None and empty: as the cluster has it.

    Attributes:
        namespace: Where the release is.
        release: Its name, from which the Secret's follows.
        secret: The Secret's own name, where the chart was given one.
        server: The broker's address as agents reach it.
        site: The site's name.
        output: The file to write; None for standard output.
        force: Whether to replace a file that is there.
    """

    namespace: str | None = None
    release: str = _CHART
    secret: str = ""
    server: str = ""
    site: str = ""
    output: Path | None = None
    force: bool = False

    @property
    def name(self) -> str:
        """The Secret's name, by the chart's rule for names."""
        full = self.release if _CHART in self.release else f"{self.release}-{_CHART}"
        return self.secret or f"{full[:40].rstrip('-')}-agents"


class Cluster(Protocol):
    """Where the Secret is."""

    namespace: str
    """The one that is meant where the user names none."""

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Read a Secret.

        Raises:
            CliError: it is not there, we may not, or the cluster cannot be reached.
        """


def credentials(request: Request, cluster: Cluster | None = None) -> Exit:
    """Write the site file.

    Raises:
        CliError: it cannot be had, or must not be written there.
    """
    _check_output(request)
    cluster = cluster or KubeConfig()
    namespace = request.namespace or cluster.namespace
    place = f"secret {request.name} in namespace {namespace}"
    held = cluster.secret(namespace, request.name)
    try:
        found = sitefile.parse(yaml.safe_load(held[KEY]))
        found.keyring()
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        why = error if isinstance(error, sitefile.SiteFileError) else f"no {KEY}"
        raise CliError(Exit.CANNOT_RUN, f"{place}: expected the site file of the chart, found {why}") from None
    changes = {name: value for name, value in (("server", request.server), ("site", request.site)) if value}
    file = found.model_copy(update=changes)
    try:
        transport.check(file.server)
    except transport.TransportError as error:
        raise CliError(Exit.USAGE, f"--server {error}") from error
    _write(file.encode(), request)
    if ".svc:" in file.server:
        _say(f"{file.server} is reached inside the cluster only; give --server for agents elsewhere")
    return Exit.OK


def _check_output(request: Request) -> None:
    """Refuse before any secret is read."""
    if request.output is not None:
        if request.output.exists() and not request.force:
            raise CliError(Exit.USAGE, f"{request.output} is there already; give --force to replace it")
        return
    state = os.fstat(sys.stdout.fileno())
    if stat.S_ISREG(state.st_mode) and stat.S_IMODE(state.st_mode) & 0o077:
        raise CliError(
            Exit.USAGE,
            f"standard output is a file that others may read (mode {stat.S_IMODE(state.st_mode):04o}); "
            "use -o site.yaml, which makes one of mode 0600",
        )


def _write(text: str, request: Request) -> None:
    path = request.output
    if path is None:
        sys.stdout.write(text)
        return
    # Beside it first: what has the name is whole, and was never open to others.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        if request.force:
            partial.replace(path)
        else:
            os.link(partial, path)
            partial.unlink()
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CliError(Exit.CANNOT_RUN, f"{path}: can't be written: {error.strerror}") from error
    _say(f"wrote {path} (mode 0600); start an agent with: merlin-agent --credentials {path}")


def _say(text: str) -> None:
    print(f"merlin: {text}", file=sys.stderr)
