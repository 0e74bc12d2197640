"""Start a server that must not outlive the command: ``python guard.py DIRECTORY PROGRAM ARGUMENT…``.

The process becomes PROGRAM, so its pid, its signals and its exit code are the program's. A watcher stays beside it and
reads the standard input, which is a pipe that the command holds and never writes to: it ends when the command does,
SIGKILL included. The watcher then kills the program and removes DIRECTORY, the command's private one.

Why not PR_SET_PDEATHSIG: it exists on Linux only, and it fires when the *thread* that started the program ends.
Why not in the program: nats-server knows no lifeline; engine and agent do, and need no guard. Only the standard library.
"""

import os
import select
import shutil
import signal
import sys


def main(directory: str, command: list[str]) -> None:
    """Fork the watcher, then become the command."""
    alive, held = os.pipe()
    os.set_inheritable(held, True)  # the program keeps it unknowingly; its end is how the watcher learns of its end
    program = os.getpid()
    if os.fork() == 0:
        os.close(held)
        watch(program, alive, directory)
        os._exit(0)
    os.close(alive)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.execv(command[0], command)  # noqa: S606 becoming the program is the point


def watch(program: int, alive: int, directory: str) -> None:
    """Wait for the end of the program or of the command; kill the program in the second case."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready, _, _ = select.select([0, alive], [], [])
    if alive in ready:
        return
    if os.getppid() == program:  # else it is gone, and its number may be another's
        os.kill(program, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
