"""The process behind ``merlin server``: keeps nats-server and the engine alive until SIGTERM. ``python -m merlin_cli.serverd DIRECTORY START``.

It holds a lock in the state's directory for as long as it lives, so a second one never meets the same store. Both children end
with it, even where it is killed. Against one on another machine it gives signs of life in the directory that both share (`merlin_cli.signs`).
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from merlin_cli import guard, signs
from merlin_cli.broker import find_server
from merlin_cli.children import Child, GaveUpError
from merlin_cli.exits import CliError
from merlin_cli.server import LOCK, Place, read

ENGINE_GRACE: Final = 20.0
"""Seconds for the engine to end, with a last copy of the log."""


def main(directory: Path, start: str) -> int:
    """Run until told to end, unless this start was followed by another one already; return the exit code."""
    place = read(directory)
    if place is None or place.start != start:
        _say(f"{directory}: a server was started elsewhere since; leaving")
        return 1
    handle = os.open(Path(place.state) / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"{place.state}: another server works there")
        return 1
    return asyncio.run(_keep(directory, place))


async def _keep(directory: Path, place: Place) -> int:
    """Serve until told to end, or until another machine's server has taken over; stand still while the directory can't be written."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            async with asyncio.timeout(signs.LEASE):
                owns = await asyncio.to_thread(_give_sign, directory, place)
        except (OSError, TimeoutError, CliError) as error:
            _say(f"{directory}: can't be read and written ({str(error) or 'no answer'}); waiting")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(signs.EVERY):
                    await stop.wait()
            continue
        if not owns:
            _say(f"{directory}: a server was started elsewhere since; leaving")
            return 1
        if (code := await _serve(directory, place, stop)) is not None:
            await asyncio.to_thread(signs.withdraw, directory)
            return code
    return 0


async def _serve(directory: Path, place: Place, stop: asyncio.Event) -> int | None:
    """Keep broker and engine until the end; return the exit code, or None where our right to serve is in doubt: then both were killed."""
    with tempfile.TemporaryDirectory(prefix="merlin-") as private:  # the guard removes it where we are killed
        begin = [sys.executable, "-I", "-S", guard.__file__, private, find_server(), "--config"]
        broker = Child("broker", [*begin, str(directory / "nats.conf")], log=directory / "broker.log", note=_say)
        engine = Child("engine", _engine(directory, place), log=directory / "engine.log", note=_say)
        ending = asyncio.create_task(stop.wait())
        doubting = asyncio.create_task(_doubt(directory, place))
        keeping = [asyncio.create_task(each.keep()) for each in (broker, engine)]
        await asyncio.wait([ending, doubting, *keeping], return_when=asyncio.FIRST_COMPLETED)
        code: int | None = 0
        if doubting.done():
            broker.kill()
            engine.kill()
            code = None
        await engine.stop(ENGINE_GRACE)
        await broker.stop(10.0)
        for part in keeping:
            if part.done() and isinstance(error := part.exception(), GaveUpError):
                _say(f"{error}\n{error.tail}")
                code = 1
        for task in (ending, doubting, *keeping):
            task.cancel()
        await asyncio.gather(ending, doubting, *keeping, return_exceptions=True)
        return code


async def _doubt(directory: Path, place: Place) -> None:
    """Give signs of life; return once none could be given for too long, or another server was started for this directory."""
    given = time.clock_gettime(time.CLOCK_BOOTTIME)  # it counts on where the machine sleeps
    giving: asyncio.Task[bool] | None = None
    while time.clock_gettime(time.CLOCK_BOOTTIME) - given < signs.LEASE:
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        giving = giving or asyncio.create_task(asyncio.to_thread(_give_sign, directory, place))
        await asyncio.wait([giving], timeout=signs.EVERY)
        if not giving.done():
            continue  # one that hangs is waited for; no second one is sent after it
        if giving.exception() is None:
            if not giving.result():
                return
            given = began
        giving = None
        await asyncio.sleep(signs.EVERY)
    _say(f"{directory}: could not be written for {signs.LEASE:.0f} s; another machine may have taken over")


def _give_sign(directory: Path, place: Place) -> bool:
    """Give a sign of life, unless another server was started for this directory; return whether it is ours."""
    known = read(directory)
    if known is None or (known.generation, known.start) != (place.generation, place.start):
        return False
    signs.give(directory)
    return True


def _engine(directory: Path, place: Place) -> list[str]:
    options = {
        "directory": directory,
        "broker": place.broker,
        "listen": place.listen,
        "port": place.port,
        "generation": place.generation,
        "every": place.every,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-P", "-m", "merlin_operator.server", *flags]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
