"""Which studies a specification means in a step: those of its runs that the step can know of, without asking a cluster.

Upstream finds a specification's runs where its ``OUTPUT_PATH`` is, from where the command stands; a step stands elsewhere. So
we look there, beside the study that the step belongs to, and among what that study's steps started, however far down.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from merlin_cli import finale, target
from merlin_cli.desk import Desk
from merlin_cli.exits import CliError, Exit
from merlin_study import nested, workspace

MOST: Final = 10_000
"""Studies of a family that are looked at."""


@dataclass(frozen=True)
class Run:
    """A study: its directory, and what it was submitted as, which is known before anything of it runs."""

    directory: Path
    name: str = ""

    @property
    def begun(self) -> bool:
        """Whether an agent has it."""
        return (self.directory / workspace.INFO / workspace.PLAN_FILE).exists()


def of_file(file: str, desk: Desk, *, variables: Sequence[str] = (), output_path: str | None = None) -> list[Run]:
    """Return a specification's runs, the newest first.

    Raises:
        CliError: the file can't be read, or the agent can't be reached.
        SpecError: the specification was refused.
    """
    where, name = target.runs_of(file, variables=variables, output_path=output_path)
    own = desk.where()
    runs = {each: Run(each) for each in (*target.runs_in(own.parent, name), *target.runs_in(where, name))}
    for run in _started(own):
        if target.is_run(run.directory, name):
            runs[run.directory] = run
    return sorted(runs.values(), key=lambda run: run.directory.name, reverse=True)


def meant(deed: nested.Deed, runs: Sequence[Run], what: str) -> list[str]:
    """Return what the operator knows those by that a command means: a restart the newest, any other all that are not over.

    Raises:
        CliError: there is none.
    """
    if not runs:
        cure = "give its name, as `merlin run` printed it, or its directory"
        raise CliError(Exit.USAGE, f"{what}: no study that was made from it is known to this step; {cure}")
    going = runs[:1] if deed == "restart" else [run for run in runs if finale.read(run.directory) is None]
    if not going:
        raise CliError(Exit.USAGE, f"{what}: all of its {len(runs)} studies are over")
    return [target.uid_of(run.directory) if run.begun else run.name for run in going if run.begun or run.name]


def _started(own: Path) -> Iterator[Run]:
    """Yield what the steps of a study started, and what the steps of those did."""
    waiting, seen = [own], 0
    while waiting and seen < MOST:
        for record in sorted((waiting.pop(0) / workspace.INFO / workspace.SUBMISSIONS).glob("*.json")):
            try:
                asked = nested.Submission.model_validate_json(record.read_bytes())
            except (OSError, ValidationError):
                continue  # cut short, or of another version
            seen += 1
            waiting.append(Path(asked.workspace))
            yield Run(Path(asked.workspace), nested.child_name(asked.name, record.stem))
