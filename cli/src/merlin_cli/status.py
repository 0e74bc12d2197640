"""``merlin status DIR``: how a study stands, from its workspace alone, running or years old."""

import os
import sys
from pathlib import Path

from rich.console import Console

from merlin_cli import bars, finale, summary, tally, text
from merlin_cli.exits import CliError, Exit
from merlin_cli.progress import Progress


def status(directory: str, console: Console) -> Exit:
    """Print a bar and counts for each step, failures, and where the study lies.

    Raises:
        CliError: the directory is no workspace.
    """
    there = Path(os.path.abspath(directory))  # noqa: PTH100 symbolic links stay: the path is shown
    if there.is_file():
        raise CliError(Exit.USAGE, f"{directory} is a file; give the directory that `merlin run` named as Outputs")
    progress, damaged = finale.read(there), 0
    if progress is None:
        progress, damaged = _folded(there)
    summary.say(console, headline(there.name, progress), "bold")
    if console.is_terminal:
        console.print(bars.table(progress.steps))
    else:
        summary.counts(console, progress)
    summary.failures(console, progress, there)
    if damaged:
        lines = text.count(damaged, "line")
        print(f"warning: {lines} of the outcome logs can't be read and were left out", file=sys.stderr)
    summary.outputs(console, there)
    return Exit.OK


def _folded(there: Path) -> tuple[Progress, int]:
    """What the outcome logs say, and how many of their lines can't be read."""
    plan = tally.read_plan(there)
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
    return (
        f"{name}: finished; {text.count(progress.unsuccessful)} of {text.count(progress.total, 'task')} did not succeed"
    )
