"""How a task's script becomes a process: the seam where other ways of starting (a warm shell, ``srun``) come in.

The script is executed itself, so its ``#!`` line decides, as upstream. What a start costs is the agent's speed: the kernel's
``posix_spawn`` shares the parent's memory until the script runs (no copying of page tables) and opens the output files in
the child. It knows no directory, so each slot's thread leaves the process's common one (``unshare(CLONE_FS)``, which needs no
privilege) and goes to the task's itself. Where that is forbidden, `subprocess` does it more slowly.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from merlin_agent.warmth import Interpreter
from merlin_study import nested

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""The shell's own exit codes for a command that is not there, or can't be executed."""

_CLONE_FS: Final = 0x200
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_BUSY_TRIES: Final = 200
_BUSY_WAIT: Final = 0.002
# Python ignores these, and what is ignored stays so across exec: a step's `yes | head -1` would print an error.
_DEFAULTED: Final = [signal.SIGPIPE, signal.SIGXFSZ]
_AGENTS_OWN: Final = re.compile(
    rb"MERLIN_AGENT_.*|PMI_.*|PMI2_.*|PMIX_.*|PALS_.*|HYDI?_.*|OMPI_COMM_WORLD_.*|OMPI_MCA_(?:ess|orte_ess|pmix|prte_ess).*"
    rb"|OMPI_MCA_orte_(?:hnp|local_daemon)_uri|OMPI_(?:UNIVERSE_SIZE|APP_CTX_.*|FIRST_RANKS|NUM_APP_CTX|FILE_LOCATION)"
    rb"|MPI_LOCALN?RANK\w*|MV2_COMM_WORLD_.*|JSM_(?:NAMESPACE|SMPI)_.*|FLUX_TASK_.*|FLUX_KVS_NAMESPACE"
    rb"|SLURM_(?:PROCID|LOCALID|NODEID|STEPID|STEP_.*|TASK_PID|GTIDS|LAUNCH_NODE_IPADDR|SRUN_COMM_.*|CPU_BIND.*|MEM_BIND.*"
    rb"|PMIX.*|PMI_.*|MPI_TYPE)"
)
_STEPS_OWN: Final = re.compile(
    rb"SLURM_(?:NTASKS|NPROCS|NNODES|NODELIST|NTASKS_PER_NODE|CPUS_PER_TASK|TASKS_PER_NODE|DISTRIBUTION|OVERLAP|EXACT|INPUT)"
)
"""What ``srun`` sets for a step, and would take as options of one that is started inside of it."""
_EXIT_CODES: Final = {
    errno.ENOENT: NOT_FOUND,
    errno.ENOTDIR: NOT_FOUND,
    errno.EACCES: NOT_EXECUTABLE,
    errno.EPERM: NOT_EXECUTABLE,
    errno.ENOEXEC: NOT_EXECUTABLE,
    errno.ELOOP: NOT_EXECUTABLE,
}


class NotStartedError(Exception):
    """The script can't be executed, and that is the step's fault: the shell's exit code for it, and the sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Script(NamedTuple):
    """What to run: absolute paths; ``shell`` is what stands behind ``#!``, for messages.

    ``warm`` is the interpreter that may run it without being started for it, ``text`` what it does.
    """

    directory: str
    path: str
    out: str
    err: str
    shell: str
    own: Mapping[bytes, bytes] = MappingProxyType({})
    """Variables that this task's environment has of its own; tasks that run one after the other mostly share them."""
    token: str = ""
    """By which it is known to the agent; see `badges`."""
    text: str = ""
    warm: Interpreter | None = None
    alike: str = ""
    """What stands for the text where it is checked; empty: itself (see `alike`)."""

    @property
    def checked(self) -> str:
        """What is checked in the text's place."""
        return self.alike or self.text


class Launcher(Protocol):
    """Starts a script in a session, and so a process group, of its own."""

    def start(self, script: Script) -> int:
        """Return the process's id.

        Raises:
            NotStartedError: the step's fault.
            OSError: nobody's: no processes or no memory left, the directory is gone.
        """


def environment(environ: Mapping[bytes, bytes], *, coerced: frozenset[bytes] = frozenset()) -> dict[bytes, bytes]:
    """Return what serial tasks inherit: all that the agent did, without what is meant for the agent itself.

    Started by ``srun`` and the like, the agent is a task of its own: a program linked with MPI that found its rank and its
    connection would wait for peers, or for the launcher's answer. What describes the job stays. Nor is what another agent told
    it where a task of that one started it. ``coerced`` are variables that Python set for itself.
    """
    not_theirs = coerced | {name.encode() for name in nested.VARIABLES}
    in_step = environ.get(b"SLURM_STEP_ID", b"").isdigit()
    theirs = {
        name: value
        for name, value in environ.items()
        if name not in not_theirs and not _AGENTS_OWN.fullmatch(name) and not (in_step and _STEPS_OWN.fullmatch(name))
    }
    # The agent's own step holds the host: an srun inside of a task would wait for it for ever.
    return theirs | ({b"SLURM_OVERLAP": b"1"} if in_step else {})


def coerced_locale(environ: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Return the variables that this Python has set for itself (PEP 538), as the kernel's copy of the first ones tells."""
    try:
        with open("/proc/self/environ", "rb") as file:
            given = {entry.partition(b"=")[0] for entry in file.read().split(b"\0")}
    except OSError:
        return frozenset()
    return frozenset({b"LC_CTYPE"} & environ.keys() - given)


class DirectLauncher:
    """Starts scripts as children of this process."""

    def __init__(self, environ: Mapping[bytes, bytes]) -> None:
        self._environ = dict(environ)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._local = threading.local()

    def start(self, script: Script) -> int:
        """See `Launcher`."""
        for _ in range(_BUSY_TRIES):
            try:
                return self._start(script)
            except OSError as error:
                if error.errno == errno.ETXTBSY:
                    # A sibling that is just being started still holds the descriptor that the script was written by.
                    time.sleep(_BUSY_WAIT)
                    continue
                if error.errno in _EXIT_CODES and os.path.isdir(script.directory):
                    raise NotStartedError(_EXIT_CODES[error.errno], _explain(script, error)) from error
                raise
        raise NotStartedError(NOT_EXECUTABLE, f"{script.path}: is being written by another process; nothing was run")

    def _start(self, script: Script) -> int:
        if not self._has_own_directory():
            return self._popen(script)
        os.chdir(script.directory)
        return os.posix_spawn(
            script.path,
            [script.path],
            self._environ_of(script),
            file_actions=(
                (os.POSIX_SPAWN_DUP2, self._null, 0),
                (os.POSIX_SPAWN_OPEN, 1, script.out, _APPEND, 0o666),
                (os.POSIX_SPAWN_OPEN, 2, script.err, _APPEND, 0o666),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULTED,
        )

    def _popen(self, script: Script) -> int:
        with open(script.out, "ab") as out, open(script.err, "ab") as err:
            process = subprocess.Popen(
                [script.path],
                cwd=script.directory,
                env=self._environ_of(script),
                stdin=self._null,
                stdout=out,
                stderr=err,
                start_new_session=True,
                close_fds=False,
            )
        process.returncode = 0  # we wait for it ourselves; this keeps the object from doing so
        return process.pid

    def _environ_of(self, script: Script) -> Mapping[bytes, bytes]:
        if not script.own and not script.token:
            return self._environ
        token = {nested.TOKEN.encode(): script.token.encode()} if script.token else {}
        return {**self._environ, **script.own, **token}

    def _has_own_directory(self) -> bool:
        found: bool | None = getattr(self._local, "own", None)
        if found is None:
            found = self._local.own = _leave_common_directory()
        return found


def _leave_common_directory() -> bool:
    try:
        return bool(ctypes.CDLL(None).unshare(_CLONE_FS) == 0)
    except (OSError, AttributeError):
        return False


def _explain(script: Script, error: OSError) -> str:
    if _EXIT_CODES[error.errno or 0] == NOT_FOUND:
        return f"{script.path}: expected the interpreter of its first line, found no such file: {script.shell!r}"
    return f"{script.path}: can't be executed with {script.shell!r}: {error.strerror}"
