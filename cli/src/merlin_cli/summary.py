"""The last lines of a run: what came of it, what failed and where to look, and where the outputs lie."""

import shlex
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from merlin_cli import text
from merlin_cli.progress import Progress, StepFailure

SHOWN_FAILURES: Final = 3
TAIL_LINES: Final = 5


def show(console: Console, progress: Progress, *, elapsed: float, directory: Path) -> None:
    """Say how a finished study went; the last line names its directory."""
    console.print()
    if progress.succeeded:
        said, style = f"all {text.count(progress.total, 'task')} succeeded", "bold green"
    else:
        said = f"{text.count(progress.unsuccessful)} of {text.count(progress.total, 'task')} did not succeed"
        style = "bold red"
    say(console, f"Finished in {text.seconds(elapsed)}: {said}.", style)
    counts(console, progress)
    failures(console, progress, directory)
    if progress.refused_children:
        say(console, f"{text.count(progress.refused_children)} of the studies that steps asked for did not run.", "red")
    if progress.doubled:
        say(console, f"{text.count(progress.doubled, 'task')} ran twice without need; this is a bug, please report it.")
    outputs(console, directory)


def show_stopped(console: Console, *, done: int, then: str, directory: Path) -> None:
    """Say how far a stopped study came, and how to go on."""
    say(console, f"Stopped with {text.count(done, 'task')} done; {then}", "bold")
    if directory.exists():
        outputs(console, directory)


def outputs(console: Console, directory: Path) -> None:
    """The line that a newcomer looks for."""
    say(console, f"Outputs: {directory}")


def counts(console: Console, progress: Progress) -> None:
    """Print a row for each step with its outcomes; a column only where some step has it."""
    shown = [(name, words) for name, words in text.OUTCOMES if any(getattr(step, name) for step in progress.steps)]
    table = Table(box=None, header_style="", padding=(0, 1), pad_edge=False)
    table.add_column("step", no_wrap=True, overflow="ellipsis", max_width=40)
    for heading in ("tasks", *(words for _, words in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in progress.steps:
        table.add_row(step.name, text.total(step), *(text.count(getattr(step, name)) for name, _ in shown))
    console.print(table, highlight=False)


def failures(console: Console, progress: Progress, directory: Path) -> None:
    """Print the first failures with all that is needed to look into them."""
    for found in progress.first_failures[:SHOWN_FAILURES]:
        failure(console, found, directory)
    unshown = progress.unsuccessful - min(len(progress.first_failures), SHOWN_FAILURES)
    if progress.first_failures and unshown > 0:
        say(console, f"and {text.count(unshown)} more")


def failure(console: Console, found: StepFailure, directory: Path) -> None:
    """Print one failure: step and task, ending, directory, end of standard error."""
    failed = found.failure
    say(console, f"{found.step}, task {failed.task}: {text.how(failed)}", "red")
    if failed.directory:
        say(console, f"  in {directory / failed.directory}")
    for line in failed.tail.splitlines()[-TAIL_LINES:]:
        say(console, f"  | {line}", "dim")


def say(console: Console, line: str, style: str = "") -> None:
    """Print text as it is: no markup, no colours of its own, no folding of paths."""
    console.print(Text(line, style=style), soft_wrap=True, highlight=False)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
