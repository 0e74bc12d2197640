"""The machine of a server is lost with its disk; another one goes on, and nothing that ran runs again."""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from merlin_cli import server, signs
from merlin_cli.console import Output
from merlin_cli.exits import CliError
from tests.ground import NetworkNamespace, Process, eventually
from tests.server.commands import Home

TASKS = 100
STUDY = f"""\
description: {{name: long, description: a step with samples}}
study:
- {{name: sim, description: d, run: {{cmd: 'sleep 0.2; echo $(X) >> __ROOT__/ran-$(X)'}}}}
- {{name: count, description: d, run: {{cmd: cat __ROOT__/ran-* | wc -l > n, depends: [sim_*]}}}}
merlin:
  samples: {{generate: {{cmd: seq {TASKS} > $(MERLIN_INFO)/s.csv}}, file: $(MERLIN_INFO)/s.csv, column_labels: [X]}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A user's home on a file system that two machines see."""
    NetworkNamespace.require()
    with NetworkNamespace() as network:
        yield Home(network, tmp_path)


def ran(home: Home) -> int:
    """How many tasks ran."""
    return len(list(home.root.glob("ran-*")))


def start(home: Home, host: str, *flags: str) -> str:
    """Start the server on the machine of that name, with its state on that one's disk."""
    state = str(home.root / f"disk-of-{host}")
    return home.merlin("server", "start", "--address", "127.0.0.1", "--state", state, *flags, host=host)


def lose(home: Home, host: str) -> int:
    """Kill all that a server has on a machine, and empty its disk; time passes until it counts as dead. Return the broker's port."""
    known = json.loads((home.directory / "server.json").read_text())
    os.kill(known["pid"], signal.SIGKILL)
    home.no_listener()
    shutil.rmtree(home.root / f"disk-of-{host}")
    sign = home.directory / signs.ALIVE
    os.utime(sign, (sign.stat().st_atime, sign.stat().st_mtime - signs.STALE))
    return int(known["broker_port"])


def test_a_study_goes_on_elsewhere_when_its_server_is_lost_with_its_disk(home: Home) -> None:
    start(home, "one", "--snapshot-every", "0.2")
    flags = [
        "--credentials",
        home.directory / "site.yaml",
        "--workspace",
        home.root / "ws",
        "--site",
        "here",
        "--slots",
        "2",
    ]
    agents = [
        Process(
            [sys.executable, "-m", "merlin_agent", *map(str, flags)],
            log=home.root / f"agent-{number}.log", netns=home.network.name, env=home.environ,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        for agent in agents:
            agent.start()
        (home.root / "long.yaml").write_text(STUDY.replace("__ROOT__", str(home.root)))
        home.merlin("run", "long.yaml")
        eventually(lambda: ran(home) > TASKS // 5, message="the study is under way")
        copies = home.directory / "snapshots"
        eventually(lambda: any(copies.glob("*/head.json")), message="the log is copied")
        known = ran(home)
        eventually(lambda: ran(home) > known + 8, message="more is done than was copied")
        port = lose(home, "one")
        with home.network.call(socket.socket) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))  # so that agents have to follow to another
            assert "ago, to" in start(home, "two")
        eventually(lambda: home.phase("long-") == "Succeeded", timeout=240, interval=0.5)
    finally:
        for agent in agents:
            agent.stop()
        home.merlin("server", "stop", host="two", code=None)
    (count,) = (home.root / "ws").glob("long_*/count/n")
    assert count.read_text().strip() == str(TASKS), "each task ran once, and none was forgotten"
    assert not home.root.joinpath("disk-of-one").exists()
    log = (home.directory / "engine.log").read_text()
    assert "log put back" in log


def test_a_server_that_answers_or_gives_signs_of_life_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "STALE", 1.5)
    directory = tmp_path / "server"
    directory.mkdir(mode=0o700)
    (directory / "keys.json").write_text(json.dumps({"token": "t", "ca.crt": ""}))
    place = server.Place("elsewhere", "127.0.0.1", 1, 1, str(tmp_path / "state"))

    class Living(Output):
        def print(self, *_: object, **__: object) -> None:
            os.utime(directory / signs.ALIVE, (2**32, 2**32))  # as young as can be, however long this takes

    signs.give(directory)
    with pytest.raises(CliError, match="gives signs of life, but does not answer"):
        server._await_end(directory, place, Living())
    signs.withdraw(directory)
    server._await_end(directory, place, Output())
    assert signs.silent_for(directory) == float("inf")
