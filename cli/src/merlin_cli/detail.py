"""``merlin detailed-status``: a row for each task of a study, from its workspace, with upstream's filters.

Tasks are found by masks, so a filter that fits few of many millions costs what those few do. Steps and queues choose the steps,
and more of them widen the choice; status, return code and workers choose the tasks, and a task is shown where any of them fits.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from merlin_cli import crew, restart, status, summary, tally, target
from merlin_cli.exits import CliError, Exit
from merlin_study import workspace
from merlin_study.bitmap import Bitmap
from merlin_study.geometry import Geometry
from merlin_study.ledger import Ledger
from merlin_study.outcome import EXIT_CODES, Outcome
from merlin_study.plan import IMPLICIT

WINDOW: Final = 4096
"""Tasks that are looked at side by side."""
PAGED: Final = 50
"""Rows above which a terminal gets a pager."""
_CODES: Final = {
    "SUCCESS": 0,
    "RESTART": EXIT_CODES["MERLIN_RESTART"],
    "SOFT_FAIL": EXIT_CODES["MERLIN_SOFT_FAIL"],
    "HARD_FAIL": EXIT_CODES["MERLIN_HARD_FAIL"],
    "RETRY": EXIT_CODES["MERLIN_RETRY"],
    "STOP_WORKERS": EXIT_CODES["MERLIN_STOP_WORKERS"],
}
_NAMES: Final = {code: name for name, code in _CODES.items()}
UNRECOGNIZED: Final = "UNRECOGNIZED"
"""What upstream calls an exit code that it has no name for; so are signals."""
_STATES: Final = {Outcome.SUCCEEDED: "FINISHED", Outcome.CANCELLED: "CANCELLED"}


@dataclass(frozen=True)
class Selection:
    """Which tasks are shown; nothing: all."""

    steps: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()
    most: int | None = None

    @property
    def of_tasks(self) -> bool:
        """Whether tasks are chosen, not steps only."""
        return bool(self.states or self.codes or self.agents)


@dataclass(frozen=True)
class Row:
    """One task."""

    step: str
    task: int
    directory: str
    state: str
    return_code: str
    queue: str
    agent: str


@dataclass(frozen=True)
class _Group:
    """Tasks of a step that stand alike."""

    state: str
    code: str
    members: Bitmap


class Folded:
    """A workspace's tasks."""

    def __init__(self, directory: Path) -> None:
        """Read a workspace.

        Raises:
            CliError: it is none.
        """
        self.plan, _ = restart.placed(tally.read_plan(directory), directory)
        self.tally = tally.of_workspace(self.plan, directory)
        self._ledger = self.tally.ledger()
        samples = self.tally.samples.count if self.tally.samples is not None else 0
        self._layout = workspace.Layout(str(directory), Geometry(self.plan, samples))

    def rows(self, wanted: Selection) -> Iterator[Row]:
        """Yield the tasks that are wanted, in the order of the steps and their tasks."""
        found = (row for at in self._steps(wanted) for row in self._of_step(at, wanted))
        return itertools.islice(found, wanted.most)

    def _steps(self, wanted: Selection) -> list[int]:
        steps = [at for at, step in enumerate(self.plan.steps) if step.name not in IMPLICIT]
        known = {self.plan.steps[at].name for at in steps}
        if unknown := sorted(wanted.steps - known):
            raise CliError(Exit.USAGE, f"--steps {unknown[0]}: expected steps of the study: {', '.join(sorted(known))}")
        if not wanted.steps and not wanted.queues:
            return steps
        chosen = self.plan.steps
        return [
            at
            for at in steps
            if chosen[at].name in wanted.steps or any(lane.queue in wanted.queues for lane in chosen[at].lanes)
        ]

    def _of_step(self, at: int, wanted: Selection) -> Iterator[Row]:
        total, told = self._layout.geometry.total(at), self.tally.steps[at]
        groups = _groups(self._ledger, at)
        for first in range(0, total, WINDOW):
            width = min(WINDOW, total - first)
            bits = [(group, group.members.read(first, width)) for group in groups]
            over = 0
            for _, members in bits:
                over |= members
            begun = told.begun.read(first, width) & ~over
            never = ((1 << width) - 1) & ~over & ~begun
            bits += [(_Group("RUNNING", "", Bitmap()), begun), (_Group("INITIALIZED", "", Bitmap()), never)]
            agents = [(name, members.read(first, width)) for name, members in told.agents.items()]
            named = _any(members for name, members in agents if name in wanted.agents)
            routed = self._routed(at, first, width, wanted)
            fits = [(group, members & routed & _mask(wanted, group, named)) for group, members in bits]
            yield from self._rows(at, first, [each for each in fits if each[1]], agents)

    def _routed(self, at: int, first: int, width: int, wanted: Selection) -> int:
        """Which tasks are of the queues that are wanted, where a step has several."""
        step, bits = self.plan.steps[at], 0
        if not wanted.queues or step.name in wanted.steps:
            return -1
        for number, lane in enumerate(step.lanes):
            runs = self._layout.geometry.runs(at, number)
            if lane.queue in wanted.queues:
                bits |= -1 if runs is None else runs.mask(first, width)
        return bits

    def _rows(
        self, at: int, first: int, fits: list[tuple[_Group, int]], agents: list[tuple[str, int]]
    ) -> Iterator[Row]:
        step = self.plan.steps[at]
        left = _any(members for _, members in fits)
        while left:
            bit = left & -left
            left ^= bit
            task = first + bit.bit_length() - 1
            group = next(group for group, members in fits if members & bit)
            agent = next((name for name, members in reversed(agents) if members & bit), "")
            directory = self._layout.task_dir(at, task).removeprefix(f"{self._layout.root}/")
            queue = self._layout.geometry.lane(at, task).queue
            yield Row(step.name, task, directory, group.state, group.code, queue, agent)


def _any(masks: Iterator[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _mask(wanted: Selection, group: _Group, named: int) -> int:
    """Which tasks of a group are shown; all bits for all."""
    if not wanted.of_tasks or group.state in wanted.states or group.code.removeprefix("MERLIN_") in wanted.codes:
        return -1
    if UNRECOGNIZED in wanted.codes and group.code.startswith(("exit ", "signal ")):
        return -1
    return named


def _groups(ledger: Ledger, at: int) -> list[_Group]:
    step = ledger.steps[at]
    groups = [_Group("FINISHED", "MERLIN_SUCCESS", step.succeeded)]
    for (outcome, code), members in step.ended.items():
        if len(members):
            groups.append(_Group(_STATES.get(outcome, "FAILED"), _code(code), members))
    return groups


def _code(code: int | None) -> str:
    if code is None:
        return ""
    if code in _NAMES:
        return f"MERLIN_{_NAMES[code]}"
    return f"exit {code}" if code >= 0 else f"signal {-code}"


@dataclass(frozen=True)
class Shown:
    """How rows are shown: through a pager on a terminal, as a table or a block of lines each, or into a file."""

    layout: str = "table"
    pager: bool = True
    dump: str | None = None


def detailed(
    question: status.Question,
    wanted: Selection,
    shown: Shown,
    console: Console,
    cluster: target.Cluster | None = None,
) -> Exit:
    """Print a row for each task that is wanted.

    Raises:
        CliError: nothing is meant, it can't be read, or its workspace is not on this machine.
        SpecError: the specification was refused.
    """
    standing = status.look(question, cluster)
    where = standing.where
    if where is None or not (where / workspace.INFO / workspace.PLAN_FILE).is_file():
        summary.say(console, status.headline(standing.name, standing.progress), "bold")
        summary.failures(console, standing.progress, where or Path())
        place = f"its workspace, {where}, is not on this machine" if where is not None else "it has no workspace yet"
        raise CliError(Exit.CANNOT_RUN, f"{standing.name}: {place}; ask for each task there, with the directory")
    try:
        rows = Folded(where).rows(wanted)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"can't read {error.filename}: {error.strerror}") from error
    if shown.dump is not None:
        crew.write_rows([asdict(row) for row in rows], shown.dump)
        summary.say(console, f"wrote {shown.dump}")
        return Exit.OK
    head = list(itertools.islice(rows, PAGED + 1))
    rest = itertools.chain(head, rows)
    if console.is_terminal and shown.pager and len(head) > PAGED:
        with console.pager(styles=True):
            _print(rest, shown, console)
    else:
        _print(rest, shown, console)
    return Exit.OK


def _print(rows: Iterator[Row], shown: Shown, console: Console) -> None:
    if shown.layout == "default":
        for row in rows:
            summary.say(console, f"{row.step}, task {row.task}: {row.state} {row.return_code}".rstrip(), "bold")
            summary.say(console, f"  in {row.directory}; queue {row.queue}" + (f"; {row.agent}" if row.agent else ""))
        return
    # A table of many rows comes in pieces, each as wide as its own rows need, so that the first is seen at once.
    while piece := list(itertools.islice(rows, WINDOW)):
        table = Table(box=None, header_style="", padding=(0, 1), pad_edge=False)
        for heading in asdict(piece[0]):
            table.add_column(heading.replace("_", " "), no_wrap=True)
        for row in piece:
            table.add_row(*map(str, asdict(row).values()))
        console.print(table, highlight=False, soft_wrap=True)
