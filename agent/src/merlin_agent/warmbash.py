r"""The program of a warm bash: it reads what to run, line by line, and forks for each.

    =PARENT\x1dSCRIPT\x1dOUT\x1dERR\x1dVARIABLES   what all tasks up to the next such line share
    TOKEN/DIRECTORY                            a task: its directory below the parent
    ...\x18                                    the rest was taken back: answered with `end`

It answers on its standard output, a socket: ``\x1eCODE TIME`` when a task has ended, ``\x1estopped`` when it was stopped; then it
waits for a line on that socket before it looks again. What bash itself says of a task's end stands before the answer.

A forked bash pays for every page of memory that it touches, text included; the shell itself has them at hand. So the shell prepares what
a task inherits (directory, variables, name), and its child does only what nobody else can do for it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Final

from merlin_agent.warmth import Interpreter
from merlin_study import nested

PROGRAM_FD: Final = 3
"""What the shell reads its program from, and then closes."""
NAMES_IF = "((BASH_VERSINFO[0] >= 5))"
"""Whether this bash lets a script's name be set (``BASH_ARGV0``)."""

# Run as a file, not with -c: `$-` says which. Options that a start-up file sets (`BASH_ENV`) would be this program's, too.
_BASH: Final = """\
exec {fd}<&-
case $- in *[!hB]*)
builtin echo "what it reads as it starts sets options of the shell: $-"
builtin exit ;;
esac
set -m
_merlin=()
if {names}; then
builtin echo ready 1
{loop_with_names}
else
builtin echo ready 0
{loop_without}
fi
"""
# A child that is stopped (SIGSTOP) makes bash go on with 147 to 150; then it asks, as often as it is told to, until the child's real
# end. When that dies of SIGINT, bash itself ends, with 130. `read` without a name takes a line as it is.
_LOOP: Final = """\
while builtin read -r || (($? > 128)); do
case $REPLY in
*$'\\030')
builtin printf '\\036end\\n'
continue ;;
'')
continue ;;
=*)
REPLY=${{REPLY#=}}
_merlin[1]=${{REPLY%%$'\\035'*}} REPLY=${{REPLY#*$'\\035'}}
_merlin[2]=${{REPLY%%$'\\035'*}} REPLY=${{REPLY#*$'\\035'}}
_merlin[3]=${{REPLY%%$'\\035'*}} REPLY=${{REPLY#*$'\\035'}}
_merlin[4]=${{REPLY%%$'\\035'*}} REPLY=${{REPLY#*$'\\035'}}
while [[ -n $REPLY ]]; do
case ${{REPLY%%$'\\037'*}} in
*=*) builtin export "${{REPLY%%$'\\037'*}}" ;;
*) unset "${{REPLY%%$'\\037'*}}" ;;
esac
REPLY=${{REPLY#*$'\\037'}}
done
continue ;;
/*)
unset {token} ;;
*)
builtin export {token}="${{REPLY%%/*}}" ;;
esac
REPLY=${{_merlin[1]}}/${{REPLY#*/}}
if builtin cd -P -- "$REPLY"; then
{old}
{name}
(
command exec </dev/null >>"${{_merlin[3]}}" 2>>"${{_merlin[4]}}" || {{
builtin printf '\\035\\n'
exit 1
}}
set +m
SECONDS=0
{script}
)
_merlin[0]=$?
else
builtin printf '\\035\\n'
_merlin[0]=1
fi
case ${{_merlin[0]}} in 14[789]|150)
if builtin kill -0 %% 2>/dev/null; then
while builtin kill -0 %% 2>/dev/null; do
builtin printf '\\036stopped\\n'
builtin read -r -u 1
done
builtin wait %%
_merlin[0]=$?
if ((_merlin[0] == 127)); then builtin echo Killed; _merlin[0]=137; fi
fi
esac
builtin printf '\\036%s %s\\n' "${{_merlin[0]}}" "${{EPOCHREALTIME-}}"
done"""
_NAMED: Final = """\
{clean}
{options}
. "$0\""""
_UNNAMED: Final = """\
builtin printf -v _merlin %q "$REPLY/${{_merlin[2]}}"
{clean_but_name}
eval "unset _merlin
{options}
. $_merlin\""""


def program(kind: Interpreter, environ: Mapping[bytes, bytes]) -> str:
    """Return the program of a warm bash that is started in this environment."""
    before = os.fsdecode(environ.get(b"OLDPWD", b""))
    # `cd` sets it; a started script has what the environment says, where that is a directory.
    old = f"OLDPWD={shlex.quote(before)}" if before and os.path.isdir(before) else "unset OLDPWD; declare -x OLDPWD"
    options = f"set {kind.options}" if kind.options else ":"
    reply = environ.get(b"REPLY")
    again = "unset REPLY" if reply is None else f"REPLY={shlex.quote(os.fsdecode(reply))}"

    def loop(name: str, script: str) -> str:
        own = script.format(
            options=options,
            clean="unset REPLY _merlin" if reply is None else f"{again}\nunset _merlin",
            clean_but_name=again,
        )
        return _LOOP.format(token=nested.TOKEN, old=old, name=name, script=own)

    return _BASH.format(
        fd=PROGRAM_FD,
        names=NAMES_IF,
        loop_with_names=loop("BASH_ARGV0=$REPLY/${_merlin[2]}", _NAMED),
        loop_without=loop(":", _UNNAMED),
    )
