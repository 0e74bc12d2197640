"""What the batch job says of itself: a pure reading of its environment.

Slurm's variables for now; without them the agent runs in no allocation, and nothing ends it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from merlin_study.wire import AllocationFacts


def facts(environ: Mapping[str, str]) -> AllocationFacts:
    """Return what is known of the allocation; a variable that makes no sense counts as unset."""
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return AllocationFacts()
    return AllocationFacts(
        scheduler="slurm",
        job_id=job,
        nodes=max(1, _number(environ, "SLURM_JOB_NUM_NODES") or _number(environ, "SLURM_NNODES") or 1),
        ends_at=float(_number(environ, "SLURM_JOB_END_TIME")),
    )


def seconds_left(allocation: AllocationFacts, now: float) -> float:
    """Return how long the allocation still lasts at the Unix time ``now``; infinite where no limit is known."""
    return max(0.0, allocation.ends_at - now) if allocation.ends_at else float("inf")


def slots(environ: Mapping[str, str]) -> int:
    """Return how many tasks this host should run at once: the allocation's cores, else those we may run on."""
    given = _number(environ, "SLURM_CPUS_ON_NODE")
    if given > 0:
        return given
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def site(environ: Mapping[str, str], host: str | None = None) -> str:
    """Return the cluster's name as the scheduler gives it, else the host's without its number (``quartz12``).

    In the letters that a site's name takes everywhere: lower case, digits and dashes.
    """
    named = environ.get("SLURM_CLUSTER_NAME", "").strip()
    short = (host or socket.gethostname()).split(".")[0]
    name = named or short.rstrip("0123456789").rstrip("-_") or short
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "local"


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else 0
