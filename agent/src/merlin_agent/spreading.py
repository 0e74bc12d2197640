"""One call of a launcher that starts an agent on each of a job's other hosts: a table of command lines. Pure.

Each line gives an agent all of its host, beside whatever else of the job runs there, and lets the others live when one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from merlin_study.launchers import Kind

PEERS: Final = "MERLIN_AGENT_PEERS"
"""Tells an agent that it was started as one of several."""


def command(kind: Kind | None, hosts: Sequence[str], agent: Sequence[str]) -> list[str] | None:
    """Return what starts ``agent`` once on each of these hosts; None where this launcher can't be told hosts.

    Args:
        kind: The launcher of the batch job, None without one.
        hosts: The job's, without the one that we run on.
        agent: A command line.
    """
    count, named = str(len(hosts)), ",".join(hosts)
    match kind:
        case Kind.SRUN:
            # --cpu-bind=none and no --exact: the whole host. --wait=0, --kill-on-bad-exit=0, --no-kill: each lives by itself.
            sizes = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={named}"]
            apart = ["--overlap", "--cpu-bind=none", "--wait=0", "--kill-on-bad-exit=0", "--no-kill", "--input=none"]
            return ["srun", *apart, *sizes, *agent]
        case Kind.FLUX_RUN:
            return ["flux", "exec", "--noinput", f"--rank=1-{count}", *agent]
        case Kind.JSRUN:
            return ["blaunch", "-no-wait", "-z", " ".join(hosts), *agent]
        case Kind.PALS:
            return ["mpiexec", "-n", count, "--ppn", "1", "--hosts", named, "--cpu-bind=none", *agent]
        case Kind.HYDRA:
            return ["mpiexec", "-n", count, "-ppn", "1", "-hosts", named, "-bind-to", "none", *agent]
        case Kind.OPENMPI:
            each = ",".join(f"{host}:1" for host in hosts)
            return ["mpiexec", "-n", count, "--host", each, "--map-by", "ppr:1:node", "--bind-to", "none", *agent]
        case Kind.APRUN:
            return ["aprun", "-n", count, "-N", "1", "-L", named, "-cc", "none", *agent]
        case _:
            return None
