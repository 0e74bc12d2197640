"""The helpers without a neighbour: waiting, ports, and what happens where this machine lacks something."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ground import Process, eventually, eventually_async, free_port, missing
from tests.ground.control_plane import BUILD


def test_eventually_returns_the_first_truthy_value() -> None:
    values = iter([0, "", "found"])
    assert eventually(lambda: next(values)) == "found"


def test_eventually_says_what_it_waited_for_and_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"^two tasks run: not within 0.05 s; the last value was \[\]$"):
        eventually(list, timeout=0.05, message="two tasks run")


def test_eventually_async_leaves_the_loop_free() -> None:
    async def scenario() -> str:
        seen: list[str] = []

        async def look() -> list[str]:
            return seen

        asyncio.get_running_loop().call_later(0.05, seen.append, "found")
        return (await eventually_async(look))[0]

    assert asyncio.run(scenario()) == "found"


def test_free_ports_differ_and_are_no_ephemeral_ones() -> None:
    first, second = free_port(), free_port()
    assert first != second
    assert max(first, second) < 32_768
    with socket.create_server(("127.0.0.1", first)):
        pass


def test_what_is_missing_is_a_skip_and_under_ci_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        missing("no such thing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        missing("no such thing")


def test_a_process_ends_when_it_ignores_a_request_and_when_it_is_frozen(tmp_path: Path) -> None:
    stubborn = Process(["bash", "-c", "trap '' TERM; echo ready; read -t 60 <> <(:)"], log=tmp_path / "log")
    stubborn.start()
    eventually(lambda: stubborn.tail() == "ready", message="the trap is set")
    stubborn.pause()
    stubborn.stop(grace=0.1)
    assert stubborn.returncode == -9


def test_given_binaries_are_used_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, BUILD, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    pinned = build("--path")  # nothing is there yet: the cache's folder is named, with its versions
    assert Path(pinned).parent == tmp_path / "cache" / "merlin-control-plane"
    assert "kube-apiserver-v1." in pinned
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch(0o755)
    assert build() == str(tmp_path)
