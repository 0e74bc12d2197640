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
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console

from merlin_cli import inputs, run, source
from merlin_cli.exits import CliError, Exit
from merlin_cli.place import Place, make, stamp
from merlin_cli.summary import say
from merlin_cli.target import uid_of
from merlin_study import nested, spec, workspace
from merlin_study.compiler import compile_study
from merlin_study.parse import parse_spec
from merlin_study.writer import to_document

PATIENCE: Final = 10.0
"""Seconds of silence after which the user of the step's log is told what the command waits for."""


class Desk:
    """The agent's socket, by the environment of the step that we run in."""

    def __init__(self, path: str, token: str) -> None:
        self._path, self._token = path, token

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Desk | None":
        """Return the agent that runs us; None where we are in no step."""
        path = environ.get(nested.SOCKET, "")
        return cls(path, environ.get(nested.TOKEN, "")) if path else None

    def submit(self, *, name: str, text: str, directory: str) -> nested.Answer:
        """Ask for a study.

        Raises:
            CliError: it was refused, or the agent cannot be reached.
        """
        if len(text) > nested.MAX_LINE // 2:
            raise CliError(
                Exit.REFUSED,
                f"expected a study of at most {nested.MAX_LINE // 2} bytes, found {len(text)}; "
                "put large tables into files and name those",
            )
        request = nested.Request(token=self._token, name=name, spec=text, workspace=directory)
        answer = self._ask(request)
        if answer.refused:
            raise CliError(Exit.REFUSED, f"the study was not started: {answer.refused}")
        return answer

    def command(self, deed: nested.Deed, target: str) -> nested.Answer:
        """Have something done with a study.

        Raises:
            CliError: it was refused, or the agent cannot be reached.
        """
        answer = self._ask(nested.Command(token=self._token, deed=deed, target=target))
        if answer.refused:
            raise CliError(Exit.REFUSED, f"{deed} {target}: {answer.refused}")
        return answer

    def stop(self, queues: Sequence[str]) -> nested.Answer:
        """Have the agents leave that serve our family of studies.

        Raises:
            CliError: it was refused, or the agent cannot be reached.
        """
        answer = self._ask(nested.Stop(token=self._token, queues=tuple(queues)))
        if answer.refused:
            raise CliError(Exit.REFUSED, f"stop-workers: {answer.refused}")
        return answer

    def _ask(self, request: nested.AnyRequest) -> nested.Answer:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(self._path)
                connection.sendall(request.encode() + b"\n")
                line = self._line(connection)
                return nested.Answer.model_validate_json(line)
            except OSError as error:
                raise CliError(
                    Exit.CANNOT_RUN,
                    f"{self._path}: expected the socket of the agent that runs this step, found: {error.strerror}; "
                    "submit from the host that the step began on, or run in place with --local",
                ) from error
            except ValidationError as error:
                raise CliError(Exit.CANNOT_RUN, f"{self._path}: the agent closed the connection unanswered") from error

    @staticmethod
    def _line(connection: socket.socket) -> bytes:
        """The agent answers once the study is safe in the log: that takes as long as the broker is away."""
        received = bytearray()
        connection.settimeout(PATIENCE)
        while not received.endswith(b"\n"):
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                print("merlin: the agent waits for the broker to take the study ...", file=sys.stderr, flush=True)
                connection.settimeout(None)
                continue
            if not piece:
                break
            received += piece
        return bytes(received)


def submit(request: run.Request, desk: Desk, console: Console) -> Exit:
    """Start a study from a step, and say where it will lie.

    Raises:
        SpecError: the study was refused here.
        CliError: wrong usage, refused by the agent, or the directory can't be made.
    """
    if request.slots or request.name:
        raise CliError(Exit.USAGE, "--slots is for --local, and a study that a step starts is named by the step")
    found = source.read(request.spec)
    samples = inputs.samples_file(request.samples_file) if request.samples_file else None
    if samples is not None:
        found = inputs.with_samples(found, f"$(MERLIN_INFO)/{samples.name}")
    place = Place(Path.cwd())
    with place.kept():
        document = _document(request, found, place)
        with _reserved(document, samples, place) as directory:
            name = found.metadata.get("name") or document["description"]["name"]
            answer = desk.submit(name=name, text=json.dumps(document), directory=str(directory))
            if answer.workspace != str(directory):
                _release(directory, samples)
    if answer.known:
        say(console, f"This task has started study {answer.study} before; it is not started again.")
        if answer.changed:
            print("warning: the specification has changed since; what was submitted first counts", file=sys.stderr)
    else:
        say(console, f"Submitted study {answer.study}; it runs by itself from here on.")
    say(console, f"Study workspace: {answer.workspace}")
    return Exit.OK


def command(deed: nested.Deed, targets: Sequence[str], console: Console, desk: Desk | None = None) -> Exit:
    """Cancel, suspend, resume, purge or restart studies, by their names or directories.

    Raises:
        CliError: we are in no step, or one was refused.
    """
    desk = desk or Desk.of(os.environ)
    if desk is None:
        raise CliError(Exit.CANNOT_RUN, f"{deed}: expected to be called by a step of a study")
    for target in targets:
        answer = desk.command(deed, _named(target))
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


def _named(target: str) -> str:
    """A study's uid where its directory is given, else the name as it is."""
    there = Path(target)
    return uid_of(there) if there.exists() else target


def _document(request: run.Request, found: source.Source, place: Place) -> dict[str, Any]:
    """The study as the operator will read it: all that only this place knows stands in it."""
    overrides = source.variables(request.vars)
    parsed, table = run.parsed(request, found, overrides, output_path=run.wished_path(request), place=place)
    if table is not None:
        raise CliError(
            Exit.REFUSED, "global.parameters: so large a table, or one with lists of labels, runs with --local only yet"
        )
    document = to_document(parsed)
    given = document.get("vars", {})  # a provenance file of another run says itself where its specification lay
    document["vars"] = {spec.SPECROOT: found.directory, **given, spec.SUBMIT_PATH: str(Path.cwd())}
    if place.stamp:
        document["runId"] = place.stamp
    return document


@contextlib.contextmanager
def _reserved(document: dict[str, Any], samples: Path | None, place: Place) -> Iterator[Path]:
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
        inputs.furnish(info, samples=samples, document=document, folder=Path(str(document["vars"][spec.SPECROOT])))
        yield directory
    except BaseException:
        _release(directory, samples)
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


def _release(directory: Path, samples: Path | None) -> None:
    """Remove a directory that was only reserved, with what we put there and nothing else."""
    info = directory / workspace.INFO
    with contextlib.suppress(OSError):
        shutil.rmtree(info / workspace.SPECROOT, ignore_errors=True)
        if samples is not None:
            (info / samples.name).unlink(missing_ok=True)
        info.rmdir()
        directory.rmdir()
