"""``merlin cancel|suspend|resume|purge|restart`` of studies in a cluster: a change of their switches, and nothing else.

The operator does what the switches ask for within seconds; `docs/controlling.md` says what that is. Within a step of a study
the same commands go through the agent (`merlin_cli.inside`).
"""

import secrets
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console

from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say
from merlin_cli.target import Cluster, There, check, is_over
from merlin_study import nested

_FAMILY: Final = ("merlin.dev/root", "merlin.dev/parent")
"""The labels by which a study's descendants are found."""
DONE: Final[Mapping[nested.Deed, str]] = {
    "cancel": "is being cancelled; running tasks get 5 seconds to end",
    "suspend": "starts no further task; what runs goes on. Go on with: merlin resume {name}",
    "resume": "goes on",
    "purge": "drops the tasks that wait; what runs goes on to its end",
    "restart": "runs again what did not succeed",
}
"""What each command says of a study when it is asked for."""


@dataclass(frozen=True)
class Which:
    """Which tasks a restart names; nothing: all that did not succeed."""

    steps: tuple[str, ...] = ()
    tasks: str = ""
    codes: tuple[int, ...] = ()
    dependants: bool = False
    scan: bool = False

    @classmethod
    def of(cls, arguments: Namespace) -> "Which":
        """Take the options of ``merlin restart``."""
        return cls(
            steps=tuple(name for name in arguments.steps if name != "all"),
            tasks=arguments.tasks,
            codes=tuple(arguments.exit_codes),
            dependants=arguments.dependants,
            scan=arguments.scan,
        )

    def request(self) -> dict[str, Any]:
        """Return ``spec.restart``; what an earlier request named is taken back key by key, since patches are merged."""
        return {
            "id": secrets.token_hex(8),
            "steps": list(self.steps) or None,
            "tasks": self.tasks or None,
            "exitCodes": list(self.codes) or None,
            "dependants": self.dependants or None,
            "scan": self.scan or None,
        }


@dataclass(frozen=True)
class Wish:
    """What is to be done, and with which studies.

    Attributes:
        deed: What to do.
        targets: Names, specifications or directories.
        namespace: Where; None for the kubeconfig's.
        variables: ``--vars``, which only have to be well-formed: a study is found by its name as it is written.
        which: The tasks that a restart names.
        sure: Whether nothing needs to be asked.
    """

    deed: nested.Deed
    targets: tuple[str, ...]
    namespace: str | None = None
    variables: tuple[str, ...] = ()
    which: Which = field(default_factory=Which)
    sure: bool = True

    def changes(self) -> dict[str, Any]:
        """Return what it changes in ``spec``."""
        return nested.changes(self.deed, word=secrets.token_hex(8), request=self.which.request())


def steer(wish: Wish, console: Console, cluster: Cluster | None = None) -> Exit:
    """Do it with every study that is meant.

    Raises:
        CliError: no study is meant, the user says no, or the cluster refuses.
    """
    for each in wish.targets:
        check(each)
    there = There.of(wish.namespace, cluster, instead="for a study on this machine see `merlin restart DIR --local`")
    meant = [study for target in wish.targets for study in _meant(wish, there, target)]
    if wish.deed == "purge" and not wish.sure:
        _ask(meant)
    for study in meant:
        name, uid = study["metadata"]["name"], study["metadata"]["uid"]
        _check(wish, study, there)
        there.cluster.change(there.namespace, name, uid, wish.changes())
        say(console, f"study {name} {_said(wish).format(name=name)}.")
    return Exit.OK


def _said(wish: Wish) -> str:
    if wish.deed == "restart" and wish.which != Which():
        return "runs the tasks again that the restart names"
    return DONE[wish.deed]


def _meant(wish: Wish, there: There, target: str) -> list[dict[str, Any]]:
    """A restart is of one study, the newest; the other commands are of all that are not over."""
    found = there.find(target, variables=wish.variables)
    if wish.deed == "restart" or len(found) == 1:
        return found[:1]
    going = [study for study in found if not is_over(study)]
    if not going:
        names = ", ".join(study["metadata"]["name"] for study in found[:5])
        raise CliError(Exit.USAGE, f"{target}: all of its {len(found)} studies are over ({names} …)")
    return going


def _check(wish: Wish, study: Mapping[str, Any], there: There) -> None:
    """Tell at once what the operator could only tell in the study's conditions."""
    name = study["metadata"]["name"]
    if (study.get("status") or {}).get("phase") == "Refused":
        raise CliError(Exit.USAGE, f"study {name} was refused, so nothing of it runs; `merlin status {name}` says why")
    known = [step["name"] for step in study["spec"]["study"]]
    for step in wish.which.steps:
        if step not in known and not any("$(" in each for each in known):
            raise CliError(Exit.USAGE, f"--steps {step}: expected steps of study {name}: {', '.join(known[:20])}")
    if wish.deed == "cancel" and is_over(study) and _has_descendants(study, there):
        return
    if wish.deed != "restart" and is_over(study):
        raise CliError(Exit.USAGE, f"study {name} is over; only `merlin restart {name}` does something with it")


def _has_descendants(study: Mapping[str, Any], there: There) -> bool:
    """Whether anything goes on that a study's steps started, directly or not."""
    uid = study["metadata"]["uid"]
    below = [each for each in there.cluster.studies(there.namespace) if not is_over(each)]
    return any(uid in ((each["metadata"].get("labels") or {}).get(key) for key in _FAMILY) for each in below)


def _ask(studies: list[dict[str, Any]]) -> None:
    """Ask a user who can answer, as upstream does without -f; a script that wants to purge means it."""
    if not sys.stdin.isatty():
        return
    names = ", ".join(study["metadata"]["name"] for study in studies)
    answer = input(f"Drop all tasks that wait of {names}? (y/n): ").strip().lower()
    if answer not in ("y", "yes"):
        raise CliError(Exit.USAGE, "nothing was dropped")
