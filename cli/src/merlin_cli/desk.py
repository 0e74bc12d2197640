"""The agent that runs our step, as its steps reach it: a socket, one line of JSON there and one back."""

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from merlin_cli.exits import CliError, Exit
from merlin_study import nested

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

    def where(self) -> Path:
        """Return the directory of the study whose step we run in.

        Raises:
            CliError: the agent cannot be reached.
        """
        answer = self._ask(nested.Where(token=self._token))
        if answer.refused:
            raise CliError(Exit.REFUSED, answer.refused)
        return Path(answer.workspace)

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
