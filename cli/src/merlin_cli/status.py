"""``merlin status`` and ``merlin monitor``: how a study stands, from its workspace alone or from its object in a cluster.

A directory is read as it lies there, running or years old. A name is a Study in a cluster. A specification stands for the
newest of its runs: one whose directory is here, else one in the cluster; with a namespace, one in the cluster.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from merlin_cli import bars, finale, related, remote, summary, tally, target, text
from merlin_cli.desk import Desk
from merlin_cli.exits import CliError, Exit
from merlin_cli.progress import Progress
from merlin_study import packed
from merlin_study.plan import Plan

MONITOR_PATIENCE: Final = 10
"""Times ``--sleep`` that a monitored study may wait for agents, as upstream has it."""


@dataclass(frozen=True)
class Question:
    """Which study is asked about; see `merlin_cli.target`."""

    what: str
    namespace: str | None = None
    variables: tuple[str, ...] = ()
    output_path: str | None = None


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        name: The study's, or its directory's.
        progress: Its counts.
        where: Its workspace; relative where only agents know the root. None: not known yet.
        remarks: What else a user should know, a line each.
        damaged: Lines of its outcome logs that can't be read.
        others: How many older studies of the same specification there are.
    """

    name: str
    progress: Progress
    where: Path | None
    remarks: tuple[str, ...] = ()
    damaged: int = 0
    others: int = 0


def look(question: Question, cluster: target.Cluster | None = None) -> Standing:
    """Return how the study stands now.

    Raises:
        CliError: nothing is meant, or it can't be read.
        SpecError: the specification was refused.
    """
    target.check(question.what)
    path = Path(question.what)
    if path.is_dir() and question.namespace is None:
        return of_directory(path)
    if path.is_file() and question.namespace is None:
        runs = _runs(question)
        if runs:
            return of_directory(runs[0], others=len(runs) - 1)
    return _of_cluster(question, cluster)


def _runs(question: Question) -> list[Path]:
    """Return the directories that a specification means, the newest first: in a step, also where only its agent knows."""
    what, variables, output_path = question.what, question.variables, question.output_path
    if (desk := Desk.of(os.environ)) is not None:
        with contextlib.suppress(CliError):  # on another host than the step's own the agent can't be asked
            runs = related.of_file(what, desk, variables=variables, output_path=output_path)
            return [run.directory for run in runs if run.begun]
    return target.workspaces(what, variables=variables, output_path=output_path)


def of_directory(directory: Path, *, others: int = 0) -> Standing:
    """Return how the study of a workspace stands."""
    there = Path(os.path.abspath(directory))  # noqa: PTH100 symbolic links stay: the path is shown
    if (progress := finale.read(there)) is not None:
        return Standing(there.name, progress, there, others=others)
    plan = tally.read_plan(there)
    progress, damaged = _folded(plan, there)
    remarks = tuple(map(str, packed.readings(plan)))
    return Standing(there.name, progress, there, remarks, damaged=damaged, others=others)


def _of_cluster(question: Question, cluster: target.Cluster | None) -> Standing:
    there = target.There.of(question.namespace, cluster, instead="give the study's directory")
    found = there.find(question.what, variables=question.variables)
    study = found[0]
    progress = remote.progress_of(study)
    where = Path(progress.workspace) if progress.workspace else None
    remarks = tuple(remote.remarks(study))
    return Standing(study["metadata"]["name"], progress, where, remarks, others=len(found) - 1)


def status(question: Question, console: Console, cluster: target.Cluster | None = None) -> Exit:
    """Print a bar and counts for each step, failures, and where the study lies.

    Raises:
        CliError: nothing is meant, or it can't be read.
        SpecError: the specification was refused.
    """
    show(look(question, cluster), console)
    return Exit.OK


def show(standing: Standing, console: Console) -> None:
    """Print a study."""
    progress = standing.progress
    summary.say(console, headline(standing.name, progress), "bold")
    for line in standing.remarks:
        summary.say(console, f"  {line}", "yellow")
    if console.is_terminal:
        console.print(bars.table(progress.steps))
    elif progress.steps:
        summary.counts(console, progress)
    summary.failures(console, progress, standing.where or Path())
    if standing.damaged:
        lines = text.count(standing.damaged, "line")
        print(f"warning: {lines} of the outcome logs can't be read and were left out", file=sys.stderr)
    if standing.others:
        summary.say(console, f"The newest of {standing.others + 1}; name another by its directory or its own name.")
    if standing.where is not None:
        summary.outputs(console, standing.where)


def _folded(plan: Plan, there: Path) -> tuple[Progress, int]:
    """What the outcome logs say, and how many of their lines can't be read."""
    try:
        folded = tally.of_workspace(plan, there)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"can't read {error.filename}: {error.strerror}") from error
    return folded.progress(str(there)), folded.damaged


def headline(name: str, progress: Progress) -> str:
    """Return the study in a sentence."""
    if not progress.finished:
        return f"{name}: not finished; {text.line(progress)}"
    if progress.succeeded:
        return f"{name}: finished; all {text.count(progress.total, 'task')} succeeded"
    how = "cancelled" if progress.cancelled else "finished"
    return f"{name}: {how}; {text.count(progress.unsuccessful)} of {text.count(progress.total, 'task')} did not succeed"


@dataclass(frozen=True)
class Watch:
    """How ``merlin monitor`` looks: the steps that matter (none: all), and seconds between two looks."""

    steps: frozenset[str] = frozenset()
    sleep: float = 60.0
    pause: Callable[[float], None] = time.sleep


def monitor(question: Question, watch: Watch, console: Console, cluster: target.Cluster | None = None) -> Exit:
    """Return once no work remains, so that a batch script keeps its allocation as long as there is some.

    Raises:
        CliError: nothing is meant, it can't be read, or no agent took its work for ten times as long as it sleeps.
        SpecError: the specification was refused.
    """
    display, idle, done = bars.display(console), 0, -1
    try:
        while True:
            standing = look(question, cluster)
            progress = standing.progress
            display.update(progress)
            if _over(standing, watch.steps):
                break
            idle = idle + 1 if progress.done == done and not _moves(progress) else 0
            done = progress.done
            if idle >= MONITOR_PATIENCE:
                raise CliError(
                    Exit.CANNOT_RUN,
                    f"{standing.name}: nothing ran for {text.seconds(idle * watch.sleep)}, though work remains; "
                    f"{progress.waiting_for or 'start agents for it'}",
                )
            watch.pause(watch.sleep)
    finally:
        display.close()
    for line in standing.remarks:
        summary.say(console, f"  {line}", "yellow")
    return Exit.OK if not progress.unsuccessful else Exit.FAILURES


def _over(standing: Standing, steps: frozenset[str]) -> bool:
    progress = standing.progress
    known = {step.name for step in progress.steps}
    if unknown := sorted(steps - known) if known else []:
        raise CliError(
            Exit.USAGE, f"--steps {unknown[0]}: expected steps of {standing.name}: {', '.join(sorted(known))}"
        )
    if progress.finished or not steps:
        return progress.finished
    return bool(known) and all(step.done == step.total for step in progress.steps if step.name in steps)


def _moves(progress: Progress) -> bool:
    return any(step.running or step.retrying for step in progress.steps)
