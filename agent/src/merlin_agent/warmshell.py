"""A warm interpreter: one process that forks for each task, instead of a new interpreter for each.

    slot ──"directory"──► warm shell ──fork──► ( cd; exec </dev/null >>out 2>>err; . script )
      ◄──"exit status"──┘         own process group, the script's own name, nothing of ours left in it

The shell forks only; all that a task does happens in its child, so nothing leaks from one to the next. While nothing runs in it the shell
waits for a line; with the agent's end it reads end-of-file and ends. It may be told several tasks at once, which it runs one after
the other without waiting for anybody. What it has not read yet can be taken back: this side holds the reading end of the pipe, too.

Whom to signal: the shell reaps its children itself, so their numbers could be given to others. A signal therefore stops the shell
first, reads from the kernel who its children are, signals their groups, and lets the shell go on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from merlin_agent import preload, warmbash
from merlin_agent.launch import Script
from merlin_agent.warmth import Interpreter

_READY_WITHIN: Final = 60.0
_FORKS_WITHIN: Final = 1.0
_ASK_EVERY: Final = 0.1
_NAP: Final = 0.004
"""How long is slept while several tasks are in the shell: their ends are then heard together."""
_DEFAULTED: Final = [signal.SIGPIPE, signal.SIGXFSZ]
_REPLY: Final = re.compile(rb"(.*?)\x1e(\d+|end|stopped)(?: ([\d.,]*))?\n", re.DOTALL)
_ODD: Final = re.compile("[\0\n\x18]")
_ROOM: Final = 32 * 1024
"""Bytes told at once: what a pipe takes without blocking."""
LONGEST_POLL: Final = 3600.0
"""Seconds waited at once: the kernel counts milliseconds in 31 bits, and a walltime may be a month."""


class ColdError(Exception):
    """The script has not begun and can't here: start it as any other."""


class Told(NamedTuple):
    """How a script ended: its exit code, a signal negated; ``at``: when, by the system's clock, None where the shell does not say."""

    code: int
    at: float | None


class WarmShell:
    """One warm interpreter; used by one slot's thread, but for `strike` and `take_back`, which the slot guards."""

    def __init__(self, kind: Interpreter, environ: Mapping[bytes, bytes]) -> None:
        """Start it and wait until it is ready.

        Raises:
            ColdError: it can't be used here.
            OSError: no processes, memory or descriptors left.
        """
        self.kind = kind
        self.names = False
        """Whether scripts can be told their names."""
        self.cpus: frozenset[int] = frozenset()
        """The processors that it was bound to after it was started."""
        self._environ = environ
        self._shared: _Shared | None = None
        """What it was told last that its scripts share; None where that is not known."""
        self._told: set[bytes] = set()
        """The variables that tasks had of their own."""
        self._ends: list[int] = []
        self._outstanding = 0
        self._ending = self._dead = False
        self._struck: set[int] = set()
        self._data = b""
        self._heard: deque[tuple[bytes, bytes, bytes | None]] = deque()
        self.pid, self._reading, self._requests, self._replies = _start(kind, environ)
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        try:
            line = self._first_line()
        except BaseException:
            self.close()
            raise
        words = line.split()
        # What the shell's start-up file prints, a started script would print each time.
        if len(words) != 2:
            self.close()
            raise ColdError("what it reads as it starts prints")
        self.names = words[1] != b"0"

    def _first_line(self) -> bytes:
        end = time.monotonic() + _READY_WITHIN
        data = b""
        while not re.search(rb"(?m)^ready \d\n\Z", data):
            if not self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise ColdError("it is not ready in time")
            piece = self._read()
            if not piece:
                raise ColdError((data.decode("utf-8", "replace").splitlines() or ["it ended at once"])[-1])
            data += piece
        return data

    def begin(self, scripts: Sequence[Script]) -> int:
        """Have scripts run one after the other; return how many of them, from the first, it was told.

        Raises:
            ColdError: the shell is gone, or the first one's names can't be told to it.
        """
        told, shared = bytearray(), self._shared
        self._ends = []
        for script in scripts[: 1 if self.kind.kind == "python" else len(scripts)]:
            try:
                now = shared if shared is not None and shared.covers(script) else _Shared.of(script)
                line = now.line_of(script)
                if now is not shared:
                    line = now.line(self._restored(now.own)) + line
                _see_room(len(told) + len(line))
            except ColdError:
                if not self._ends:
                    raise
                break
            told += line
            shared = now
            self._ends.append(len(told))
        self._shared = shared
        if self._poll.poll(0):
            raise ColdError("the shell is gone")
        self._outstanding = len(self._ends)
        os.write(self._requests, told)
        return self._outstanding

    def _restored(self, own: Mapping[bytes, bytes]) -> dict[bytes, bytes | None]:
        """Return what variables are in the environment that earlier tasks had of their own, None for not being there."""
        if self.kind.kind == "python":  # its children set them
            return {}
        restored = {name: self._environ.get(name) for name in self._told if name not in own}
        self._told |= own.keys()
        return restored

    @property
    def busy(self) -> bool:
        """Whether it has yet to say how scripts ended, or that it begins no more of them."""
        return self._outstanding > 0 or self._ending

    def ended_within(self, seconds: float) -> bool:
        """Wait until the first script's end is known, or the shell's; return whether it is."""
        if self.heard:
            return True
        end = time.monotonic() + seconds
        left = seconds
        while not self.heard:
            if self._outstanding > 1 and left > _NAP and not self._poll.poll(0):
                time.sleep(_NAP)
            if self._poll.poll(min(max(left, 0.0), LONGEST_POLL) * 1000):
                self._hear()
            left = end - time.monotonic()
            if left <= 0:
                break
        return self.heard

    @property
    def heard(self) -> bool:
        """Whether the first script's end is known, or the shell's."""
        return self._dead or bool(self._heard)

    def _hear(self) -> None:
        """Read what is there. A script that is stopped has not ended."""
        piece = self._read()
        self._dead = not piece
        data, at = self._data + piece, 0
        while (match := _REPLY.match(data, at)) is not None:
            at = match.end()
            said, word, stamp = match.groups()
            if word == b"stopped":
                time.sleep(_ASK_EVERY)
                with contextlib.suppress(OSError):
                    os.write(self._replies, b"?\n")
            else:
                self._heard.append((said, word, stamp))
        self._data = data[at:]

    def _read(self) -> bytes:
        try:
            return os.read(self._replies, 65536)
        except ConnectionResetError:  # it died with a question of ours unread
            return b""

    def end(self) -> Told | None:
        """Wait for the first script's end and return it; None where no more of them begin.

        A shell that died of a signal before its task takes the task with it, as if the task's own had.

        Raises:
            ColdError: the script never began.
            OSError: the shell ended by itself.
        """
        while not self.ended_within(LONGEST_POLL):
            pass
        if not self._heard:
            self._outstanding = 0
            self._ending = False
            return Told(self._death(), None)
        said, word, at = self._heard.popleft()
        if word == b"end":
            self._outstanding = 0
            self._ending = False
            return None
        self._outstanding -= 1
        if b"\x1d" in said:
            raise ColdError(said.decode("utf-8", "replace"))
        code = int(word)
        if self.kind.kind == "python":
            return Told(os.waitstatus_to_exitcode(code), None)
        # Of a child that died of a signal the shell tells on its stderr, which is this socket; a script that exits with
        # 128 + n itself leaves it silent. SIGPIPE it passes over.
        stamp = float(at.replace(b",", b".")) if at else None  # some languages write a comma
        return Told(128 - code if code > 128 and said else code, stamp)

    @property
    def lives(self) -> bool:
        """Whether it outlived the scripts that it ran last."""
        return not self._dead

    def _death(self) -> int:
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if status is not None and status.si_code == os.CLD_EXITED and status.si_status == 128 + signal.SIGINT:
            return -signal.SIGINT
        if status is None or status.si_code == os.CLD_EXITED:
            raise OSError(errno.ECHILD, f"{self.kind.path}, kept warm, ended by itself")
        return -status.si_status

    def take_back(self) -> int:
        """Take back the scripts that it has not read of; return how many, which are the last ones.

        A line that it has read the beginning of counts as unread, too: it ends in a sign that says so.
        """
        if self.kind.kind == "python" or self._ending:
            return 0
        size = 0
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._reading, 65536):
                size += len(piece)
        self._ending = True
        self._shared = None
        os.write(self._requests, b"\x18\n")
        begun = self._ends[-1] - size if self._ends else 0
        back = sum(end > begun for end in self._ends)
        del self._ends[len(self._ends) - back :]
        return back

    def strike(self, number: int, *, first: bool = False) -> None:
        """Signal the running task's group, and begin no other; waits until there is one, or all have ended.

        ``first``: only where the first script's end is not known yet; called by the slot's thread.
        """
        end = time.monotonic() + _FORKS_WITHIN
        while not (groups := self._signal(number, first=first)) and time.monotonic() < end:
            if not self.busy or (first and self.heard):
                break
            time.sleep(0.0005)
        self._struck.update(groups)

    def _signal(self, number: int, *, first: bool = False) -> list[int]:
        """Signal what the shell has forked; it is stopped meanwhile: it can't reap, so the numbers stay the tasks'."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if first and self.ended_within(0.0):
                return []
            self.take_back()
            groups = self._children()
            for group in groups:
                _signal_group(group, number)
            return groups
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _children(self) -> list[int]:
        try:
            with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
                return [int(word) for word in file.read().split()]
        except OSError:
            return []

    def close(self) -> None:
        """End it and what still runs in it, with what a struck task left behind in its group."""
        left = self._struck | set(self._signal(signal.SIGKILL))
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self.busy or self._dead:  # it was killed before its task, which may live on in a group of its own
            left |= {pid for pid, group, session in _processes() if session == self.pid and pid == group}
        for group in left:
            end_group(group, session=self.pid)
        for handle in (self._reading, self._requests, self._replies):
            os.close(handle)


class _Shared(NamedTuple):
    """What scripts share that run one after the other: the directory above theirs, the ends of their paths, their variables."""

    parent: str
    path: str
    out: str
    err: str
    own: Mapping[bytes, bytes]

    @classmethod
    def of(cls, script: Script) -> _Shared:
        """Return what a script shares."""
        cut = len(script.directory)
        parent = script.directory.rpartition("/")[0]
        return cls(parent, script.path[cut:], script.out[cut:], script.err[cut:], script.own)

    def covers(self, script: Script) -> bool:
        """Whether a script shares it."""
        return self == self.of(script)

    def line(self, restored: Mapping[bytes, bytes | None]) -> bytes:
        """Return the line that tells it; ``restored`` are variables that others had.

        Raises:
            ColdError: it can't be told.
        """
        if not self.path.startswith("/"):
            raise ColdError("more than can be told to it")
        own = [name + b"=" + value for name, value in self.own.items()]
        own += [name if value is None else name + b"=" + value for name, value in restored.items()]
        constant = b"".join(each + b"\x1f" for each in own)
        shared = [self.parent, self.path[1:], self.out[1:], self.err[1:]]
        base = b"\x1d".join([*map(os.fsencode, shared), constant])
        odd = base.count(b"\x1d") != len(shared) or constant.count(b"\x1f") != len(own)
        if odd or any(sign in base for sign in (b"\0", b"\n", b"\x18")):
            raise ColdError("a name or a variable with a control character")
        return b"=" + base + b"\n"

    def line_of(self, script: Script) -> bytes:
        """Return the line that tells what is a script's own.

        Raises:
            ColdError: it can't be told.
        """
        own = script.token + script.directory[len(self.parent) :]
        if _ODD.search(own) or not script.path.startswith(script.directory):
            raise ColdError("a name with a control character, or more than can be told to it")
        return os.fsencode(own) + b"\n"


def _see_room(size: int) -> None:
    """See that so many bytes can be told at once.

    Raises:
        ColdError: they can't.
    """
    if size > _ROOM:
        raise ColdError("more than can be told to it")


def end_group(group: int, *, session: int) -> None:
    """Kill what is left of a group whose leader is gone; only processes of the session count as its own."""
    while left := [pid for pid, its, of in _processes() if its == group and of == session]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _start(kind: Interpreter, environ: Mapping[bytes, bytes]) -> tuple[int, int, int, int]:
    """Return the process, the requests' reading and writing end, and the socket of the replies."""
    text = preload.program(kind.preload) if kind.kind == "python" else warmbash.program(kind, environ)
    program = os.fsencode(text)
    reading, requests = os.pipe2(os.O_CLOEXEC)
    replies, writing = (end.detach() for end in socket.socketpair())
    first = warmbash.PROGRAM_FD
    source = os.memfd_create("merlin-warm", os.MFD_CLOEXEC)
    held = (reading, writing, source)
    free = max(*held, first) + 1
    try:
        os.write(source, program)
        pid = os.posix_spawn(
            kind.path,
            [kind.name, f"/dev/fd/{first}"],
            environ,
            file_actions=(
                # Upwards first: what we hold may itself have one of the low numbers.
                *((os.POSIX_SPAWN_DUP2, handle, free + at) for at, handle in enumerate(held)),
                *((os.POSIX_SPAWN_DUP2, free + at, number) for number, at in enumerate((0, 1, 1, 2))),
                *((os.POSIX_SPAWN_CLOSE, free + at) for at in range(len(held))),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULTED,
        )
    except BaseException:
        for handle in (reading, requests, replies):
            os.close(handle)
        raise
    finally:
        os.close(writing)
        os.close(source)
    # A description of its own: set on the shell's, its own reading would no longer block.
    own = os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(reading)
    return pid, own, requests, replies


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, number)  # forked this very moment: it has no group of its own yet
    except PermissionError:
        pass


def _processes() -> list[tuple[int, int, int]]:
    """Return process, group and session of everything that runs here."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    words = file.read().rpartition(")")[2].split()
                if words[0] != "Z":
                    found.append((int(name), int(words[2]), int(words[3])))
    return found
