"""A study's progress on the user's screen: one bar a step on a terminal, else one plain line every few seconds.

Colour never carries a meaning alone: whatever is red or green is also said in words, and NO_COLOR is respected (by rich).
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from merlin_cli import text
from merlin_cli.progress import Progress, StepCount

PLAIN_INTERVAL: Final = 3.0
"""Seconds between two plain lines: a log of a day stays readable, and nobody wonders whether it hangs."""
_OTHER_ROWS: Final = 4
"""Rows of a terminal that are not bars: the summary line, a note, the prompt."""


class Display(Protocol):
    """Shows a study while it runs."""

    def update(self, progress: Progress) -> None:
        """Show its present state."""

    def note(self, message: str) -> None:
        """Say something once, above what moves."""

    def close(self) -> None:
        """Leave the last state on the screen."""


class Bars:
    """For a terminal: redrawn in place with every update."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def update(self, progress: Progress) -> None:
        """Redraw."""
        room = max(self._console.size.height - _OTHER_ROWS, 1)
        self._live.update(Group(table(progress.steps, room=room), status_line(progress)), refresh=True)

    def note(self, message: str) -> None:
        """Print above the bars."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


class Lines:
    """For a file or a pipe."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._due: float | None = None
        self._shown = ""

    def update(self, progress: Progress) -> None:
        """Print a line, unless the last one is recent or says the same."""
        now, line = self._clock(), text.line(progress)
        if (self._due is not None and now < self._due and not progress.finished) or line == self._shown:
            return
        self._due, self._shown = now + PLAIN_INTERVAL, line
        self.note(line)

    def note(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left open."""


def display(console: Console) -> Display:
    """Return what fits the console."""
    return Bars(console) if console.is_terminal else Lines(console)


def table(steps: Sequence[StepCount], *, room: int | None = None) -> Group:
    """Return a bar for each step, in the order of the study.

    Args:
        steps: All of them.
        room: How many rows there are; beyond it, steps that are over or not yet begun give way. None: no limit.
    """
    shown = steps if room is None else chosen(steps, room)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
    grid.add_column(width=30)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for step in shown:
        grid.add_row(Text(step.name), bar(step), Text(f"{text.count(step.done)}/{text.total(step)}"), state(step))
    left_out = len(steps) - len(shown)
    return Group(grid, Text(f"and {text.count(left_out, 'step')} more", style="dim")) if left_out else Group(grid)


def bar(step: StepCount) -> ProgressBar:
    """Return a step's bar: red where something did not succeed, green when all did."""
    colour = "red" if step.unsuccessful else "green"
    return ProgressBar(
        total=max(step.total or 0, 1), completed=step.done, width=30, complete_style=colour, finished_style=colour
    )


def state(step: StepCount) -> Text:
    """Return what the bar cannot say: what went wrong, and what goes on."""
    parts = Text()
    if step.unsuccessful:
        parts.append(text.unsuccessful(step), style="bold red")
    elif step.total is not None and step.done == step.total:
        parts.append("done", style="green")
    if step.done != step.total:
        for number, word in ((step.running, "running"), (step.retrying, "to retry"), (step.lost, "lost and repeated")):
            if number:
                parts.append(("; " if len(parts) else "") + f"{text.count(number)} {word}")
    return parts


def status_line(progress: Progress) -> Text:
    """Return the line under the bars."""
    return Text(text.line(progress), style="bold" if progress.finished else "")


def chosen(steps: Sequence[StepCount], room: int) -> list[StepCount]:
    """Return at most ``room`` steps in their order: those in work first, then those with failures, then the next ones."""
    if len(steps) <= room:
        return list(steps)

    def rank(at: int) -> int:
        step = steps[at]
        if step.done == step.total:
            return 1 if step.unsuccessful else 3
        return 0 if text.active(step) else 2

    kept = sorted(sorted(range(len(steps)), key=rank)[: max(room - 1, 1)])
    return [steps[at] for at in kept]
