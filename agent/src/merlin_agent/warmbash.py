r"""The program of a warm bash: it reads what to run, line by line, and forks for each.

    =PARENT\x1dSCRIPT\x1dOUT\x1dERR\x1dVARIABLES   what all tasks up to the next such line share
    TOKEN/DIRECTORY                            a task: its directory below the parent
    ...\x18                                    the rest was taken back: answered with `end`

It answers on its standard output, a socket: ``\x1eCODE TIME`` when a task has ended, ``\x1estopped`` when it was stopped; then it
waits for a line on that socket before it looks again. What bash itself says of a task's end stands before the answer.
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

# Run as a file, not with -c: `$-` says which. A child that is stopped (SIGSTOP) makes bash go on with 147 to 150; then it
# asks, as often as it is told to, until the child's real end. When that dies of SIGINT, bash itself ends, with 130.
_BASH: Final = """\
exec {fd}<&-
set -m
if {names}; then builtin echo ready 1; else builtin echo ready 0; fi
while IFS= builtin read -r _merlin_d || (($? > 128)); do
if [[ $_merlin_d == *$'\\030' ]]; then
builtin printf '\\036end\\n'
continue
elif [[ -z $_merlin_d ]]; then
continue
elif [[ $_merlin_d == =* ]]; then
_merlin_x=${{_merlin_d#=}}
_merlin_b=${{_merlin_x%%$'\\035'*}} _merlin_x=${{_merlin_x#*$'\\035'}}
_merlin_s=${{_merlin_x%%$'\\035'*}} _merlin_x=${{_merlin_x#*$'\\035'}}
_merlin_o=${{_merlin_x%%$'\\035'*}} _merlin_x=${{_merlin_x#*$'\\035'}}
_merlin_e=${{_merlin_x%%$'\\035'*}} _merlin_x=${{_merlin_x#*$'\\035'}}
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
if builtin kill -0 %% 2>/dev/null; then
while builtin kill -0 %% 2>/dev/null; do
builtin printf '\\036stopped\\n'
builtin read -r -u 1 _merlin_r
done
builtin wait %%
_merlin_r=$?
if ((_merlin_r == 127)); then builtin echo Killed; _merlin_r=137; fi
fi
esac
builtin printf '\\036%s %s\\n' "$_merlin_r" "${{EPOCHREALTIME-}}"
done
"""


def program(kind: Interpreter, environ: Mapping[bytes, bytes]) -> str:
    """Return the program of a warm bash that is started in this environment."""
    before = os.fsdecode(environ.get(b"OLDPWD", b""))
    # `cd` sets it; a started script has what the environment says, where that is a directory.
    old = f"OLDPWD={shlex.quote(before)}" if before and os.path.isdir(before) else "unset OLDPWD; declare -x OLDPWD"
    options = f"set {kind.options}" if kind.options else ":"
    return _BASH.format(fd=PROGRAM_FD, token=nested.TOKEN, names=NAMES_IF, old=old, options=options)
