"""What the agent takes from the batch job that it runs in: hosts, slots, the time that is left, the site's name.

`schedulers` reads the job; here stands what follows from it. Without a job the agent runs in no allocation, and nothing ends it.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from merlin_agent import resources, schedulers
from merlin_agent.schedulers import Found
from merlin_study.wire import AllocationFacts

TIME_LEFT: Final = "MERLIN_TIME_LEFT"
"""Seconds that a step may run from its start on until the allocation's end makes the agent end it."""
IDLE_EXIT: Final = 120.0
RESERVE: Final = 10.0
"""Seconds before the allocation's end at which what runs gets its TERM: five until KILL, the rest for the reports."""
FOREVER: Final = float("inf")
_ON_EACH: Final = {
    "slurm": "srun --overlap --ntasks-per-node=1 --cpu-bind=none",
    "flux": "flux exec",
    "lsf": "jsrun -n {hosts} -r 1 -a 1 -c ALL_CPUS -g ALL_GPUS --bind=none, or without jsrun: blaunch",
    "pbs": "mpiexec -n {hosts} -ppn 1, with ALPS: aprun -n {hosts} -N 1 -cc none",
}
"""What starts one agent on each of a job's hosts, by scheduler."""
_PATIENCE: Final = 10.0
"""Seconds that a scheduler's command may take; a busy slurmctld answers late, and an agent must start all the same."""


def ask(command: Sequence[str]) -> str | None:
    """Run a scheduler's command; see `schedulers.Ask`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def here() -> Found:
    """Return the job of this process, read once."""
    return schedulers.found(os.environ, ask, host=_short(socket.gethostname()), now=time.time())


def facts(found: Found, now: float) -> AllocationFacts:
    """Return what the operator is told; ``now`` is the Unix time at which ``found`` was read."""
    return AllocationFacts(
        scheduler=found.scheduler,
        job_id=found.job_id,
        nodes=max(1, len(found.hosts)),
        ends_at=0.0 if found.seconds_left is None else now + found.seconds_left,
    )


@dataclass(frozen=True, slots=True)
class Clock:
    """When what happens towards the end of the allocation; Unix times, infinite where no limit is known.

    Attributes:
        span: Seconds that were left when the agent began.
        ends_at: The scheduler's own end.
    """

    span: float
    ends_at: float

    def leaves_at(self, margin: float) -> float:
        """Return when the agent takes nothing more; short allocations have a shorter margin."""
        return self.ends_at - max(self._share(margin), self._share(RESERVE)) if self.span < FOREVER else FOREVER

    @property
    def steps_end(self) -> float:
        """When what still runs gets its TERM."""
        return self.ends_at - self._share(RESERVE) if self.span < FOREVER else FOREVER

    def seconds_left(self, now: float) -> float:
        """Return for how long a step that starts now may run."""
        return max(0.0, self.steps_end - now)

    def variables(self, now: float) -> dict[bytes, bytes]:
        """Return what a step that starts now is told of it, where it is known."""
        return {} if self.span == FOREVER else {TIME_LEFT.encode(): b"%d" % self.seconds_left(now)}

    def _share(self, seconds: float) -> float:
        return min(seconds, self.span / 5)


@cache
def clock() -> Clock:
    """Return the clock of this process's job; its span begins with the first call."""
    span, now = here().seconds_left, time.time()
    return Clock(FOREVER, FOREVER) if span is None else Clock(span, now + span)


def slots(found: Found, usable: int) -> int:
    """Return how many tasks this host should run at once: the job's cores here, where we may run on that many.

    ``usable`` is `usable_cores`. A launcher that binds the agent to fewer than the job has here wins, for tasks inherit that.
    """
    return max(1, min(found.cores or usable, usable))


def elsewhere(found: Found) -> str:
    """Return what is wrong where this host is none of the job's, with the cure; empty where it is one, or there is no job."""
    if not found.elsewhere:
        return ""
    line = _ON_EACH[found.scheduler].format(hosts=len(found.hosts))
    return (
        f"{found.scheduler} {found.job_id}: expected one of its hosts ({', '.join(found.hosts[:3])}{', …' * (len(found.hosts) > 3)}), "
        f"found another one, whose cores are not the job's; start it there: {line} merlin-agent …, or say what it may use here: --slots N"
    )


def idle_exit(found: Found) -> float | None:
    """Return after how many idle seconds an agent leaves unless told otherwise: the job should not burn hours for nothing."""
    return None if found.scheduler == "none" else IDLE_EXIT


def processors(found: Found) -> tuple[int, ...]:
    """Return the processors that tasks may be bound to; none outside of a job, where others have them, too."""
    if found.scheduler == "none" or not hasattr(os, "sched_getaffinity"):
        return ()
    usable = os.sched_getaffinity(0)
    return resources.by_core(usable, {cpu: _siblings(cpu) for cpu in usable})


def _siblings(cpu: int) -> str:
    """Return the kernel's list of the processors that are threads of the same core; empty where it says none."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def memory(found: Found) -> int:
    """Return the MiB of this host that tasks may use: the job's where it has been told, and never more than there is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(found.memory or there, there) >> 20)


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def site(environ: Mapping[str, str], host: str | None = None) -> str:
    """Return the cluster's name as the scheduler gives it, else the host's without its number (``quartz12``).

    In the letters that a site's name takes everywhere: lower case, digits and dashes.
    """
    named = environ.get("SLURM_CLUSTER_NAME", "").strip()
    short = _short(host or socket.gethostname())
    name = named or short.rstrip("0123456789").rstrip("-_") or short
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "local"


def _short(host: str) -> str:
    return host.split(".", maxsplit=1)[0]
