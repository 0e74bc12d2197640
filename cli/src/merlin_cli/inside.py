"""``merlin run SPEC`` in a step of a study: the agent that runs the step passes the new study on.

Upstream submits a study from where the command stands, and steps count on it: they ``cd`` somewhere first. So a relative
OUTPUT_PATH means the step's present directory, and the new study's directory is made here, at once and by its name: two
studies that are started within a second cannot share one, though the operator makes them later.

The command returns once the submission is safe, as upstream's does; it does not wait for the study. What the study is called
follows from which task asks, so a task that is tried again finds what it started before.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from merlin_cli import bundling, clones, inputs, related, run, source
from merlin_cli.desk import Desk
from merlin_cli.exits import CliError, Exit
from merlin_cli.place import Place, make, stamp
from merlin_cli.summary import say
from merlin_cli.target import uid_of
from merlin_study import nested, spec, workspace
from merlin_study import table as tables
from merlin_study.bundle import Entry
from merlin_study.compiler import compile_study
from merlin_study.parse import parse_spec
from merlin_study.writer import to_document


@dataclass
class Cargo:
    """What goes into a new study's ``merlin_info`` at once: a table of samples, clones, and a copy of its folder's files."""

    samples: Path | None = None
    clones: Sequence[Entry] = ()
    bundle: bool = True


def submit(request: run.Request, desk: Desk, console: Console) -> Exit:
    """Start a study from a step, and say where it will lie.

    Raises:
        SpecError: the study was refused here.
        CliError: wrong usage, refused by the agent, or the directory can't be made.
    """
    if request.slots or request.name:
        raise CliError(Exit.USAGE, "--slots is for --local, and a study that a step starts is named by the step")
    found = source.read(request.spec)
    cargo = Cargo(bundle=request.bundle)
    if request.samples_file:
        cargo.samples = inputs.samples_file(request.samples_file)
        found = inputs.with_samples(found, f"$(MERLIN_INFO)/{cargo.samples.name}")
    if request.clone:
        plain = source.parse(found, source.variables(request.vars), quiet=True)
        found, cargo.clones = clones.fetched(found, plain, "$(MERLIN_INFO)")
    place = Place(Path.cwd())
    with place.kept():
        document = _document(request, found, place)
        with _reserved(document, cargo, place) as directory:
            name = found.metadata.get("name") or document["description"]["name"]
            answer = desk.submit(name=name, text=json.dumps(document), directory=str(directory))
            if answer.workspace != str(directory):
                _release(directory, cargo)
    if answer.known:
        say(console, f"This task has started study {answer.study} before; it is not started again.")
        if answer.changed:
            print("warning: the specification has changed since; what was submitted first counts", file=sys.stderr)
    else:
        say(console, f"Submitted study {answer.study}; it runs by itself from here on.")
    say(console, f"Study workspace: {answer.workspace}")
    return Exit.OK


def command(
    deed: nested.Deed,
    targets: Sequence[str],
    console: Console,
    *,
    variables: Sequence[str] = (),
    desk: Desk | None = None,
) -> Exit:
    """Cancel, suspend, resume, purge or restart studies, by their names, directories or specifications.

    ``variables`` are ``--vars``, where a specification is given.

    Raises:
        CliError: we are in no step, or one was refused.
    """
    desk = desk or Desk.of(os.environ)
    if desk is None:
        raise CliError(Exit.CANNOT_RUN, f"{deed}: expected to be called by a step of a study")
    for target in targets:
        for name in _named(deed, target, variables, desk):
            answer = desk.command(deed, name)
            done = "done" if answer.known else "passed on; the operator will do it"
            say(console, f"{deed} study {answer.study}: {done}.")
    return Exit.OK


def stop_workers(queues: Sequence[str], console: Console, desk: Desk | None = None) -> Exit:
    """Have the agents leave that serve this step's family of studies, or of those some queues.

    Raises:
        CliError: we are in no step, or it was refused.
    """
    desk = desk or Desk.of(os.environ)
    if desk is None:
        raise CliError(Exit.CANNOT_RUN, "stop-workers: expected to be called by a step of a study")
    answer = desk.stop(queues)
    if answer.known:
        say(console, f"Told {answer.agents} agents to leave; they finish what they run.")
    else:
        say(console, "stop-workers: passed on; the operator will do it.")
    return Exit.OK


def _named(deed: nested.Deed, target: str, variables: Sequence[str], desk: Desk) -> list[str]:
    """What the operator knows the studies by that are meant: a name as it is, else a uid."""
    there = Path(target)
    if there.is_file():
        return related.meant(deed, related.of_file(target, desk, variables=variables), target)
    return [uid_of(there) if there.exists() else target]


def _document(request: run.Request, found: source.Source, place: Place) -> dict[str, Any]:
    """The study as the operator will read it: all that only this place knows stands in it."""
    overrides = source.variables(request.vars)
    parsed, table = run.parsed(request, found, overrides, output_path=run.wished_path(request), place=place)
    document = to_document(parsed)
    if table is not None:
        document["parametersFrom"] = tables.inline(table)
    given = document.get("vars", {})  # a provenance file of another run says itself where its specification lay
    document["vars"] = {spec.SPECROOT: found.directory, **given, spec.SUBMIT_PATH: str(Path.cwd())}
    if place.stamp:
        document["runId"] = place.stamp
    return document


@contextlib.contextmanager
def _reserved(document: dict[str, Any], cargo: Cargo, place: Place) -> Iterator[Path]:
    """Make the study's directory, which nobody else has, and name it in the document; remove it where that fails.

    A copy of the files that its steps refer to goes there at once: their folder may lie in the workspace of the study that
    starts this one, and be removed before it.

    Raises:
        SpecError: the study was refused.
        CliError: the directory can't be made, or the study names its own run and that exists.
    """
    directory = _made(document, place)
    try:
        info = directory / workspace.INFO
        info.mkdir()
        folder = Path(str(document["vars"][spec.SPECROOT]))
        inputs.furnish(info, samples=cargo.samples, document=document, folder=folder if cargo.bundle else None)
        below = [replace(entry, path=entry.path.removeprefix(f"{clones.FOLDER}/")) for entry in cargo.clones]
        bundling.write(below, info / clones.FOLDER)
        yield directory
    except BaseException:
        _release(directory, cargo)
        raise


def _made(document: dict[str, Any], place: Place) -> Path:
    own = "runId" in document
    while True:
        document.setdefault("runId", stamp())
        parsed, _ = parse_spec(document)
        directory = Path(workspace.study_root(compile_study(parsed, stamp=stamp()), str(Path.cwd())))
        if place.directory is not None or make(directory, own=own):
            return directory
        del document["runId"]


def _release(directory: Path, cargo: Cargo) -> None:
    """Remove a directory that was only reserved, with what we put there and nothing else."""
    info = directory / workspace.INFO
    with contextlib.suppress(OSError):
        for name in (workspace.SPECROOT, clones.FOLDER):
            shutil.rmtree(info / name, ignore_errors=True)
        if cargo.samples is not None:
            (info / cargo.samples.name).unlink(missing_ok=True)
        info.rmdir()
        directory.rmdir()
