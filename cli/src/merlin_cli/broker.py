"""The nats-server of a local run: on loopback, for this user alone, gone with the command.

Port and token are made anew for each run. The token stands in files of mode 0600 in a directory of mode 0700, never in a
command line. The server says itself when it is ready: it writes a ports file once JetStream has recovered its store.

The port does not change for the life of the run, so that engine and agent find a restarted server where they left it. It
lies below the range that kernels give to outgoing connections: a client that tries a port of that range again and again
while nobody listens there ends up connected to itself.
"""

import asyncio
import json
import os
import random
import secrets
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Final

from merlin_cli import guard
from merlin_cli.children import Child
from merlin_cli.exits import CliError, Exit

PORTS: Final = range(20_000, 32_000)
MAX_PAYLOAD: Final = "8MB"
START_TIMEOUT: Final = 30.0
_ATTEMPTS: Final = 5
_POLL: Final = 0.01


class Broker:
    """A nats-server with its files in a private directory."""

    def __init__(self, directory: Path, note: Callable[[str], None]) -> None:
        """Write token and credentials; nothing is started.

        Args:
            directory: Private to this run; the guard removes it when the command is killed.
            note: Tells the user that the server died.
        """
        self._directory, self._note, self._program = directory, note, find_server()
        self._token = secrets.token_hex(24)
        self.credentials = directory / "credentials.json"
        write_private(self.credentials, json.dumps({"token": self._token}))
        self.child, self.url = self._on_port(free_port())

    def _on_port(self, port: int) -> tuple[Child, str]:
        """Configure the server for a port; return it with its address."""
        config = self._directory / "nats.conf"
        lines = (
            f"listen: 127.0.0.1:{port}",
            f"max_payload: {MAX_PAYLOAD}",
            f"ports_file_dir: {json.dumps(str(self._directory))}",
            f"jetstream {{ store_dir: {json.dumps(str(self._directory / 'store'))} }}",
            f"authorization {{ token: {self._token} }}",
        )
        write_private(config, "\n".join(lines) + "\n")
        # Isolated and without site packages: the guard needs neither, and starts in half the time.
        start = [sys.executable, "-I", "-S", guard.__file__, str(self._directory)]
        argv = [*start, self._program, "--config", str(config)]
        child = Child("broker", argv, log=self._directory / "broker.log", note=self._note)
        return child, f"nats://127.0.0.1:{port}"

    async def start(self) -> None:
        """Start the server and return when it is ready.

        Raises:
            CliError: it does not come up.
        """
        for _ in range(_ATTEMPTS):
            await self.child.start()
            if await self._comes_up():
                return
            await self.child.stop(grace=1.0)
            said = self.child.tail()
            self.child, self.url = self._on_port(free_port())  # somebody may have taken the port since it was looked at
        raise CliError(Exit.CANNOT_RUN, f"nats-server does not start; the end of what it says:\n{said}")

    async def ready(self) -> None:
        """Return when a restarted server is ready, or has died again."""
        await self._comes_up()

    async def _comes_up(self) -> bool:
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while (pid := self.child.pid) is not None and asyncio.get_running_loop().time() < deadline:
            if (self._directory / f"nats-server_{pid}.ports").exists():
                return True
            await asyncio.sleep(_POLL)
        return False


def find_server() -> str:
    """The path of nats-server: that of the wheel, beside the interpreter, else one on PATH.

    Raises:
        CliError: there is none.
    """
    for directory in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(directory / "nats-server", os.X_OK):
            return str(directory / "nats-server")
    found = shutil.which("nats-server")
    if found is None:
        raise CliError(
            Exit.CANNOT_RUN,
            "--local needs nats-server, and there is none beside this Python or on PATH; "
            "install it with: pip install 'merlin-cli[local]'",
        )
    return found


def free_port(wished: int | None = None) -> int:
    """A port of 127.0.0.1 that nobody listens on: the one that is wished for, if that is free.

    Raises:
        CliError: none was found in a hundred tries.
    """
    for port in (*([] if wished is None else [wished]), *random.sample(PORTS, 100)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise CliError(
        Exit.CANNOT_RUN, f"found no free port of 127.0.0.1 from {PORTS.start} to {PORTS.stop - 1} in 100 tries"
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first moment on; whoever reads it meanwhile finds the old one, or all of this."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
