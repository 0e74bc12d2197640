"""Which studies the user means: by a Study's name, by a specification's file, or by a study's directory, as upstream takes them.

A directory names the study that its mark names. A specification names all studies that were made from a file whose
``description.name`` reads the same; commands that show something take the newest of them, commands that change something
those that are not over.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict

from merlin_cli.exits import CliError, Exit
from merlin_cli.kube import KubeConfig
from merlin_study import workspace

_STAMP: Final = re.compile(r"[0-9]{8}-[0-9]{6}(-[0-9]+)?")


class Cluster(Protocol):
    """What the commands ask of a cluster; see `merlin_cli.kube`."""

    namespace: str

    def study(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a Study, or None."""

    def studies(self, namespace: str) -> list[dict[str, Any]]:
        """Return all Studies of a namespace."""

    def allocations(self, namespace: str) -> list[dict[str, Any]]:
        """Return all Allocations of a namespace."""

    def change(self, namespace: str, name: str, uid: str, spec: Mapping[str, Any]) -> None:
        """Change switches of a Study."""

    def direct(
        self, namespace: str, name: str, changes: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, instead: str = ""
    ) -> None:
        """Change what an Allocation wishes of its agents: ``changes`` makes it from the ``spec`` as it is."""


class Mark(BaseModel):
    """What an agent writes into a workspace that it claims."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    study: str


@dataclass(frozen=True)
class There:
    """A cluster and the namespace that is meant."""

    cluster: Cluster
    namespace: str

    @classmethod
    def of(cls, namespace: str | None, cluster: Cluster | None = None, *, instead: str = "") -> "There":
        """Return the cluster of the kubeconfig; ``instead`` ends the sentence that says there is none.

        Raises:
            CliError: there is none.
        """
        cluster = cluster or KubeConfig(instead=instead)
        return cls(cluster, namespace or cluster.namespace)

    def find(self, what: str, *, variables: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the Studies that are meant, the newest first; at least one.

        Raises:
            CliError: there is none, or the cluster can't be asked.
            SpecError: the specification is no YAML.
        """
        path = Path(what)
        if path.is_dir():
            uid = uid_of(path)
            found = [each for each in self.cluster.studies(self.namespace) if each["metadata"]["uid"] == uid]
            if not found:
                raise CliError(
                    Exit.USAGE,
                    f"{what}: its study (uid {uid}) is not in namespace {self.namespace}; "
                    "give the namespace that it ran in with -n, or go on with `merlin restart DIR --local`",
                )
            return found
        if path.is_file():
            return self._of_file(what, variables)
        one = self.cluster.study(self.namespace, what)
        if one is None:
            raise CliError(
                Exit.USAGE,
                f"there is no study {what} in namespace {self.namespace}; "
                f"`kubectl get studies -n {self.namespace}` lists them, -n names another namespace",
            )
        return [one]

    def _of_file(self, what: str, variables: Sequence[str]) -> list[dict[str, Any]]:
        from merlin_cli import source

        found = source.read(what)
        source.variables(variables)  # what is malformed is told as `merlin run` tells it
        if own := found.metadata.get("name"):
            one = self.cluster.study(self.namespace, str(own))
            studies = [one] if one is not None else []
        else:
            name = name_in(found.raw)
            studies = [each for each in self.cluster.studies(self.namespace) if name_in(each["spec"]) == name]
        if not studies:
            raise CliError(
                Exit.USAGE,
                f"{what}: no study in namespace {self.namespace} was made from it; submit it with `merlin run {what}`, "
                "or name another namespace with -n",
            )
        return sorted(studies, key=lambda each: str(each["metadata"]["creationTimestamp"]), reverse=True)


def check(what: str) -> None:
    """Refuse what can only be a path and is none, before any cluster is asked.

    Raises:
        CliError: there is no such file or directory.
    """
    if (os.sep in what or what.endswith((".yaml", ".yml"))) and not Path(what).exists():
        raise CliError(Exit.USAGE, f"there is no file or directory {what}; give one, or the name of a study")


def name_in(spec: Mapping[str, Any]) -> str:
    """Return what a specification is called, as it is written; empty where it does not say."""
    from merlin_study.scalars import spell

    described = spec.get("description")
    name = described.get("name", "") if isinstance(described, Mapping) else ""
    return name if isinstance(name, str) else spell(name)


def uid_of(directory: Path) -> str:
    """Return the uid of the study whose directory this is.

    Raises:
        CliError: no agent has marked it.
    """
    try:
        return Mark.model_validate(json.loads((directory / workspace.INFO / workspace.MARK).read_bytes())).study
    except (OSError, ValueError) as error:
        raise CliError(
            Exit.USAGE, f"{directory}: expected the name of a study or its directory, found no mark of a study there"
        ) from error


def workspaces(file: str, *, variables: Sequence[str] = (), output_path: str | None = None) -> list[Path]:
    """Return the directories of a specification's runs on this machine, the newest first, as upstream finds them.

    Raises:
        CliError: the file can't be read.
        SpecError: the specification was refused.
    """
    return runs_in(*runs_of(file, variables=variables, output_path=output_path))


def runs_of(file: str, *, variables: Sequence[str] = (), output_path: str | None = None) -> tuple[Path, str]:
    """Return the directory below which a specification's runs lie on this machine, and what the study is called.

    Raises:
        CliError: the file can't be read.
        SpecError: the specification was refused.
    """
    from merlin_cli import place, source  # takes as long to import as all else here, and a directory needs none of it

    found = source.read(file)
    spec = source.parse(found, source.variables(variables), output_path=output_path, quiet=True)
    name, below = place.named(spec, found)
    return Path.cwd() / os.path.expandvars(os.path.expanduser(below)), name  # noqa: PTH111 a text, not a path yet


def runs_in(where: Path, name: str) -> list[Path]:
    """Return the directories of a study's runs in a directory, the newest first."""
    try:
        entries = [Path(entry.path) for entry in os.scandir(where) if is_run(Path(entry.path), name)]
    except OSError:
        return []
    runs = [entry for entry in entries if (entry / workspace.INFO / workspace.PLAN_FILE).exists()]
    return sorted(runs, key=lambda run: run.name, reverse=True)


def is_run(directory: Path, name: str) -> bool:
    """Whether a directory is called as a study's run is: its name, and a stamp or, where the plan says so, a name of its own."""
    beginning = workspace.run_directory(name, "")
    if not directory.name.startswith(beginning):
        return False
    if _STAMP.fullmatch(directory.name.removeprefix(beginning)):
        return True
    try:
        return bool(json.loads((directory / workspace.INFO / workspace.PLAN_FILE).read_bytes())["name"] == name)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_over(study: Mapping[str, Any]) -> bool:
    """Whether nothing more of a Study will run."""
    return condition(study, "Finished").get("status") == "True"


def condition(study: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return one of a Study's conditions; an empty one where it has none of this kind yet."""
    held = (study.get("status") or {}).get("conditions") or ()
    return next((each for each in held if each.get("type") == kind), {})
