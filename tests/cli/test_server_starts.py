"""Starts of a server that meet each other, and one that waits for a log that is put back."""

import dataclasses
import itertools
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from merlin_cli import server, serverd, signs, takeover
from merlin_cli.broker import free_port
from merlin_cli.console import Output
from merlin_cli.exits import CliError
from tests.ground import NetworkNamespace
from tests.server.commands import Home

PLACE = server.Place("one", "127.0.0.1", 1, 1, "/nowhere", generation=3, start="a")


def test_of_two_machines_that_wait_for_a_lost_one_one_serves_and_the_other_one_is_told(tmp_path: Path) -> None:
    NetworkNamespace.require()
    with NetworkNamespace() as network:
        home = Home(network, tmp_path)
        home.directory.mkdir(mode=0o700, parents=True)
        lost = server.Place("one", "127.0.0.1", free_port(), free_port(), str(tmp_path / "lost"))
        server._record(home.directory, lost)
        signs.give(home.directory)
        sign = home.directory / signs.ALIVE
        os.utime(sign, (sign.stat().st_atime, sign.stat().st_mtime - signs.STALE + 8))

        def start(host: str) -> str:
            flags = ("--address", "127.0.0.1", "--state", str(tmp_path / f"disk-of-{host}"))
            return home.merlin("server", "start", *flags, code=None, host=host)

        try:
            with ThreadPoolExecutor() as pool:
                said = dict(zip(("two", "three"), pool.map(start, ("two", "three")), strict=True))
            won = [host for host, text in said.items() if "The server runs at" in text]
            assert len(won) == 1, said
            (told,) = (text for host, text in said.items() if host not in won)
            assert any(
                words in " ".join(told.split())
                for words in ("another start of this server", "was started by somebody else", "its server runs on")
            ), told
            known = server.read(home.directory)
            assert known is not None
            assert known.host == won[0]
            assert not (home.directory / takeover.NAME).exists()
        finally:
            for host in ("two", "three"):
                home.merlin("server", "stop", code=None, host=host)


def test_a_start_gives_way_to_one_that_was_written_since_it_looked(tmp_path: Path) -> None:
    server._check_unchanged(tmp_path, None)
    server._record(tmp_path, PLACE)
    with pytest.raises(CliError, match="its server was started by somebody else on one; see"):
        server._check_unchanged(tmp_path, dataclasses.replace(PLACE, start=""))
    server._check_unchanged(tmp_path, PLACE)


def test_a_server_leaves_where_another_start_of_the_same_generation_was_written(tmp_path: Path) -> None:
    server._record(tmp_path, PLACE)
    assert serverd._give_sign(tmp_path, dataclasses.replace(PLACE, pid=7)), "its own, before its pid was known"
    server._record(tmp_path, dataclasses.replace(PLACE, start="b"))
    assert not serverd._give_sign(tmp_path, PLACE)
    assert serverd.main(tmp_path, PLACE.start) == 1


def test_one_start_at_a_time_has_the_right_to_start_and_that_of_a_dead_one_is_set_aside(tmp_path: Path) -> None:
    with takeover.of(tmp_path, "a") as held:
        with (
            pytest.raises(CliError, match=r"another start of this server is under way \(on .*pid \d+\)"),
            takeover.of(tmp_path, "b"),
        ):
            pass
        held.check()
        then = held.path.stat().st_mtime - takeover.STALE
        os.utime(held.path, (then, then))
        with takeover.of(tmp_path, "c") as other:
            with pytest.raises(CliError, match="another start has set it aside"):
                held.check()
            other.check()
    assert list(tmp_path.iterdir()) == []


def test_many_starts_that_find_a_dead_one_do_not_work_at_once(tmp_path: Path) -> None:
    left = tmp_path / takeover.NAME
    left.write_text("x\n")
    os.utime(left, (1, 1))
    inside, together = threading.Semaphore(1), []

    def attempt(number: int) -> int:
        try:
            with takeover.of(tmp_path, str(number)) as held:
                held.check()
                if not inside.acquire(blocking=False):
                    together.append(number)
                    return 1
                time.sleep(0.05)
                inside.release()
                return 1
        except CliError:
            return 0

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(16))) >= 1
    assert together == []


@contextmanager
def an_engine(directory: Path, answer: Callable[[], tuple[int, int]]) -> Iterator[server.Place]:
    """What answers at /healthz with a status and the bytes that were put back, by the directory's own certificate."""
    place = server.Place("h", "127.0.0.1", free_port(), free_port(), str(directory), start="a")
    server._furnish(directory, place)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, put_back = answer()
            body = json.dumps({"put_back": put_back}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", place.port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield place
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_log_that_is_put_back_is_waited_for_while_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "START_TIMEOUT", 4.0)
    (tmp_path / "server.log").touch()
    asked, until = itertools.count(1), time.monotonic() + 6
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        with an_engine(tmp_path, lambda: (503 if time.monotonic() < until else 200, next(asked))) as place:
            server._await_health(tmp_path, place, process, Output())
        assert time.monotonic() >= until
        with (
            an_engine(tmp_path, lambda: (503, 5)) as place,
            pytest.raises(CliError, match="the server does not come up"),
        ):
            server._await_health(tmp_path, place, process, Output())
