"""One call of a launcher that starts an agent on each of a job's other hosts: a table of command lines. Pure.

Each line gives an agent all of its host, beside whatever else of the job runs there, and lets the others live when one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from merlin_study.launchers import Kind

PEERS: Final = "MERLIN_AGENT_PEERS"
"""Tells an agent that it was started as one of several."""

Hosts = Sequence[str]


def command(kind: Kind | None, hosts: Hosts, agent: Sequence[str]) -> list[str] | None:
    """Return what starts ``agent`` once on each of these hosts; None where this launcher can't be told hosts.

    Args:
        kind: The launcher of the batch job, None without one.
        hosts: The job's in its order, without the first one, on which we run.
        agent: A command line.
    """
    build = _BUILDERS.get(kind) if kind is not None else None
    return None if build is None else [*build(hosts), *agent]


def _srun(hosts: Hosts) -> list[str]:
    # --cpu-bind=none and no --exact: the whole host. --wait=0, --kill-on-bad-exit=0, --no-kill: each lives by itself.
    count = len(hosts)
    apart = ["--overlap", "--cpu-bind=none", "--wait=0", "--kill-on-bad-exit=0", "--no-kill", "--input=none"]
    sizes = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(hosts)}"]
    return ["srun", *apart, *sizes]


def _flux(hosts: Hosts) -> list[str]:
    return ["flux", "exec", "--noinput", f"--rank=1-{len(hosts)}"]


def _lsf(hosts: Hosts) -> list[str]:
    return ["blaunch", "-z", " ".join(hosts)]


def _pals(hosts: Hosts) -> list[str]:
    return ["mpiexec", "-n", str(len(hosts)), "--ppn", "1", "--hosts", ",".join(hosts), "--cpu-bind=none"]


def _hydra(hosts: Hosts) -> list[str]:
    return ["mpiexec", "-n", str(len(hosts)), "-ppn", "1", "-hosts", ",".join(hosts), "-bind-to", "none"]


def _openmpi(hosts: Hosts) -> list[str]:
    each = ",".join(f"{host}:1" for host in hosts)
    return ["mpiexec", "-n", str(len(hosts)), "--host", each, "--map-by", "ppr:1:node", "--bind-to", "none"]


def _aprun(hosts: Hosts) -> list[str]:
    return ["aprun", "-n", str(len(hosts)), "-N", "1", "-L", ",".join(hosts), "-cc", "none"]


_BUILDERS: Final[Mapping[Kind, Callable[[Hosts], list[str]]]] = {
    Kind.SRUN: _srun,
    Kind.FLUX_RUN: _flux,
    Kind.JSRUN: _lsf,
    Kind.PALS: _pals,
    Kind.HYDRA: _hydra,
    Kind.OPENMPI: _openmpi,
    Kind.APRUN: _aprun,
}
