"""``merlin run-workers SPEC``: starts the agents that a specification's worker blocks ask for, where we are.

It is run inside of an allocation, mostly from its batch script. Which agents is `merlin_study.workers`, how they are started
`merlin_study.workerlines`; here only the machine is looked at, and the lines are run.
"""

import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from merlin_cli import contexts, local, source
from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say
from merlin_study import celery, workerlines, workspace
from merlin_study.errors import did_you_mean
from merlin_study.launchers import Kind, flux_kind
from merlin_study.queues import of_steps
from merlin_study.spec import StudySpec
from merlin_study.variables import Variables
from merlin_study.workerlines import Machine
from merlin_study.workers import Worker, plan_workers, started

_DETECTED: Final = (("pbs", ("qsub", "--version")), ("lsf", ("jsrun", "--help")), ("slurm", ("sbatch", "--help")))
"""Outside of an allocation the scheduler is told by its commands, in upstream's order; flux by its instance alone."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; each field is an option."""

    spec: str
    vars: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    worker_args: str = ""
    agent_args: str = ""
    echo: bool = False
    wait: bool = False

    @classmethod
    def of(cls, arguments: Namespace) -> "Request":
        """Take the options of ``merlin run-workers``."""
        return cls(
            spec=arguments.spec,
            vars=tuple(arguments.vars),
            steps=tuple(name for name in arguments.steps if name != "all"),
            worker_args=arguments.worker_args,
            agent_args=arguments.agent_args,
            echo=arguments.echo,
            wait=arguments.wait,
        )


def run_workers(request: Request, console: Console, machine: Machine | None = None) -> Exit:
    """Start the agents, or print how; with ``wait`` stay until they have left.

    Raises:
        SpecError: the specification was refused.
        CliError: wrong usage, nothing is meant for this host, or an agent failed.
    """
    found = source.read(request.spec)
    spec = source.parse(found, source.variables(request.vars), quiet=True)
    variables = Variables(spec, stamp="", base=workspace.safe_name(found.path.stem), spec_root=found.directory)
    lines = list(_lines(request, spec, variables, machine or here()))
    if not lines:
        raise CliError(
            Exit.CANNOT_RUN,
            f"{request.spec}: no worker block is meant for host {_host()}; see merlin.resources.workers.*.machines",
        )
    if request.echo:
        for line in lines:
            print(line)
        return Exit.OK
    return _started(lines, console, wait=request.wait)


def _lines(request: Request, spec: StudySpec, variables: Variables, machine: Machine) -> Iterator[str]:
    planned = plan_workers(spec, variables.expand)
    queues = of_steps(spec, variables.expand)
    chosen = started(_narrowed(planned.workers, request.steps, queues), _host())
    extra = celery.read(request.worker_args)
    name, agent = variables.expand(spec.description.name), _agent()
    more = (*_credentials(os.environ), *_words(request.agent_args))
    wishes = [w if extra.slots is None else dataclasses.replace(w, slots=extra.slots) for w in chosen.workers]
    notes = (*planned.warnings, *chosen.warnings, *(f"--worker-args: {each}" for each in extra.warnings))
    for note in dict.fromkeys((*notes, *_greedy(wishes, machine, more))):
        print(f"warning: {note}", file=sys.stderr)
    for wished in wishes:
        command = workerlines.agent_command(wished, study=name, agent=agent, more=more)
        try:
            yield workerlines.launch_line(wished, command, machine)
        except ValueError as error:
            raise CliError(Exit.REFUSED, f"merlin.resources.workers.{wished.name}: {error}") from None


def _greedy(workers: Sequence[Worker], machine: Machine, more: Sequence[str]) -> Iterator[str]:
    """Say where agents of several blocks may share hosts, each with all of their cores; Flux gives each block hosts of its own."""
    names = [worker.name for worker in workers if worker.slots is None]
    if (
        len(workers) < 2
        or not names
        or not machine.allocated
        or machine.scheduler in ("none", "flux")
        or "--slots" in more
    ):
        return
    yield (
        f"merlin.resources.workers: {', '.join(names)}: no number of slots, so an agent takes all of the job's cores on its host, and {len(workers)} "
        "blocks may share hosts; give each its part: -c N in its args"
    )


def _narrowed(workers: Sequence[Worker], steps: Sequence[str], queues: Mapping[str, tuple[str, ...]]) -> list[Worker]:
    """The workers of some steps, with what is theirs of these alone; ``queues`` are those of each step."""
    if not steps:
        return list(workers)
    for step in steps:
        if step not in queues:
            raise CliError(Exit.USAGE, f"--steps {step}: no step is called so{did_you_mean(step, queues)}")
    kept = []
    for worker in workers:
        mine = tuple(step for step in worker.steps if step in steps)
        if mine:
            theirs = tuple(dict.fromkeys(queue for step in mine for queue in queues[step]))
            kept.append(dataclasses.replace(worker, steps=mine, queues=theirs))
    return kept


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise CliError(Exit.USAGE, f"--agent-args {text!r}: {error}") from None


def _started(lines: Sequence[str], console: Console, *, wait: bool) -> Exit:
    # A group of its own for each only where we stay: then we pass signals on. Else the batch script's end reaches them.
    running = [
        subprocess.Popen([workerlines.SHELL, "-c", line], stdin=subprocess.DEVNULL, process_group=0 if wait else None)
        for line in lines
    ]
    say(console, f"Started {len(running)} launch line{'s' if len(running) > 1 else ''} of agents.")
    if not wait:
        return Exit.OK

    def pass_on(number: int, _: object) -> None:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    failed = [(line, code) for line, code in zip(lines, [process.wait() for process in running], strict=True) if code]
    if failed:
        raise CliError(Exit.CANNOT_RUN, "\n".join(f"ended with {code}: {line}" for line, code in failed))
    return Exit.OK


def here() -> Machine:
    """Look at the machine, by the environment of a batch job first, by the scheduler's commands where there is none.

    Raises:
        CliError: the agent is not installed beside this command.
    """
    local.check_installed()
    from merlin_agent import allocation, schedulers

    found = allocation.here()
    scheduler, allocated = found.scheduler, found.scheduler != "none"
    if not allocated:
        answers = ((name, allocation.ask(command)) for name, command in _DETECTED)
        scheduler = next((name for name, answer in answers if answer is not None), "none")
    flux = flux_kind(schedulers.flux_version(allocation.ask)) if scheduler == "flux" else Kind.FLUX_RUN
    mpi = schedulers.mpi_kind(allocation.ask) if scheduler == "pbs" else Kind.HYDRA
    return Machine(scheduler, max(1, len(found.hosts)), allocated=allocated, flux=flux, mpi=mpi)


def _credentials(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where the agents find the server that we speak to; those of a cluster have it in their own configuration."""
    site = None if "MERLIN_AGENT_CREDENTIALS" in environ else contexts.site_file()
    return () if site is None else ("--credentials", str(site))


def _agent() -> str:
    """The agent beside this command, so that a line works where no PATH leads to it; else by its name."""
    beside = Path(sys.executable).with_name("merlin-agent")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("merlin-agent") or "merlin-agent"


def _host() -> str:
    return socket.gethostname()
