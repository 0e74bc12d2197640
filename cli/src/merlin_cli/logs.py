"""``merlin logs DIR`` and ``merlin extract DIR``: what tasks printed, and their files as Merlin lays them out, from any layout.

In the full layout each task's files lie in its directory. Under ``outputs: lean`` they stand in the logs of chunks, under ``packed``
in archives, and ``extract`` writes them where the full layout would have them, and ``MERLIN_FINISHED`` after a success.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merlin_cli import tally, text
from merlin_cli.exits import CliError, Exit
from merlin_study import archive, lean
from merlin_study.archive import Execution
from merlin_study.geometry import Geometry
from merlin_study.outcome import Outcome
from merlin_study.plan import IMPLICIT, Plan
from merlin_study.workspace import FINISHED, Layout

_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """Whose output is wanted: all that is None is not asked for."""

    directory: str
    steps: tuple[str, ...] = ()
    task: int | None = None
    sample: int | None = None
    failed: bool = False


class _Study:
    """A workspace, with the number of its samples."""

    def __init__(self, directory: str) -> None:
        self.root = Path(os.path.abspath(directory))  # noqa: PTH100 symbolic links stay: paths are shown
        self.plan: Plan = tally.read_plan(self.root)
        self.tally = tally.of_workspace(self.plan, self.root)
        table = self.plan.samples
        count = 0 if table is None else table.count or 0
        if self.tally.samples is not None:
            count = self.tally.samples.count
        self.layout = Layout(str(self.root), Geometry(self.plan, count))

    def steps(self, names: tuple[str, ...]) -> Iterator[int]:
        """The steps that are meant.

        Raises:
            CliError: one is none of the study's.
        """
        known = [step.name for step in self.plan.steps]
        for name in names:
            if name not in known:
                raise CliError(Exit.USAGE, f"--steps {name}: the study has no such step; it has {', '.join(known)}")
        return (at for at, name in enumerate(known) if (name in names if names else name not in IMPLICIT))


def show(wanted: Wanted) -> Exit:
    """Print what tasks wrote, each below a line that names it; standard error goes to standard error.

    Raises:
        CliError: the directory is no workspace, or there is no such step.
    """
    study, shown = _Study(wanted.directory), 0
    for step in study.steps(wanted.steps):
        found = _logged if lean.applies(study.plan, step) else _filed
        shown += found(study, step, wanted)
    if not shown:
        print("merlin: no task of that kind has ended", file=sys.stderr)
    return Exit.OK


def extract(directory: str, steps: tuple[str, ...]) -> Exit:
    """Write the files of tasks whose logs hold them.

    Raises:
        CliError: the directory is no workspace, or a file can't be written.
    """
    study, count = _Study(directory), 0
    leaned = [step for step in study.steps(steps) if lean.applies(study.plan, step)]
    try:
        for step in leaned:
            seen: set[tuple[int, bool]] = set()
            archived: dict[int, str] = {}
            for each in _executions(study, step, range(study.layout.geometry.total(step))):
                _write(study, step, each, seen)
                if each.path.endswith(archive.ENDING):
                    archived[each.ran.task] = each.path
                count += 1
            _unpack(study, step, archived)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"{error.filename or directory}: can't be written: {error.strerror}") from error
    if not leaned:
        print("Nothing to extract: each task's files lie in its directory.")
        return Exit.OK
    print(f"Wrote the files of {text.count(count, 'execution')} below {study.root}")
    return Exit.OK


def _write(study: _Study, step: int, each: Execution, seen: set[tuple[int, bool]]) -> None:
    """Write an execution's files; a later one of the same task appends its output, as in the full layout."""
    task = each.ran.task
    directory = study.layout.task_dir(step, task)
    Path(directory).mkdir(parents=True, exist_ok=True)
    if not each.ran.kept:
        names = study.layout.scripts(step, study.layout.geometry.split(step, task)[0])
        which = task, each.opening.restart
        each.lay_out(directory, names, anew=which not in seen)
        seen.add(which)
    if each.ran.outcome is Outcome.SUCCEEDED:
        Path(directory, FINISHED).touch()


def _unpack(study: _Study, step: int, archived: Mapping[int, str]) -> None:
    """Write what tasks left, from the archives that hold the last execution of each."""
    by_archive: dict[str, dict[str, str]] = {}
    for task, path in archived.items():
        directory = study.layout.task_dir(step, task)
        by_archive.setdefault(path, {})[os.path.relpath(directory, study.layout.root)] = directory
    for path, places in by_archive.items():
        archive.unpack(path, places)


def _executions(study: _Study, step: int, tasks: range) -> Iterator[Execution]:
    return archive.executions(study.layout.task_logs(step), tasks)


def _range(study: _Study, step: int, wanted: Wanted) -> range:
    total = study.layout.geometry.total(step)
    return range(total) if wanted.task is None else range(wanted.task, min(wanted.task + 1, total))


def _is_wanted(study: _Study, step: int, wanted: Wanted, task: int) -> bool:
    return wanted.sample is None or study.layout.geometry.split(step, task)[1] == wanted.sample


def _logged(study: _Study, step: int, wanted: Wanted) -> int:
    shown = 0
    for each in _executions(study, step, _range(study, step, wanted)):
        if wanted.failed and not study.tally.failed(step, each.ran.task):
            continue
        if not _is_wanted(study, step, wanted, each.ran.task):
            continue
        how = f"{each.ran.outcome}, exit code {each.ran.code}, attempt {each.opening.attempt} on {each.opening.host}"
        _head(study, step, each.ran.task, how)
        each.copy("out", sys.stdout.buffer)
        sys.stdout.flush()
        each.copy("err", sys.stderr.buffer)
        sys.stderr.flush()
        shown += 1
    return shown


def _filed(study: _Study, step: int, wanted: Wanted) -> int:
    shown = 0
    for task in _range(study, step, wanted):
        if not _is_wanted(study, step, wanted, task):
            continue
        directory = Path(study.layout.task_dir(step, task))
        succeeded = (directory / FINISHED).exists()
        if not directory.is_dir() or (wanted.failed and not study.tally.failed(step, task)):
            continue
        _head(study, step, task, str(Outcome.SUCCEEDED) if succeeded else f"no {FINISHED}")
        names = study.layout.scripts(step, study.layout.geometry.split(step, task)[0])
        for script in (names.cmd, names.restart):
            for output, into in zip(names.outputs(script), (sys.stdout, sys.stderr), strict=True):
                if (directory / output).is_file():  # a task may have put a directory there
                    with (directory / output).open("rb") as file:
                        shutil.copyfileobj(file, into.buffer, _PIECE)
                    into.flush()
        shown += 1
    return shown


def _head(study: _Study, step: int, task: int, how: str) -> None:
    combination, sample = study.layout.geometry.split(step, task)
    label = study.layout.combination_label(step, combination)
    parts = [f"task {task}", *([label] if label else [])]
    if study.plan.steps[step].sampled:
        parts.append(f"sample {sample}")
    print(f"==> {study.plan.steps[step].name}, {', '.join(parts)}: {how}", flush=True)
