"""A child is kept alive, given up when it will not live, and ended in good order; nothing outlives the command."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import nats
import pytest

from merlin_cli import guard
from merlin_cli.broker import PORTS, Broker
from merlin_cli.children import MAX_DEATHS, MAX_DELAY, WINDOW, Backoff, Child, GaveUpError, how
from tests.ground.needs import program
from tests.ground.waiting import eventually, eventually_async

T = TypeVar("T")
READS_ITS_LIFELINE = "import sys; print('up', flush=True); sys.stdin.read()"


def run(awaitable: Awaitable[T]) -> T:
    async def within() -> T:
        return await asyncio.wait_for(awaitable, 30)

    return asyncio.run(within())


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody reaps has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_delay_doubles_and_an_hour_of_life_forgets_it() -> None:
    backoff = Backoff()
    delays = [backoff.after_death(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, MAX_DELAY, MAX_DELAY]
    assert backoff.after_death(3600.0) == 0.1


def test_more_deaths_within_the_window_than_allowed_give_it_up() -> None:
    backoff = Backoff()
    assert None not in [backoff.after_death(now * WINDOW / 100) for now in range(MAX_DEATHS)]
    assert backoff.after_death(WINDOW / 2) is None


@pytest.mark.parametrize(
    ("code", "words"), [(3, "exit code 3"), (-9, "SIGKILL"), (-64, "signal 64"), (-99, "signal 99")]
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    if code == -64:
        words = signal.Signals(64).name
    assert how(code) == words


def test_a_killed_child_is_started_again_and_its_lines_are_heard(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        notes: list[str] = []
        ups: list[bytes] = []
        child = Child(
            "engine",
            [sys.executable, "-c", READS_ITS_LIFELINE],
            log=tmp_path / "log",
            note=notes.append,
            on_line=ups.append,
        )
        keeper = asyncio.create_task(child.keep())
        for number in (1, 2, 3):
            await eventually_async(lambda number=number: _is(len(ups) == number))  # type: ignore[misc]
            if number < 3:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
        await child.stop(grace=5)
        await keeper
        assert child.pid is None
        return notes

    assert run(scenario()) == ["The engine died (SIGKILL); starting it again."] * 2


async def _is(value: bool) -> bool:  # noqa: FBT001 what `eventually_async` awaits
    return value


def test_a_child_that_always_dies_is_given_up_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_cli.children.FIRST_DELAY", 0.0)
    argv = [sys.executable, "-S", "-c", "import sys; sys.exit('no way')"]
    child = Child("agent", argv, log=tmp_path / "log", note=lambda _: None)
    with pytest.raises(GaveUpError, match="the agent died more than 10 times") as given_up:
        run(child.keep())
    assert given_up.value.tail.splitlines()[-1] == "no way"


def test_an_exit_code_that_time_does_not_cure_gives_it_up_at_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", "-c", "import sys; sys.exit(4)"]
    notes: list[str] = []
    child = Child("agent", argv, log=tmp_path / "log", note=notes.append, hopeless=frozenset({4}))
    with pytest.raises(GaveUpError, match=r"the agent ended \(exit code 4\)"):
        run(child.keep())
    assert notes == []


def test_a_child_that_ignores_the_polite_way_is_killed_with_its_session(tmp_path: Path) -> None:
    deaf = "trap '' TERM; sleep 1000 & echo $!; wait; wait"

    async def scenario() -> int:
        lines: list[bytes] = []
        child = Child("agent", ["bash", "-c", deaf], log=tmp_path / "log", note=lambda _: None, on_line=lines.append)
        keeper = asyncio.create_task(child.keep())
        await eventually_async(lambda: _is(bool(lines)))
        await child.stop(grace=0.1)
        await keeper
        return int(lines[0])

    grandchild = run(scenario())
    eventually(lambda: gone(grandchild))


def test_the_broker_serves_only_who_has_the_token_and_comes_back_on_its_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        notes: list[str] = []
        broker = Broker(tmp_path, notes.append)
        await broker.start()
        token = eval(broker.credentials.read_text())["token"]
        assert token not in " ".join(broker.child.argv)
        assert {path.name: path.stat().st_mode & 0o777 for path in (broker.credentials, tmp_path / "nats.conf")} == {
            "credentials.json": 0o600,
            "nats.conf": 0o600,
        }
        assert int(broker.url.rpartition(":")[2]) in PORTS
        async with await nats.connect(broker.url, token=token) as client:
            assert client.max_payload == 8 * 1024 * 1024
            await client.jetstream().add_stream(name="kept", subjects=["kept"])
            await client.jetstream().publish("kept", b"word")
        keeper = asyncio.create_task(broker.child.keep(broker.ready))
        first = broker.child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: _is(broker.child.pid not in (None, first)))
        await broker.ready()
        async with await nats.connect(broker.url, token=token) as client:
            assert (await client.jetstream().get_msg("kept", seq=1)).data == b"word"
        await broker.child.stop(grace=5)
        await keeper
        assert notes == ["The broker died (SIGKILL); starting it again."]

    run(scenario())


def test_a_guarded_server_dies_with_the_command_that_was_killed(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret").write_text("token")
    command = [sys.executable, "-I", "-S", guard.__file__, str(private), program("sleep"), "1000"]
    holder = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", holder, *command], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        eventually(lambda: b"1000" in Path(f"/proc/{server}/cmdline").read_bytes().split(b"\0")[1:2])
        parent.kill()
    eventually(lambda: gone(server))
    eventually(lambda: not private.exists())


def test_a_guard_leaves_nothing_behind_when_its_server_ends_first(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    command = [sys.executable, "-I", "-S", guard.__file__, str(private), program("true")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.read() == b""  # the watcher has ended too, else it would hold the pipe
        assert server.wait() == 0
    assert private.exists()
