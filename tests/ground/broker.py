"""A real nats-server with JetStream, for tests that kill it.

The server says itself when it is ready: it writes its ports file once every listener is up, which is after JetStream has
recovered its streams. That file can be read from any network namespace, where a connection could not be made.
"""

import json
import os
import secrets
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

from tests.ground.needs import program
from tests.ground.processes import Process
from tests.ground.waiting import eventually, free_port

MAX_PAYLOAD = 8 * 1024 * 1024


class Credentials(TypedDict, total=False):
    """What `nats.connect` takes beside the address; either a token or a user and a password."""

    token: str
    user: str
    password: str


class Broker:
    """One server on a port and a store that survive its restarts.

    `with Broker() as broker: await nats.connect(broker.url, **broker.credentials)`
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        netns: str | None = None,
        store_limit: str = "",
        extra: str = "",
    ) -> None:
        """Keep what the configuration needs.

        Args:
            directory: where store, configuration and log lie; None makes one that is removed at the end.
            port: None takes a free one.
            token: the shared token; made up where neither it nor `user` is given.
            user: with `password`, instead of a token.
            password: see `user`.
            netns: the network namespace to run in.
            store_limit: what the streams of the user's account may take, such as ``1Gi``; needs a user and a password.
            extra: further lines of nats-server's configuration; with an `authorization` block in it, that one counts.
        """
        self._made = tempfile.TemporaryDirectory(prefix="merlin-broker-") if directory is None else None
        self.directory = Path(self._made.name) if self._made else directory or Path()
        self.port = port or free_port()
        self._credentials = _credentials(token, user, password)
        self.store_limit = store_limit
        self.extra = extra
        self.config = self.directory / "nats.conf"
        self.process = Process(
            [program("nats-server"), "--config", self.config], log=self.directory / "nats.log", netns=netns
        )

    @property
    def url(self) -> str:
        """The address without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> Credentials:
        """What `nats.connect` takes beside the address."""
        return self._credentials

    @property
    def url_with_credentials(self) -> str:
        """The address for a tool that takes nothing else."""
        who = self.credentials.get("token") or f"{self.credentials['user']}:{self.credentials['password']}"
        return f"nats://{who}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _write_secret(self.config, self._configuration())
        self._launch()

    def rotate(self) -> None:
        """Take another token from the next start on; the old one is worth nothing then."""
        self._credentials = _credentials(None, None, None)
        _write_secret(self.config, self._configuration())

    def kill(self) -> None:
        """SIGKILL: acknowledged messages must survive it."""
        self.process.kill()
        self._ports_file.unlink(missing_ok=True)

    def restart(self) -> None:
        """Start again on the same port and store; a server that still runs is stopped first."""
        self.process.stop()
        self._launch()

    def stop(self) -> None:
        """SIGTERM and wait."""
        self.process.stop()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.resume()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; remove the directory if it was made here."""
        self.stop()
        if self._made:
            self._made.cleanup()

    @property
    def _ports_file(self) -> Path:
        return self.directory / f"nats-server_{self.process.pid}.ports"

    def _launch(self) -> None:
        self.process.start()
        try:
            eventually(self._ready, interval=0.005, message="nats-server is ready")
        except AssertionError as error:
            described = self.process.describe()
            self.process.stop()
            raise AssertionError(f"{error}\n{described}") from None

    def _ready(self) -> bool:
        assert self.process.alive, "nats-server ended while it started"
        try:
            ports = json.loads(self._ports_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # not there yet, or half-written
            return False
        return bool(ports["nats"])

    def _configuration(self) -> str:
        lines = [
            f"listen: 127.0.0.1:{self.port}",
            f"max_payload: {MAX_PAYLOAD}",
            f"ports_file_dir: {json.dumps(str(self.directory))}",
            f'jetstream {{ store_dir: {json.dumps(str(self.directory / "store"))}, sync_interval: "always" }}',
        ]
        if self.store_limit:
            user = json.dumps(self.credentials)
            limits = f"max_file: {self.store_limit}, max_memory: 64Mi"
            lines.append(f"accounts {{ MERLIN {{ jetstream {{ {limits} }}, users: [{user}] }} }}")
        elif "authorization" not in self.extra:
            secrets_ = ", ".join(f"{key}: {json.dumps(value)}" for key, value in self.credentials.items())
            lines.append(f"authorization {{ {secrets_} }}")
        return "\n".join([*lines, self.extra, ""])


def _credentials(token: str | None, user: str | None, password: str | None) -> Credentials:
    if user is None:
        return {"token": token or secrets.token_hex(16)}
    assert token is None, "either a token or a user and a password"
    return {"user": user, "password": password or secrets.token_hex(16)}


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
