"""``merlin-agent script``: prints a batch script that starts an agent on each node of an allocation, ready to be submitted.

Pure: from what is asked for to text. Each scheduler's directives are those of its manual (sbatch 22.05, flux-batch 0.60, bsub 10.1,
qsub of OpenPBS 23).

The early signal is Slurm's alone. It goes to the batch shell, which has the agents drain; given to all steps (``--signal`` without
``B:``) it would end the steps of running tasks, too, and they would count as failed. Elsewhere agents go by the end of the allocation that
the scheduler tells them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from merlin_agent import allocation, config, schedulers
from merlin_study import duration
from merlin_study.launchers import Kind, Launch, clock, expand

EARLY: Final = 90
"""Seconds before the end at which agents are told to drain: their grace of 30, the steps' end, and Slurm's own delay."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for.

    Attributes:
        nodes: Hosts.
        walltime: Seconds.
        agent: The agent's command line, words.
        name: The job's.
        bank: Whose account pays; empty for the user's own.
        queue: The scheduler's queue or partition; empty for its default.
        cores: Of each host; 0 where the scheduler gives whole hosts without being told.
        gpus: Of each host; 0 to ask for none. LSF is not told: with ``-nnodes`` it gives whole hosts, and jsrun is told to take all of them.
        modules: To be loaded before the agents start.
        early: Seconds before the end at which agents drain; 0 for never.
        mpi: The family of the machine's ``mpiexec``, for PBS.
    """

    nodes: int
    walltime: int
    agent: tuple[str, ...]
    name: str = "merlin"
    bank: str = ""
    queue: str = ""
    cores: int = 0
    gpus: int = 0
    modules: tuple[str, ...] = ()
    early: int = EARLY
    mpi: Kind = Kind.HYDRA


def slurm(wish: Wish) -> str:
    """Return the script for ``sbatch``."""
    early = wish.early and wish.early < wish.walltime
    start = f"srun --overlap --cpu-bind=none -N {wish.nodes} -n {wish.nodes} {shlex.join(wish.agent)}"
    body = [f"exec {start}"]
    if early:
        body = [
            "# The agents are the first step, 0. They drain; steps of running tasks are left alone.",
            "trap 'scancel --signal=TERM \"$SLURM_JOB_ID.0\"' USR1",
            f"{start} &",
            "while kill -0 $! 2>/dev/null; do wait $!; done  # a wait ends when the signal comes, and the agents do not",
        ]
    directives = [
        f"--job-name={wish.name}",
        f"--nodes={wish.nodes}",
        "--exclusive",
        f"--gpus-per-node={wish.gpus}" if wish.gpus else "",
        f"--time={clock(wish.walltime)}",
        f"--account={wish.bank}" if wish.bank else "",
        f"--partition={wish.queue}" if wish.queue else "",
        f"--signal=B:USR1@{wish.early}" if early else "",
        "--output=merlin-%j.out",
    ]
    return _script("#SBATCH", directives, wish, body)


def flux(wish: Wish) -> str:
    """Return the script for ``flux batch``."""
    directives = [
        f"--job-name={wish.name}",
        f"-N {wish.nodes}",
        f"-n {wish.nodes} -g {wish.gpus}" if wish.gpus else "",  # a slot of each host, and its GPUs
        "--exclusive",
        f"-t {wish.walltime}s",
        f"-B {wish.bank}" if wish.bank else "",
        f"-q {wish.queue}" if wish.queue else "",
        "--output=merlin-{{id}}.out",
    ]
    return _script("#flux:", directives, wish, [f"exec flux exec {shlex.join(wish.agent)} --this-node"])


def lsf(wish: Wish) -> str:
    """Return the script for ``bsub``."""
    minutes = -(-wish.walltime // 60)
    directives = [
        f"-J {wish.name}",
        f"-nnodes {wish.nodes}",
        f"-W {minutes // 60}:{minutes % 60:02d}",
        f"-G {wish.bank}" if wish.bank else "",
        f"-q {wish.queue}" if wish.queue else "",
        "-o merlin-%J.out",
    ]
    start = f"exec jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n {wish.nodes} {shlex.join(wish.agent)}"
    return _script("#BSUB", directives, wish, [start])


def pbs(wish: Wish) -> str:
    """Return the script for ``qsub``.

    Raises:
        ValueError: nobody says how many cores a host has; PBS would give one.
    """
    if not wish.cores:
        raise ValueError("--cores: expected the cores of a host, since PBS gives one where none is asked for")
    directives = [
        f"-N {wish.name}",
        f"-l select={wish.nodes}:ncpus={wish.cores}" + (f":ngpus={wish.gpus}" if wish.gpus else ""),
        "-l place=scatter:excl",
        f"-l walltime={clock(wish.walltime)}",
        f"-A {wish.bank}" if wish.bank else "",
        f"-q {wish.queue}" if wish.queue else "",
        "-j oe",
    ]
    launch = expand("$(LAUNCHER)", Launch(type="pbs", nodes=wish.nodes, procs=wish.nodes), wish.mpi)
    body = ['cd "$PBS_O_WORKDIR"', f"exec {launch} {shlex.join(wish.agent)}"]
    return _script("#PBS", directives, wish, body)


SCHEDULERS: Final[Mapping[str, Callable[[Wish], str]]] = {"slurm": slurm, "flux": flux, "lsf": lsf, "pbs": pbs}


def _script(sign: str, directives: Sequence[str], wish: Wish, body: Sequence[str]) -> str:
    loads = [f"module load {shlex.join(wish.modules)}"] if wish.modules else []
    given = [f"{sign} {directive}" for directive in directives if directive]
    return "\n".join(["#!/bin/bash -l" if loads else "#!/bin/bash", *given, "", *loads, *body, ""])


def parser() -> argparse.ArgumentParser:
    """Return the parser of what comes before ``--``."""
    made = argparse.ArgumentParser(
        prog="merlin-agent script",
        description="Print a batch script that starts an agent on each node of an allocation.",
        epilog="What follows -- are the agent's own flags: merlin-agent script --scheduler slurm --nodes 4 --walltime 2h "
        "-- --credentials ~/site.yaml --idle-exit 600",
        allow_abbrev=False,
    )
    made.add_argument("--scheduler", required=True, choices=sorted(SCHEDULERS), help="whose directives")
    made.add_argument("--nodes", type=_positive, default=1, metavar="N", help="hosts (default: 1)")
    made.add_argument(
        "--walltime", type=_walltime, default=3600, metavar="T", help="minutes, h:m:s, 90m or 2h (default: 1h)"
    )
    made.add_argument("--bank", type=_word, metavar="NAME", help="the account that pays")
    made.add_argument("--queue", type=_word, metavar="NAME", help="the scheduler's queue or partition")
    made.add_argument("--cores", type=_positive, default=0, metavar="N", help="cores of each host (PBS needs it)")
    made.add_argument(
        "--gpus", type=_positive, default=0, metavar="N", help="GPUs of each host (default: none asked for)"
    )
    made.add_argument("--name", type=_word, default="merlin", metavar="NAME", help="the job's name (default: merlin)")
    made.add_argument(
        "--module", dest="modules", type=_word, action="append", default=[], help="a module to load (repeatable)"
    )
    made.add_argument(
        "--early",
        type=int,
        default=EARLY,
        metavar="S",
        help=f"under Slurm, drain so many seconds before the end; 0: never (default: {EARLY})",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Print a script; return the exit code."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    given = parser().parse_args(words[:at])
    config.parser().parse_args(words[at + 1 :])  # the agent's own judgement, before an allocation is spent on it
    wish = Wish(
        nodes=given.nodes,
        walltime=given.walltime,
        agent=(config.program(), *words[at + 1 :]),
        name=given.name,
        bank=given.bank or "",
        queue=given.queue or "",
        cores=given.cores,
        gpus=given.gpus,
        modules=tuple(given.modules),
        early=max(0, given.early),
        mpi=schedulers.mpi_kind(allocation.ask) if given.scheduler == "pbs" else Kind.HYDRA,
    )
    try:
        print(SCHEDULERS[given.scheduler](wish), end="")  # noqa: T201 it is what was asked for
    except ValueError as error:
        print(f"merlin-agent script: {error}", file=sys.stderr)  # noqa: T201 a command line prints
        return config.USAGE
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _walltime(text: str) -> int:
    try:
        return duration.seconds(text, minutes=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _word(text: str) -> str:
    """A directive has no quotes: what would end its line, or become two words, is refused."""
    if not text or any(letter.isspace() for letter in text) or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected one word, found {text!r}")
    return text
