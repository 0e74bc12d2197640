"""The process behind ``merlin server``: keeps nats-server and the engine alive until SIGTERM. ``python -m merlin_cli.serverd DIRECTORY``.

It holds a lock in the state's directory for as long as it lives, so a second one never meets the same store. Both children end
with it, even where it is killed.
"""

import asyncio
import fcntl
import os
import signal
import sys
import tempfile
from pathlib import Path

from merlin_cli import guard
from merlin_cli.broker import find_server
from merlin_cli.children import Child, GaveUpError
from merlin_cli.server import LOCK, Place, read


def main(directory: Path) -> int:
    """Run until told to end; return the exit code."""
    place = read(directory)
    assert place is not None, "merlin server start writes it first"
    handle = os.open(Path(place.state) / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"{place.state}: another server works there")
        return 1
    return asyncio.run(_keep(directory, place))


async def _keep(directory: Path, place: Place) -> int:
    with tempfile.TemporaryDirectory(prefix="merlin-") as private:  # the guard removes it where we are killed
        begin = [sys.executable, "-I", "-S", guard.__file__, private, find_server(), "--config"]
        broker = Child("broker", [*begin, str(directory / "nats.conf")], log=directory / "broker.log", note=_say)
        command = [sys.executable, "-P", "-m", "merlin_operator.server", "--directory", str(directory)]
        command += [
            "--state",
            place.state,
            "--broker",
            place.broker,
            "--listen",
            place.listen,
            "--port",
            str(place.port),
        ]
        engine = Child("engine", command, log=directory / "engine.log", note=_say)
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        parts = [asyncio.create_task(stop.wait()), *(asyncio.create_task(each.keep()) for each in (broker, engine))]
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        await engine.stop(10.0)
        await broker.stop(10.0)
        code = 0
        for part in parts:
            if part.done() and isinstance(error := part.exception(), GaveUpError):
                _say(f"{error}\n{error.tail}")
                code = 1
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        return code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
