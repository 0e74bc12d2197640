"""One server process: started, watched, signalled and reaped by its own handle, never by name."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ground.network import inside

# "Dies with its parent" means to the kernel: with the thread that started it. So one thread, which lives as long as the
# test process, starts everything; a server restarted from a worker thread would else die with that worker.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ground-spawner")
_setpriv = shutil.which("setpriv")


class Process:
    """A child that may be killed, frozen and started again; its output is appended to a log file."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Keep what is needed to start it; `env` is the whole environment (None: this one's)."""
        self.argv = [os.fspath(argument) for argument in argv]
        self.log = log
        self.netns = netns
        self.env = env
        self.cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The pid of the running child; `nsenter` and `setpriv` become the program, so it is the program's."""
        assert self._child is not None, f"{self.argv[0]} was not started"
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the child runs (a frozen one does)."""
        return self._child is not None and self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code of a child that ended by itself or by a signal; None while it runs."""
        return None if self._child is None else self._child.poll()

    def start(self) -> None:
        """Start the child in a process group of its own, so that a terminal's Ctrl-C reaches only the test."""
        assert not self.alive, f"{self.argv[0]} runs already"
        self._child = _spawner.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        dies_with_us = [_setpriv, "--pdeathsig", "KILL", "--"] if _setpriv else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                dies_with_us + inside(self.netns, self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                process_group=0,
            )

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child's end and return its exit code."""
        assert self._child is not None, f"{self.argv[0]} was not started"
        return self._child.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like. Also ends a frozen child."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after the grace; nothing where it does not run."""
        if not self.alive:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as behind a partition or on a stalled host."""
        self.signal(signal.SIGSTOP)
        if self.alive:
            # The threads of the child stop one after the other; until the last has, it may still answer.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this child; one that has ended is left alone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def tail(self, lines: int = 20) -> str:
        """The end of the log, for the message of a failure."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def describe(self) -> str:
        """How the child stands, with the end of its log."""
        state = f"runs as {self.pid}" if self.alive else f"ended with {self.returncode}"
        return f"{Path(self.argv[0]).name} {state}; the end of its log:\n{self.tail()}"
