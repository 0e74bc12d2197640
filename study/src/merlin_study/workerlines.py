"""From a worker block to the command line that starts its agents inside an allocation, as upstream builds it.

The lines are those of Merlin 1.13 (``batch_worker_launch``, ``construct_scheduler_legend``) with ``merlin-agent`` in the place of
``celery worker``. Mended: agents under Slurm share the nodes with what their tasks start (``--overlap``) and may use all cores of
them (``--cpu-bind=none``); what flux's shell runs is quoted by the shell's rules; plain PBS, which upstream refuses, starts an
agent on each node through ``mpiexec``. An agent that a line starts on each host it names, or where it stands, is told so (`HERE`); else it
would start others on the job's other hosts. Every function here is pure.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from merlin_study import duration
from merlin_study.launchers import Kind, Launch, clock, expand
from merlin_study.spec import Batch
from merlin_study.workers import ALL, Worker

PLAIN: Final = frozenset({"local", "lsf", "lsf-srun"})
"""Types under which upstream starts its worker where it stands, whatever the machine."""
HERE: Final = "--this-node"
"""The agent's flag by which it works on its own host alone."""
MAX_NAME: Final = 40
"""Characters of what an agent may be called."""
ON_EACH: Final = frozenset({"slurm", "lsf", "pbs"})
"""Schedulers whose launcher starts the command on each host; that of Flux gives all hosts to one."""
SHELL: Final = "/bin/bash"
"""Runs the lines: ``launch_pre`` may load modules, which are functions of a shell."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where agents are to be started.

    Attributes:
        scheduler: ``slurm``, ``flux``, ``lsf``, ``pbs`` or ``none``; the innermost where one runs in another.
        nodes: Hosts of the allocation; 1 where that is not known.
        allocated: Whether we are inside of a batch job; else the scheduler would make one for the agents.
        flux: How this flux spells its commands.
        mpi: The family of this machine's ``mpiexec``, for plain PBS.
    """

    scheduler: str = "none"
    nodes: int = 1
    allocated: bool = True
    flux: Kind = Kind.FLUX_RUN
    mpi: Kind = Kind.HYDRA


def agent_command(worker: Worker, *, study: str, agent: str = "merlin-agent", more: tuple[str, ...] = ()) -> str:
    """Return the command of one agent of a worker block.

    Args:
        worker: The block.
        study: What the study calls itself, so that a task of it can stop its agents.
        agent: The program.
        more: Further arguments, such as where the broker is.
    """
    words = [agent, *more, "--name", agent_name(worker.name)]
    words += ["--queues", ",".join(worker.queues), "--study-name", study]
    if worker.slots is not None:
        words += ["--slots", str(worker.slots)]
    return shlex.join(words)


def agent_name(worker: str) -> str:
    """Return what the names of a worker block's agents begin with, by which ``--workers`` finds them as upstream does."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", worker).lstrip("_.-")[:MAX_NAME] or "worker"


def launch_line(worker: Worker, command: str, machine: Machine) -> str:
    """Return the shell's line that starts a worker block's agents.

    Raises:
        ValueError: the block's walltime or its number of nodes is none; the message names the key.
    """
    batch = worker.batch
    if batch.worker_launch:
        return _joined(batch.launch_pre, batch.worker_launch, batch.launch_args, command)
    if batch.type in PLAIN:
        return _joined(command, HERE if batch.type == "local" else "")
    launch = _launcher(batch, _nodes(worker, machine), machine)
    if batch.type == "flux":
        command = _in_flux(batch, command, machine)
    elif machine.scheduler in ON_EACH:
        command = _joined(command, HERE)
    return _joined(batch.launch_pre, launch, batch.launch_args, command)


def _launcher(batch: Batch, nodes: int, machine: Machine) -> str:
    """What the machine's scheduler is asked, whatever the block's flavour."""
    walltime = None if batch.walltime is None else _seconds(batch.walltime)
    match machine.scheduler:
        case "flux":
            return _joined(
                f"{_flux(batch)} {'mini ' if machine.flux is Kind.FLUX_MINI else ''}alloc -o pty -N {nodes}",
                "--exclusive --job-name=merlin",
                f"--setattr=system.bank={batch.bank}" if batch.bank else "",
                f"--setattr=system.queue={batch.queue}" if batch.queue else "",
                f"-t {float(walltime)}s" if walltime else "",
            )
        case "slurm":
            return _joined(
                f"srun -N {nodes} -n {nodes}",
                *_flags(batch, bank="-A", queue="-p"),
                f"-t {clock(walltime)}" if walltime else "",
                "--overlap --cpu-bind=none" if machine.allocated else "",
            )
        case "lsf":
            return f"jsrun -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none -n {nodes}"
        case "pbs" if batch.type == "flux":
            limit = f"-l walltime={clock(walltime)}" if walltime else ""
            return _joined(f"qsub -l nodes={nodes}", *_flags(batch, bank="-A", queue="-q"), limit, "--")
        case "pbs":
            return expand("$(LAUNCHER)", Launch(type="pbs", nodes=nodes, procs=nodes), machine.mpi)
        case _:
            return ""


def _in_flux(batch: Batch, command: str, machine: Machine) -> str:
    """A command on each broker of a flux instance, which is started where there is none."""
    start = "" if machine.scheduler == "flux" else _joined(f"{_flux(batch)} start", batch.flux_start_opts)
    if not batch.flux_exec_workers:
        return _joined(start, command)
    over = batch.flux_exec or f"{'flux' if machine.scheduler != 'none' else _flux(batch)} exec"
    return _joined(start, over, f"`which {_shell(batch)}` -c", shlex.quote(f"{command} {HERE}"))


def _flux(batch: Batch) -> str:
    return f"{batch.flux_path.rstrip('/')}/flux" if batch.flux_path else "flux"


def _shell(batch: Batch) -> str:
    """The shell's name, as ``which`` finds it on every node."""
    return batch.shell.split()[0].rpartition("/")[2] or "bash"


def _flags(batch: Batch, *, bank: str, queue: str) -> tuple[str, str]:
    return (f"{bank} {batch.bank}" if batch.bank else "", f"{queue} {batch.queue}" if batch.queue else "")


def _nodes(worker: Worker, machine: Machine) -> int:
    wish = worker.nodes if worker.nodes is not None else worker.batch.nodes
    if wish is None or wish == ALL:
        return machine.nodes
    if not str(wish).isdecimal() or int(wish) < 1:
        raise ValueError(f"batch.nodes: expected a whole number or 'all', found {wish!r}")
    return int(wish)


def _seconds(walltime: int | str) -> int:
    try:
        return duration.seconds(walltime)
    except ValueError as error:
        raise ValueError(f"batch.walltime: {error}") from None


def _joined(*parts: str | None) -> str:
    return " ".join(part.strip() for part in parts if part and part.strip())
