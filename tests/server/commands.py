"""A user's home, and commands there, in a network of its own and on machines of any name."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.ground import NetworkNamespace, eventually

BIN = Path(sys.executable).parent


class Home:
    """A home with a server's directory in it, beside a workspace."""

    def __init__(self, network: NetworkNamespace, root: Path) -> None:
        self.network, self.root, self.home = network, root, root / "home"
        self.directory = self.home / ".merlin" / "server"
        self.home.mkdir()
        self.environ = {**os.environ, "HOME": str(self.home)}
        self.environ.pop("KUBECONFIG", None)

    def merlin(self, *arguments: str, code: int | None = 0, host: str = "") -> str:
        """Run a command, on the machine of that name; ``code`` is what it has to end with, None: anything."""
        machine = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host] if host else []
        command = self.network.enter([*machine, str(BIN / "merlin"), *arguments])
        done = subprocess.run(
            command, env=self.environ, cwd=self.root, capture_output=True, text=True, check=False, timeout=200
        )
        assert code is None or done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def phase(self, study: str) -> str:
        """The phase of the first study whose name contains this; nothing while there is none."""
        return next((line.split()[1] for line in self.merlin("server", "status").splitlines() if study in line), "")

    def no_listener(self) -> None:
        """Return once nobody listens on the server's ports."""
        known = json.loads((self.directory / "server.json").read_text())

        def is_free() -> bool:
            for port in (known["broker_port"], known["port"]):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        return False
            return True

        eventually(lambda: self.network.call(is_free), message="nobody listens any more")
