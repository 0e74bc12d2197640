"""Which processors a launcher's processes run on beside serial tasks: those that their task was given, on each of its hosts.

``srun`` chooses by itself, and knows nothing of serial tasks. Its ``--cpu-bind`` is no way to tell it: one mask is for all hosts, and a mask outside of
what Slurm gave the step fails it (tried with 22.05). So Slurm runs a script of ours beside each process before that begins (its TaskProlog),
which binds it. A processor that Slurm has shut the step off from (``ConstrainCores``) can't be bound to; then Slurm's own choice stays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from typing import Final

from merlin_agent import files

PROCESSORS: Final = "MERLIN_STEP_PROCESSORS"
"""Says, by host, which processors the step has: ``n1=0,2 n2=1``, or ``@=0,2`` for whichever host it runs on."""
_ANY: Final = "@"
_SCRIPT: Final = f"""\
#!/bin/sh
# Slurm runs this beside each process of a launched step (TaskProlog) and takes what it prints for commands: nothing.
for each in ${PROCESSORS}; do
    case $each in
    "$SLURMD_NODENAME="* | "{_ANY}="*) taskset -p -c "${{each#*=}}" "$SLURM_TASK_PID" > /dev/null 2>&1 ;;
    esac
done
exit 0
"""
_MODE: Final = 0o755
_NAME: Final = f"pin-{hashlib.sha256(_SCRIPT.encode()).hexdigest()[:8]}"
_PROLOG: Final = b"SLURM_TASK_PROLOG"
_EXACT: Final = b"SLURM_EXACT"


def variables(
    pins: Iterable[tuple[str, frozenset[int]]], *, environ: Mapping[str, str], directory: str
) -> dict[bytes, bytes]:
    """Return what the environment of a task gets whose processes ``srun`` starts; nothing where they can't be bound.

    Args:
        pins: See `resources.Share`.
        environ: The agent's environment; who has a prolog of their own keeps it.
        directory: Where the script is written once; all hosts see it.
    """
    said = " ".join(f"{host or _ANY}={','.join(map(str, sorted(cpus)))}" for host, cpus in pins if cpus)
    if not said or _PROLOG.decode() in environ or shutil.which("taskset", path=environ.get("PATH")) is None:
        return {}
    try:
        script = _written(directory)
    except OSError:  # the task itself will say so
        return {}
    return {PROCESSORS.encode(): said.encode(), _PROLOG: os.fsencode(script)}


def shared(own: Mapping[bytes, bytes], pinned: Mapping[bytes, bytes], *, asks: bool) -> dict[bytes, bytes]:
    """Return a task's variables with those that bind its processes.

    Where these are told their processors by us, Slurm need not keep steps apart (``--exact``): under ``ConstrainCores`` it would
    shut them off from these processors. ``asks``: the launch names cores of each process, which means ``--exact``, or GPUs, which Slurm gives out.
    """
    if not pinned:
        return dict(own)
    if asks or _EXACT not in own:
        return {**own, **pinned}
    rest = {name: value for name, value in own.items() if name != _EXACT}
    return {**rest, b"SLURM_OVERLAP": b"1", **pinned}


def _written(directory: str) -> str:
    """Write the script where it is not there yet, and return its path."""
    path = f"{directory}/{_NAME}"
    if not os.path.exists(path):
        files.write_whole(path, _SCRIPT.encode(), mode=_MODE)
    return path
