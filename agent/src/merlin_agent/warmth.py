"""Which scripts a warm interpreter may run: a static check, without files, processes or clock.

A warm bash runs a script as ``( . script )``. That differs from ``bash script`` in a few things: its process number ``$$`` is the
shell's, ``return`` is legal, the call stack has one entry more, and an error in arithmetic ends it where a script goes on. Whoever
uses one of them, or reads in commands that could, gets a started interpreter. The check errs on that side: a word in a comment
or a string counts too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

PROGRAM_WORDS: Final = frozenset(
    {"builtin", "command", "declare", "eval", "exec", "exit", "set", "trap", "unset", ".", ":"}
)
"""What the warm shell's own program calls without ``builtin``: an exported function of that name would come in between."""

_IDENTITY: Final = re.compile(
    r"""
      \$\$ | \$\{\$ | \$\{?_(?![A-Za-z0-9_])    # the shell's process number, the last argument
    | \b(?: trap | return | caller | FUNCNAME | BASH_LINENO | BASH_SUBSHELL | BASH_ARG[CV] | BASH_ARGV0
          | BASH_EXECUTION_STRING | monitor | coproc | fg | bg | jobs | disown | suspend | logout | history | enable
          | (?:SIG)?(?:STOP|TSTP|TTIN|TTOU|QUIT) | ps | pgrep | pkill | pidof | pstree | _merlin_\w* )\b
    | (?<![-\w./])set\b[^\n;|&]*\s[-+][A-Za-z]*[mt]   # job control of its own, the end after one command
    | \b(?:onecmd|execfail)\b                 # a failed exec ends a subshell all the same
    | \b(?:kill|wait)\b[^\n;|&]*%             # a job's number: the warm shell counts the script itself as one
    | \bkill\s+(?:-s\s*)?-?3\b               # SIGQUIT, which a started bash passes over
    | >\|?\s*["']?\$(?:0|\{0|\{?BASH_SOURCE)  # a script that writes on: a started one is read as it runs
    | \b(?:set|declare|typeset)\s*(?:$|[;|&)>\n])    # a listing of all variables
    | \bcompgen\b
    | BASH_SOURCE\[(?!0\])
    | BASH_SOURCE\b(?!\[|[\}"'\s/%\#:-])
    | /proc/(?: self | thread-self | \$ )
    | %\([^)]*\)T                            # printf's time of the shell's start
    | \0
    """,
    re.VERBOSE | re.MULTILINE,
)
"""What tells a forked shell from a started one."""
# Some errors make a script go on with its next line and a subshell end: in arithmetic, in substitutions, on assigning what is read only.
# What is read in at run time could hold such errors. Traces of a sourced script have one `+` more.
_ERRORS: Final = re.compile(
    r"""
      \(\( | \$\[
    | \$\{(?! \#?(?:\w+|[@*\#?!])(?:\[(?:@|\*|0|[1-9]\d{0,17})\])? (?: \} | :?[-+=?] | [%/^,\#] ) )
    | \w\[(?!(?:0|[1-9]\d{0,17})\])[^]\n]*\]\+?=       # 08 is no number
    | \b(?:read|unset|getopts)\b[^\n;|&]*\w\[ | \s-[vRp]\s*["']?\w+\[
    | \b(?: readonly | failglob | eval | source | mapfile | readarray | xtrace | verbose | FUNCNEST )\b
    | (?:^|[;&|(){`!\n]|\b(?:then|do|else|elif|if|while|until|time|command|builtin))\s*\\?\.\s
    | \b(?: declare | typeset | local | export )\s+[-+]
    | (?<![-\w./])set\b[^\n;|&]*\s[-+][A-Za-z]*[xv]
    | \b(?:exit|shift|break|continue)\s+[-+"$\d][^\s;&|)}]*[ \t]+[^\s;&|)}\#<>]       # too many arguments
    | (?<![\$\{\w])(?: E?UID | PPID | SHELLOPTS | BASHOPTS | BASH_VERSINFO )\b
    """,
    re.VERBOSE | re.MULTILINE,
)
_OPTIONS_ELSEWHERE: Final = re.compile(r"(?<![-\w./])set\s+(?!--)[^\n;|&]*\$")
_NAME_TELLS: Final = re.compile(r"\$0|\$\{0|BASH_SOURCE")
"""The script's name: only a bash since 5.0 can be told it."""
_RETURN: Final = re.compile(r"\breturn\b")
_OPTIONS: Final = re.compile(r"-[eu]+")
_PLAIN: Final = frozenset({b"braceexpand", b"hashall", b"interactive-comments", b"pipefail"})
"""Options of all shells (``SHELLOPTS``) that the warm shell's own program can have, too."""
_FUNCTION: Final = re.compile(rb"BASH_FUNC_(.+?)(?:%%|\(\))")
_PYTHON: Final = re.compile(r"python3?(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What a warm interpreter is started as: programs and options that differ need another one.

    ``argv`` is its name and path; ``options`` are bash's own for the script (``-eu``); ``preload`` are Python's modules.
    """

    path: str
    name: str
    kind: str
    options: str = ""
    preload: tuple[str, ...] = ()


def interpreter(
    shell: str, preload: tuple[str, ...], *, which: Callable[[str], str | None] = shutil.which
) -> Interpreter | None:
    """Return what could run a ``#!`` line's scripts warm, None where only a started one can.

    Args:
        shell: What stands behind ``#!``.
        preload: Modules that a warm Python imports; without any, Python is started.
        which: Finds a program as ``env`` would.
    """
    words = shell.split()
    if not words:
        return None
    path: str | None = words[0]
    name, options = words[0], words[1:]
    if os.path.basename(name) == "env" and len(options) == 1 and options[0][0] != "-" and "=" not in options[0]:
        path, name, options = which(options[0]), options[0], []
    if path is None or not os.path.isabs(path) or len(options) > 1:
        return None
    called = os.path.basename(path)
    if called in ("bash", "sh") and os.path.basename(os.path.realpath(path)).startswith("bash"):
        fit = not options or _OPTIONS.fullmatch(options[0])
        return Interpreter(path, name, "bash", "".join(options)) if fit else None
    if preload and not options and _PYTHON.fullmatch(called):
        return Interpreter(path, name, "python", "", preload)
    return None


def may_run(text: str, *, names: bool, functions: frozenset[str] = frozenset()) -> bool:
    """Whether a bash script can't tell a warm shell from a started one.

    Args:
        text: The script.
        names: Whether the shell can be told the script's name.
        functions: Names of exported functions that could tell.
    """
    if _IDENTITY.search(text) or _OPTIONS_ELSEWHERE.search(text) or _ERRORS.search(text):
        return False
    if not names and _NAME_TELLS.search(text):
        return False
    return not functions or not any(re.search(rf"\b{re.escape(name)}\b", text) for name in functions)


def functions_that_tell(environ: Mapping[bytes, bytes]) -> frozenset[str] | None:
    """Return the exported functions that could tell; None where one stands in the warm shell's own way."""
    found = set()
    for key, body in environ.items():
        if match := _FUNCTION.fullmatch(key):
            name = match[1].decode("utf-8", "surrogateescape")
            if name in PROGRAM_WORDS:
                return None
            text = body.decode("utf-8", "surrogateescape")
            if not may_run(_RETURN.sub("", text), names=True):
                found.add(name)
    return frozenset(found)


def options_tell(environ: Mapping[bytes, bytes]) -> bool:
    """Whether an exported ``SHELLOPTS`` gives every bash options that the warm shell's own program can't have: ``errexit`` ends it."""
    return not set(environ.get(b"SHELLOPTS", b"").split(b":")) <= _PLAIN | {b""}


def start_up_tells(text: str) -> str:
    """Return by what a file that every bash reads as it starts (``BASH_ENV``) could do something else each time; empty for nothing.

    Options of the shell that it sets, the warm shell sees itself (`warmbash`).
    """
    found = _IDENTITY.search(_RETURN.sub("", text)) or _NAME_TELLS.search(text)
    return found[0].strip() if found else ""
