"""Warm interpreters: one process a slot that forks for each task, instead of a new interpreter for each.

    slot ──"directory"──► warm shell ──fork──► ( cd; exec </dev/null >>out 2>>err; . script )
      ◄──"exit status"──┘         own process group, the script's own name, nothing of ours left in it

The shell forks only; all that a task does happens in its child, so nothing leaks from one to the next. While nothing runs in it the shell
waits for a line; with the agent's end it reads end-of-file and ends. What can't be told apart from a started script is decided by
`warmth`; what a task meets before its script begins (a directory that is gone, files that can't be opened) makes the
slot start it as any other, so that its outcome is the same by construction.

Whom to signal: the shell reaps its children itself, so their numbers could be given to others. A signal therefore stops the shell
first, reads from the kernel who its children are, signals their groups, and lets the shell go on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from merlin_agent import preload, warmth
from merlin_agent.launch import Script
from merlin_agent.warmth import Interpreter
from merlin_study import nested

_READY_WITHIN: Final = 60.0
_FORKS_WITHIN: Final = 1.0
_STOPPED: Final = b"\x1estopped\n"
_ASK_EVERY: Final = 0.1
_TOKEN: Final = nested.TOKEN.encode()
_DEFAULTED: Final = [signal.SIGPIPE, signal.SIGXFSZ]
_REPLY: Final = re.compile(rb"(.*?)\x1e(\d+)\n\Z", re.DOTALL)
_PROGRAM_FD: Final = 3
NAMES_IF = "((BASH_VERSINFO[0] >= 5))"
"""Whether this bash lets a script's name be set (``BASH_ARGV0``)."""
LONGEST_POLL: Final = 3600.0
"""Seconds waited at once: the kernel counts milliseconds in 31 bits, and a walltime may be a month."""

# Run as a file, not with -c: `$-` says which. A child that is stopped (SIGSTOP) makes bash go on with 147 to 150; then `?`
# asks until its real end. When it dies of SIGINT, bash itself
# ends, with 130.
_BASH: Final = """\
exec {fd}<&-
set -m
if {names}; then builtin echo ready 1; else builtin echo ready 0; fi
while IFS= builtin read -r _merlin_d || (($? > 128)); do
if [[ $_merlin_d == '?' ]]; then
if builtin kill -0 %% 2>/dev/null; then
_merlin_r=stopped
else
builtin wait %%
_merlin_r=$?
if ((_merlin_r == 127)); then builtin echo Killed; _merlin_r=137; fi
fi
builtin printf '\\036%s\\n' "$_merlin_r"
continue
elif [[ -z $_merlin_d ]]; then
continue
elif [[ $_merlin_d == =* ]]; then
_merlin_b=${{_merlin_d#=}}
IFS= builtin read -r _merlin_s; IFS= builtin read -r _merlin_o; IFS= builtin read -r _merlin_e; IFS= builtin read -r _merlin_x
continue
fi
_merlin_t=${{_merlin_d%%/*}}
_merlin_d=$_merlin_b/${{_merlin_d#*/}}
(
builtin cd -P -- "$_merlin_d" && command exec </dev/null >>"$_merlin_o" 2>>"$_merlin_e" || {{
builtin printf '\\035\\n'
exit 1
}}
{old}
[[ -z $_merlin_t ]] || builtin export {token}="$_merlin_t"
while [[ -n $_merlin_x ]]; do
builtin export "${{_merlin_x%%$'\\037'*}}"
_merlin_x=${{_merlin_x#*$'\\037'}}
done
set +m
SECONDS=0
if {names}; then
BASH_ARGV0=$_merlin_d/$_merlin_s
unset _merlin_b _merlin_d _merlin_s _merlin_o _merlin_e _merlin_x _merlin_t _merlin_r
{options}
. "$0"
else
builtin printf -v _merlin_s %q "$_merlin_d/$_merlin_s"
eval "unset _merlin_b _merlin_d _merlin_s _merlin_o _merlin_e _merlin_x _merlin_t _merlin_r
{options}
. $_merlin_s"
fi
)
_merlin_r=$?
case $_merlin_r in 14[789]|150)
builtin kill -0 %% 2>/dev/null && _merlin_r=stopped
esac
builtin printf '\\036%s\\n' "$_merlin_r"
done
"""


class ColdError(Exception):
    """The script has not begun and can't here: start it as any other."""


class WarmShell:
    """One warm interpreter; used by one slot's thread, but for `strike`, which the slot guards."""

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
        self._base: tuple[str, ...] | None = None
        self._running = False
        self._struck: set[int] = set()
        self._data = b""
        self._ended = False
        self.pid, self._requests, self._replies = _start(kind, environ)
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
            piece = os.read(self._replies, 4096)
            if not piece:
                raise ColdError((data.decode("utf-8", "replace").splitlines() or ["it ended at once"])[-1])
            data += piece
        return data

    def begin(self, script: Script) -> None:
        """Have a script run.

        Raises:
            ColdError: the shell is gone, or the names can't be told to it.
        """
        directory = script.directory
        own = dict(script.own)
        token = own.pop(_TOKEN, b"").decode("ascii")
        if not script.path.startswith(f"{directory}/"):
            raise ColdError("more than can be told to it")
        parent, _, last = directory.rpartition("/")
        cut = len(directory) + 1
        if any(b"\x1f" in value for value in own.values()):
            raise ColdError("a variable with a unit separator")
        constant = b"".join(name + b"=" + value + b"\x1f" for name, value in own.items())
        base = (parent, script.path[cut:], script.out[cut:], script.err[cut:], os.fsdecode(constant))
        text = f"{token}/{last}\n"
        if base != self._base:
            text = "=" + "\n".join(base) + f"\n{text}"
        data = os.fsencode(text)
        if "\0" in text or text.count("\n") != (1 if base == self._base else 6) or len(data) > select.PIPE_BUF:
            raise ColdError("a name with a line feed")
        self._base = base
        self._running = True
        self._data = b""
        try:
            os.write(self._requests, data)
        except OSError as error:
            raise ColdError("the shell is gone") from error

    def ended_within(self, seconds: float) -> bool:
        """Wait for the script's end, or the shell's; return whether it came."""
        end = time.monotonic() + seconds
        left = seconds
        while True:
            if self._poll.poll(min(max(left, 0.0), LONGEST_POLL) * 1000) and self._heard_end():
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False

    def _heard_end(self) -> bool:
        """Read; return whether a whole reply is there, or none will come. A script that is stopped has not ended."""
        piece = os.read(self._replies, 65536)
        self._ended = not piece
        self._data += piece
        if self._data.endswith(_STOPPED):
            time.sleep(_ASK_EVERY)
            self._data = b""
            with contextlib.suppress(BrokenPipeError):
                os.write(self._requests, b"?\n")
            return False
        return not piece or _REPLY.fullmatch(self._data) is not None

    def end(self) -> int:
        """Wait for the script's end and return its exit code, a signal negated.

        A shell that died of a signal before its task takes the task with it, as if the task's own had.

        Raises:
            ColdError: the script never began.
            OSError: the shell ended by itself.
        """
        while (match := _REPLY.fullmatch(self._data)) is None:
            if self._heard_end() and self._ended:
                return self._death()
        self._data = b""
        self._running = False
        said, code = match[1], int(match[2])
        if b"\x1d" in said:
            raise ColdError(said.decode("utf-8", "replace"))
        if self.kind.kind == "python":
            return os.waitstatus_to_exitcode(code)
        # Of a child that died of a signal the shell tells on its stderr, which is this pipe; a script that exits with
        # 128 + n itself leaves it silent. SIGPIPE it passes over.
        if code > 128 and said:
            return 128 - code
        return code

    @property
    def lives(self) -> bool:
        """Whether it outlived the script that it ran last."""
        return not self._running

    def _death(self) -> int:
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if status is not None and status.si_code == os.CLD_EXITED and status.si_status == 128 + signal.SIGINT:
            return -signal.SIGINT
        if status is None or status.si_code == os.CLD_EXITED:
            raise OSError(errno.ECHILD, f"{self.kind.path}, kept warm, ended by itself")
        return -status.si_status

    def strike(self, number: int) -> None:
        """Signal the running task's group; waits until there is one, or its script has ended."""
        end = time.monotonic() + _FORKS_WITHIN
        while not (groups := self._signal(number)) and not self._poll.poll(0) and time.monotonic() < end:
            time.sleep(0.0005)
        self._struck.update(groups)

    def _signal(self, number: int) -> list[int]:
        """Signal what the shell has forked; it is stopped meanwhile: it can't reap, so the numbers stay the tasks'."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
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
        if self._running:  # it was killed before its task, which may live on in a group of its own
            left |= {pid for pid, group, session in _processes() if session == self.pid and pid == group}
        for group in left:
            end_group(group, session=self.pid)
        os.close(self._requests)
        os.close(self._replies)


class Warm:
    """The warm interpreters of one slot: at most one of each kind, made when they are first needed."""

    def __init__(
        self, environ: Mapping[bytes, bytes], unfit: set[Interpreter], complain: Callable[[str], None]
    ) -> None:
        self._environ, self._unfit, self._complain = environ, unfit, complain
        self._shells: dict[Interpreter, WarmShell] = {}
        self._functions = warmth.functions_that_tell(environ)

    def shell(self, kind: Interpreter, text: str) -> WarmShell | None:
        """Return a warm interpreter for a script, None where it has to be started."""
        if kind in self._unfit or self._functions is None:
            return None
        shell = self._shells.get(kind)
        if kind.kind == "bash" and not warmth.may_run(
            text, names=shell is None or shell.names, functions=self._functions
        ):
            return None
        if shell is None:
            shell = self._open(kind)
            if shell is None or (kind.kind == "bash" and not shell.names and not warmth.may_run(text, names=False)):
                return None
        return shell

    def _open(self, kind: Interpreter) -> WarmShell | None:
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children") or _start_up_tells(self._environ):
            self._unfit.add(kind)
            return None
        try:
            shell = WarmShell(kind, self._environ)
        except ColdError as error:
            self._unfit.add(kind)
            self._complain(f"{kind.path}: its scripts are started one by one, not kept warm: {error}")
            return None
        self._shells[kind] = shell
        return shell

    def drop(self, shell: WarmShell) -> None:
        """End an interpreter that something unusual happened to; the next task gets a new one."""
        if self._shells.pop(shell.kind, None) is not None:
            shell.close()

    def close(self) -> None:
        """End all of them."""
        for shell in list(self._shells.values()):
            self.drop(shell)


def makers(environ: Mapping[bytes, bytes], complain: Callable[[str], None]) -> Callable[[], Warm]:
    """Return what makes the warm interpreters of each slot; what one finds unfit, none tries again."""
    unfit: set[Interpreter] = set()
    return lambda: Warm(environ, unfit, complain)


def end_group(group: int, *, session: int) -> None:
    """Kill what is left of a group whose leader is gone; only processes of the session count as its own."""
    while left := [pid for pid, its, of in _processes() if its == group and of == session]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _start_up_tells(environ: Mapping[bytes, bytes]) -> bool:
    """Whether what every bash reads as it starts (``BASH_ENV``) could do something else each time."""
    path = environ.get(b"BASH_ENV")
    if not path:
        return False
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(1 << 20)
    except OSError:
        return True
    return warmth.start_up_tells(text)


def _start(kind: Interpreter, environ: Mapping[bytes, bytes]) -> tuple[int, int, int]:
    program = (preload.program(kind.preload) if kind.kind == "python" else _bash(kind, environ)).encode()
    reading, requests = os.pipe2(os.O_CLOEXEC)
    replies, writing = os.pipe2(os.O_CLOEXEC)
    source = os.memfd_create("merlin-warm", os.MFD_CLOEXEC)
    held = (reading, writing, source)
    free = max(*held, _PROGRAM_FD) + 1
    try:
        os.write(source, program)
        pid = os.posix_spawn(
            kind.path,
            [kind.name, f"/dev/fd/{_PROGRAM_FD}"],
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
        os.close(requests)
        os.close(replies)
        raise
    finally:
        for handle in held:
            os.close(handle)
    return pid, requests, replies


def _bash(kind: Interpreter, environ: Mapping[bytes, bytes]) -> str:
    before = os.fsdecode(environ.get(b"OLDPWD", b""))
    # `cd` sets it; a started script has what the environment says, where that is a directory.
    old = f"OLDPWD={shlex.quote(before)}" if before and os.path.isdir(before) else "unset OLDPWD; declare -x OLDPWD"
    options = f"set {kind.options}" if kind.options else ":"
    return _BASH.format(fd=_PROGRAM_FD, token=nested.TOKEN, names=NAMES_IF, old=old, options=options)


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
