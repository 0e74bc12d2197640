"""Named contexts: which cluster or server the commands speak to.

Which one counts: ``MERLIN_CONTEXT`` where it is set, else the one that ``merlin context use`` (or ``merlin server start``) chose, else
``cluster``, which is the kubeconfig's. ``~/.merlin/contexts.json`` holds names and files, no secrets.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from merlin_cli.exits import CliError, Exit

CLUSTER: Final = "cluster"
VARIABLE: Final = "MERLIN_CONTEXT"
SITE_FILE: Final = "site.yaml"
"""Beside a server's kubeconfig: what its agents need."""


@dataclass(frozen=True)
class Contexts:
    """Names, each with its kubeconfig, and the one that was chosen."""

    current: str = CLUSTER
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls) -> "Contexts":
        """Read them; none where there is no file.

        Raises:
            CliError: the file is damaged.
        """
        path = _path()
        try:
            raw = json.loads(path.read_bytes())
            return cls(str(raw["current"]), {str(name): str(file) for name, file in raw["contexts"].items()})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CliError(
                Exit.CANNOT_RUN, f"{path}: expected the contexts of merlin, found {error}; remove the file"
            ) from error

    def save(self) -> None:
        """Write them as a whole."""
        path = _path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"current": self.current, "contexts": dict(self.files)}, indent=1) + "\n")
        partial.replace(path)

    def used(self, name: str) -> "Contexts":
        """Return them with another one chosen.

        Raises:
            CliError: there is none of this name.
        """
        self.file(name)
        return replace(self, current=name)

    def file(self, name: str) -> Path | None:
        """Return a context's kubeconfig; None for that of the cluster.

        Raises:
            CliError: there is none of this name.
        """
        if name == CLUSTER:
            return None
        if name not in self.files:
            known = ", ".join((CLUSTER, *self.files))
            raise CliError(Exit.USAGE, f"context {name}: there is none of this name; there are {known}")
        return Path(self.files[name])


def chosen() -> Path | None:
    """Return the kubeconfig of the context that counts; None for the cluster's, wherever that is.

    Raises:
        CliError: it names what is not there.
    """
    contexts = Contexts.load()
    return contexts.file(os.environ.get(VARIABLE) or contexts.current)


def site_file() -> Path | None:
    """Return what agents need of the server that counts; None where that is no server."""
    file = chosen()
    return file.with_name(SITE_FILE) if file is not None else None


def command(what: str, name: str) -> Exit:
    """``merlin context list`` and ``merlin context use NAME``."""
    contexts = Contexts.load()
    if what == "use":
        contexts.used(name).save()
        print(f"merlin: commands speak to {name} from now on")
        return Exit.OK
    counts = os.environ.get(VARIABLE) or contexts.current
    for each, file in {CLUSTER: "the kubeconfig's", **contexts.files}.items():
        print(f"{'*' if each == counts else ' '} {each:<16} {file}")
    return Exit.OK


def _path() -> Path:
    return Path("~/.merlin/contexts.json").expanduser()
