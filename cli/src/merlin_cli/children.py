"""A part of a local run that is kept alive: started, watched, started again when it dies, and ended in good order.

Each child has a session of its own, so that a terminal's Ctrl-C reaches only the command, which ends its children in the
right order. Its standard input is a pipe that nothing is ever written to: the child takes its end for the command's end
(the lifeline), so a command that is killed leaves no process behind. Its standard error goes to a log file that is shown
only where the run has to be given up.

Invariant: at most one process of a child lives at a time, and none after `stop` or `kill` has returned.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

MAX_DEATHS: Final = 10
"""Deaths within `WINDOW` after which a child is given up: it will not get better by itself."""
WINDOW: Final = 60.0
FIRST_DELAY: Final = 0.1
"""Seconds before the first restart; each further one within the window waits twice as long, up to `MAX_DELAY`."""
MAX_DELAY: Final = 3.0
MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes of one line of a child's output: a view of 200 steps with failures is far below."""


class GaveUpError(Exception):
    """A child that no restart will help.

    Attributes:
        tail: The end of its log.
    """

    def __init__(self, message: str, tail: str) -> None:
        super().__init__(message)
        self.tail = tail


class Backoff:
    """Decides how long to wait before a restart, from the times of the deaths alone."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def after_death(self, now: float) -> float | None:
        """Return the seconds to wait, or None where it died more than `MAX_DEATHS` times within the window."""
        self._deaths.append(now)
        while now - self._deaths[0] > WINDOW:
            self._deaths.popleft()
        if len(self._deaths) > MAX_DEATHS:
            return None
        return float(min(FIRST_DELAY * 2 ** (len(self._deaths) - 1), MAX_DELAY))


class Child:
    """One part of the run, by its command line."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        note: Callable[[str], None],
        on_line: Callable[[bytes], None] | None = None,
        hopeless: Collection[int] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what is needed to start it.

        Args:
            name: What the user calls it.
            argv: Its command line; no secrets, since every user of the machine can read it.
            log: Where its standard error is appended, and its standard output unless `on_line` takes that.
            note: Tells the user that it died.
            on_line: Takes each line of its standard output.
            hopeless: Exit codes that mean the same the next time, so that it is given up at once.
            environ: Its environment; None for the command's own.
        """
        self.name, self.argv, self.log = name, list(argv), log
        self._note, self._on_line, self._hopeless = note, on_line, hopeless
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The pid of the running process; None where there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if self._on_line else log,
                stderr=log,
                start_new_session=True,
                env=self._environ,
                limit=MAX_LINE,
            )

    async def ended(self) -> int:
        """Pass on the output of the process until it ends; return its exit code."""
        process = self._process
        assert process is not None, f"the {self.name} was not started: this is a bug, please report it"
        if process.stdout is not None and self._on_line is not None:
            async for line in process.stdout:
                self._on_line(line)
        return await process.wait()

    async def keep(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start it whenever it is not there, until it is stopped.

        Args:
            ready: Awaited after each restart.

        Raises:
            GaveUpError: it died too often.
        """
        backoff = Backoff()
        while not self._stopping:
            if self._process is None or self._process.returncode is not None:
                await self.start()
                if self._stopping:  # it was ended while it started
                    self.kill()
                    return
                if ready is not None:
                    await ready()
            code = await self.ended()
            if self._stopping:
                return
            if code in self._hopeless:
                raise GaveUpError(f"the {self.name} ended ({how(code)})", self.tail())
            delay = backoff.after_death(time.monotonic())
            if delay is None:
                raise GaveUpError(f"the {self.name} died more than {MAX_DEATHS} times within a minute", self.tail())
            self._note(f"The {self.name} died ({how(code)}); starting it again.")
            await asyncio.sleep(delay)

    def let_go(self) -> None:
        """Leave it alone: its end, from now on, is no death."""
        self._stopping = True

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL to its whole session after the grace; it is not started again."""
        self.let_go()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
            except TimeoutError:
                self.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def kill(self) -> None:
        """SIGKILL to its whole session, at once; it is not started again."""
        self.let_go()
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def how(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
