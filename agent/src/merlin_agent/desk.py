"""The agent's socket: where the steps of its tasks ask for something.

In a private directory of this agent's, beside the ``merlin`` command that steps find first on their PATH. Who may connect: the
directory has mode 0700 and the socket 0600, and the kernel says who connected (``SO_PEERCRED``): only the agent's own user
is answered. Which task speaks says its token. The path is short, because a socket's may have 107 bytes only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import ValidationError

from merlin_study import nested

_log: Final = logging.getLogger(__name__)

LONGEST_PATH: Final = 107
"""Bytes of a socket's path, as Linux has it (``sun_path`` less its end)."""
PATIENCE: Final = 30.0
"""Seconds in which a request has to be there once somebody has connected."""
_PEER: Final = struct.Struct("3i")
_COMMAND: Final = """\
#!/bin/sh
# The merlin command of the agent that runs this step. Its Python is its own: what the step's environment says of
# Python (PYTHONPATH, PYTHONHOME) means the step's.
{check}exec {python} -E -P -m merlin_cli "$@"
"""
_ABSENT: Final = """\
echo 'merlin: this agent has no merlin command of its own; install it beside it: pip install merlin-cli' >&2
exit 127
"""

Serve = Callable[[nested.AnyRequest], Awaitable[nested.Answer]]


class Desk:
    """A directory with the socket and the command; `open` makes a stand for it, `close` removes all."""

    def __init__(self, *, has_command: bool) -> None:
        """Make the directory and the command in it.

        Args:
            has_command: whether ``merlin_cli`` can be imported here; a step is told so where it cannot.

        Raises:
            OSError: there is no place for it.
        """
        self.directory = _private_directory()
        self.path = f"{self.directory}/agent"
        os.mkdir(f"{self.directory}/bin", 0o700)
        text = _COMMAND.format(check="" if has_command else _ABSENT, python=shlex.quote(sys.executable))
        handle = os.open(f"{self.directory}/bin/merlin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        self._server: asyncio.Server | None = None

    def leftovers(self) -> tuple[str, ...]:
        """Return what is to be removed where the agent is killed: files before their directories."""
        return (self.path, f"{self.directory}/bin/merlin", f"{self.directory}/bin", self.directory)

    def variables(self, path: bytes) -> dict[bytes, bytes]:
        """Return what the environment of every task has of it; ``path`` is the PATH that they would have."""
        own = os.fsencode(f"{self.directory}/bin")
        return {b"PATH": own + b":" + path if path else own, nested.SOCKET.encode(): os.fsencode(self.path)}

    async def open(self, serve: Serve) -> None:
        """Answer requests from now on.

        Raises:
            OSError: the socket can't be made.
        """

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _answer(reader, writer, serve)
            except (OSError, TimeoutError, ValueError) as error:
                _log.info("a step's request was not answered: %s", error or type(error).__name__)
            finally:
                writer.close()

        self._server = await asyncio.start_unix_server(connected, self.path, limit=nested.MAX_LINE)
        os.chmod(self.path, 0o600)

    def close(self) -> None:
        """Answer nobody any more, and remove everything."""
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self.directory, ignore_errors=True)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve) -> None:
    if not _is_own_user(writer.get_extra_info("socket")):
        return
    async with asyncio.timeout(PATIENCE):
        line = await reader.readline()
    try:
        request = nested.decode_request(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        answer = nested.Answer(refused=f"the agent does not understand the request: {place}: {first['msg']}")
    else:
        answer = await serve(request)
    writer.write(answer.encode() + b"\n")
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


def _is_own_user(connection: socket.socket) -> bool:
    """Whether the process at the other end is our user's."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid == os.getuid():
        return True
    _log.warning("a process of user %d connected to the steps' socket and was not answered", uid)
    return False


def _private_directory() -> str:
    """A new directory of mode 0700 whose files can be executed, with a path that a socket may have."""
    problem = OSError("no directory for the steps' socket")
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108 mkdtemp is safe there
        if len(os.fsencode(base)) > LONGEST_PATH - len("/merlin-12345678/agent"):
            continue
        try:
            if not os.statvfs(base).f_flag & os.ST_NOEXEC:
                return tempfile.mkdtemp(prefix="merlin-", dir=base)
        except OSError as error:
            problem = error
    raise problem
