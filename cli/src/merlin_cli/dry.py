"""``merlin run --dry``: everything that a run would put on disk before its first task starts, and nothing started.

As upstream: the provenance files, the samples (made by their own command where there are none yet), each task's directory
and in it the script, with the restart script where the step has one. The texts are those that an agent writes, from the same
code. What is not built yet does not stand in the way, since nothing runs: it is told, and its tokens stay in the scripts.

Tasks are walked, never listed, so a study of any size takes no more memory than a small one; a line every
few seconds tells how far it is.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from merlin_cli import local, summary, text
from merlin_cli.exits import CliError, Exit
from merlin_study import provenance, workspace
from merlin_study.errors import Fault
from merlin_study.geometry import Geometry
from merlin_study.plan import INFO_STEP, Plan
from merlin_study.workspace import Layout

if TYPE_CHECKING:  # the agent comes with the extra `local`
    from merlin_agent.execute import StepWork

PLAIN_INTERVAL: Final = 3.0
"""Seconds between two lines of progress."""
STRIDE: Final = 256
"""Scripts between two looks at the clock."""


def write(job: local.Job, console: Console, *, missing: Sequence[Fault]) -> Exit:
    """Write the study's directories and scripts.

    Args:
        job: What would run.
        console: Where progress is told.
        missing: What keeps the study from running for real; it is told at the end.

    Raises:
        CliError: it can't be written, or the samples can't be made.
    """
    plan, directory = job.plan, job.directory
    local.check_writable(directory)
    try:
        _provenance(plan, directory, runnable=not missing)
        if job.furnish is not None:
            job.furnish(directory / workspace.INFO)
        layout = Layout(str(directory), Geometry(plan, _samples(plan, directory)), plan.spec_root)
        written = _scripts(layout, console)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"{error.filename or directory}: can't be written: {error.strerror}") from error
    summary.say(console, f"Dry run: {text.count(written, 'task')} written, nothing was run.")
    for fault in missing:
        summary.say(console, f"Would be refused: {fault}")
    summary.outputs(console, directory)
    return Exit.REFUSED if missing else Exit.OK


def _provenance(plan: Plan, directory: Path, *, runnable: bool) -> None:
    """Make ``merlin_info``; with the plan in it, where ``merlin restart`` could go on from here."""
    info = directory / workspace.INFO
    info.mkdir(parents=True)
    for name, content in plan.provenance.items():
        placed = provenance.placed(name, content, root=str(directory), info=str(info))
        (info / name).write_text(placed, newline="")
    if runnable:
        (info / workspace.PLAN_FILE).write_bytes(plan.to_json())


def _samples(plan: Plan, directory: Path) -> int:
    """Make the samples where their file is not there yet; return how many there are."""
    from merlin_agent import rows, sampling
    from merlin_agent.execute import StepWork

    if plan.samples is None:
        return 0
    if plan.samples.count is not None:
        return plan.samples.count
    layout = Layout(str(directory), Geometry(plan, 0), plan.spec_root)
    step = StepWork(layout, 0, rows=None, restart=False)
    file = sampling.sample_file(layout, step)
    script = step.script(0)
    command = script.text
    if not os.path.exists(file) and command.strip():  # noqa: PTH110 a text, as the agent has it
        where = os.path.normpath(directory / step.render(plan.samples.directory))
        _generate(Path(script.path), command, where=where)
    try:
        return sampling.measure(file, len(plan.samples.columns)).count
    except rows.RowError as error:
        raise CliError(Exit.CANNOT_RUN, str(error)) from error


def _generate(script: Path, command: str, *, where: str) -> None:
    from merlin_agent import files

    files.write_script(str(script), "/bin/sh", command, replace=False)
    with script.with_suffix(".out").open("wb") as out, script.with_suffix(".err").open("wb") as err:
        done = subprocess.run([script], cwd=where, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False)
    if done.returncode != 0:
        said = files.read_tail(str(script.with_suffix(".err")), 2000).strip()
        message = f"merlin.samples.generate.cmd ended with exit code {done.returncode} in {where}"
        raise CliError(Exit.CANNOT_RUN, f"{message}; it said:\n{said}" if said else message)


def _scripts(layout: Layout, console: Console) -> int:
    """Write every script, telling how far it is; return how many tasks have theirs."""
    from merlin_agent import rows, sampling
    from merlin_agent.execute import StepWork

    plan, table = layout.plan, None
    if plan.samples is not None and plan.samples.count is None:
        table = rows.open_rows(sampling.sample_file(layout, StepWork(layout, 0, rows=None, restart=False)))
    total = sum(layout.geometry.total(step) for step in _ordinary(plan))
    written, due = 0, time.monotonic() + PLAIN_INTERVAL
    try:
        for step in _ordinary(plan):
            kinds = (False, True) if plan.steps[step].restart else (False,)
            works = [StepWork(layout, step, rows=table, restart=restart) for restart in kinds]
            for task in range(layout.geometry.total(step)):
                _script(works, task)
                written += 1
                if written % STRIDE == 0 and time.monotonic() > due:
                    due = time.monotonic() + PLAIN_INTERVAL
                    summary.say(console, f"{text.count(written)} of {text.count(total, 'task')} written")
    except rows.RowError as error:
        raise CliError(Exit.CANNOT_RUN, str(error)) from error
    return written


def _script(works: Sequence["StepWork"], task: int) -> None:
    from merlin_agent import files

    for work in works:
        script = work.script(task)
        files.make_directory(script.directory)
        text = work.launched(script.text, task, ())
        files.write_script(script.path, script.shell, text, replace=False)


def _ordinary(plan: Plan) -> Iterator[int]:
    """The steps that the user wrote."""
    return (at for at, step in enumerate(plan.steps) if step.name != INFO_STEP)
