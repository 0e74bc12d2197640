"""Which warm interpreter runs a slot's script: at most one of each kind, made when it is first needed.

What can't be told apart from a started script is decided by `warmth`; what a task meets before its script begins (a directory that
is gone, files that can't be opened) makes the slot start it as any other, so that its outcome is the same by construction.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Final

from merlin_agent import warmth
from merlin_agent.launch import Script
from merlin_agent.warmshell import ColdError, WarmShell
from merlin_agent.warmth import Interpreter

_KEPT: Final = 1 << 16
"""Characters of a script whose check is kept."""


class Warm:
    """The warm interpreters of one slot: at most one of each kind, made when they are first needed."""

    def __init__(
        self, environ: Mapping[bytes, bytes], unfit: set[Interpreter], complain: Callable[[str], None]
    ) -> None:
        self._environ, self._unfit, self._complain = environ, unfit, complain
        self._shells: dict[Interpreter, WarmShell] = {}
        self._functions = None if warmth.options_tell(environ) else warmth.functions_that_tell(environ)

    def shell(self, script: Script) -> WarmShell | None:
        """Return a warm interpreter for a script, None where it has to be started."""
        kind = script.warm
        if kind is None or kind in self._unfit or (kind.kind == "bash" and self._functions is None):
            return None
        text = script.text if self._functions else script.checked  # a function may be called as a number is
        shell = self._shells.get(kind)
        functions = self._functions or frozenset()
        if kind.kind == "bash" and not _may_run(text, shell is None or shell.names, functions):
            return None
        if shell is None:
            shell = self._open(kind)
            if shell is None or (kind.kind == "bash" and not shell.names and not _may_run(text, False, frozenset())):
                return None
        return shell

    def _open(self, kind: Interpreter) -> WarmShell | None:
        try:
            _see_that_it_can_be_kept(kind, self._environ)
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


def _may_run(text: str, names: bool, functions: frozenset[str]) -> bool:  # noqa: FBT001 - a key of what is kept
    check = _may_run_kept if len(text) <= _KEPT else warmth.may_run
    return check(text, names=names, functions=functions)


_may_run_kept: Final = functools.lru_cache(maxsize=128)(warmth.may_run)
"""The check takes a third of a millisecond for a page of script, and most scripts were checked before."""


def makers(environ: Mapping[bytes, bytes], complain: Callable[[str], None]) -> Callable[[], Warm]:
    """Return what makes the warm interpreters of each slot; what one finds unfit, none tries again."""
    unfit: set[Interpreter] = set()
    return lambda: Warm(environ, unfit, complain)


def obstacle(shell: str, environ: Mapping[bytes, bytes]) -> str:
    """Return why each script of a ``#!`` line's shell is started here and none runs warm; empty where they may.

    Raises:
        OSError: no processes, memory or descriptors left.
    """
    kind = warmth.interpreter(shell, ())
    if kind is None:
        return "no bash"
    if warmth.options_tell(environ):
        return f"SHELLOPTS={os.fsdecode(environ[b'SHELLOPTS'])}: options that every bash takes over"
    if warmth.functions_that_tell(environ) is None:
        return "a function is exported under the name of a builtin"
    try:
        _see_that_it_can_be_kept(kind, environ)
        WarmShell(kind, environ).close()
    except ColdError as error:
        return str(error)
    return ""


def _see_that_it_can_be_kept(kind: Interpreter, environ: Mapping[bytes, bytes]) -> None:
    """Look at what is known before it is started.

    Raises:
        ColdError: it can't be kept warm here.
    """
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise ColdError("this kernel does not tell a process's children (CONFIG_PROC_CHILDREN)")
    path = environ.get(b"BASH_ENV")
    if not path or kind.kind != "bash" or os.path.basename(kind.name) == "sh":  # nobody else reads it
        return
    named = f"BASH_ENV={os.fsdecode(path)}"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(1 << 20)
    except OSError as error:
        raise ColdError(f"{named}: can't be read: {error.strerror}") from error
    if what := warmth.start_up_tells(text):
        raise ColdError(f"{named}: holds {what!r}, which may do something else in each shell that reads it")
