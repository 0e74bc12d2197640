"""What each scheduler says of the batch job that we run in: its variables first, its commands for what they leave out.

One function for each scheduler, from an environment and a way to ask commands to `Found`. Nothing is taken from the submitter:
the same study runs on machines of different kinds. Sources: the manuals of sbatch (22.05), flux-core (0.100; RFC 29, 31), LSF 10.1,
OpenPBS 23 and Torque 6.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from merlin_agent import hostlist
from merlin_study.launchers import Kind, flux_kind

Ask = Callable[[Sequence[str]], str | None]
"""Runs a command and returns what it printed; None where it is not there, fails, or takes too long."""

_MEGA: Final = 1 << 20
_PEERS: Final = (
    *("SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PALS_SIZE"),
    "MERLIN_AGENT_PEERS",
)
"""How many processes the launcher started that started this one."""


@dataclass(frozen=True, slots=True)
class Found:
    """The batch job: what is not known is empty or 0.

    Attributes:
        scheduler: ``slurm``, ``flux``, ``lsf``, ``pbs`` or ``none``.
        job_id: As the scheduler writes it.
        hosts: All that the job has, in the scheduler's order.
        cores: Of this host that are the job's.
        memory: Of this host, in bytes, that is the job's.
        gpus: Of this host, as ``CUDA_VISIBLE_DEVICES`` and its like name them.
        seconds_left: Until the job ends; None where no limit is known.
        problems: What should be known and is not, each with its cure.
        host: This host's name as ``hosts`` spells it.
        together: Whether a launcher started this process as one of several.
        run: Which run of a job that was requeued.
    """

    scheduler: str = "none"
    job_id: str = ""
    hosts: tuple[str, ...] = ()
    cores: int = 0
    memory: int = 0
    gpus: tuple[str, ...] = ()
    seconds_left: float | None = None
    problems: tuple[str, ...] = field(default=())
    host: str = ""
    together: bool = False
    run: str = ""

    @property
    def leads(self) -> bool:
        """Whether this is the first of several hosts."""
        return len(self.hosts) > 1 and self.host == self.hosts[0]

    @property
    def elsewhere(self) -> bool:
        """Whether this host is none of the job's, such as one where ``salloc`` gives its prompt, or that launches only.

        Where a launcher started us as one of several, it is the job's, whatever the scheduler calls it.
        """
        return bool(self.hosts) and not self.host and not self.together


def found(environ: Mapping[str, str], ask: Ask, *, host: str, now: float) -> Found:
    """Return the innermost batch job: a Flux instance inside of a Slurm job is Flux.

    Args:
        environ: The agent's environment.
        ask: See `Ask`.
        host: This host's name, without its domain.
        now: Unix time, for schedulers that name the end itself.
    """
    outer = _outer(environ, ask, host=host, now=now)
    result = _flux(environ, ask, outer) if environ.get("FLUX_URI") else outer
    return replace(
        result,
        gpus=_visible_gpus(environ) or result.gpus,
        host=_own_name(environ, result.hosts, host),
        together=any(_number(environ.get(name)) > 1 for name in _PEERS),
        run=environ.get("SLURM_RESTART_COUNT", "") if result.scheduler == "slurm" else "",
    )


def _own_name(environ: Mapping[str, str], hosts: tuple[str, ...], host: str) -> str:
    """Return this host's name in the job's list, where it may be longer, shorter, or Slurm's own."""
    named = environ.get("SLURMD_NODENAME", "")
    if named in hosts:
        return named
    short = host.split(".", maxsplit=1)[0]
    return next((name for name in hosts if name.split(".", maxsplit=1)[0] == short), "")


def _outer(environ: Mapping[str, str], ask: Ask, *, host: str, now: float) -> Found:
    if environ.get("LSB_JOBID"):
        return _lsf(environ, ask, host)
    if environ.get("PBS_JOBID"):
        return _pbs(environ, ask, host, now)
    if environ.get("SLURM_JOB_ID"):
        return _slurm(environ, ask, now)
    return Found()


def _slurm(environ: Mapping[str, str], ask: Ask, now: float) -> Found:
    job, problems = environ["SLURM_JOB_ID"], []
    hosts: tuple[str, ...] = ()
    try:
        hosts = hostlist.expand(environ.get("SLURM_JOB_NODELIST", ""))
    except ValueError as error:
        problems.append(f"SLURM_JOB_NODELIST: {error}")
    cores = _number(environ.get("SLURM_CPUS_ON_NODE"))
    each = _number(environ.get("SLURM_MEM_PER_CPU"))
    memory = _number(environ.get("SLURM_MEM_PER_NODE")) or each * cores
    end = _number(environ.get("SLURM_JOB_END_TIME"))
    left: float | None = max(0.0, end - now) if end else None
    if left is None:  # Slurm before 23.02 sets no variable
        answer = (ask(["squeue", "-h", "-j", job, "-o", "%L"]) or "").strip()
        left = clock(answer)
        if left is None and answer != "UNLIMITED":
            problems.append(_no_end(f"squeue -j {job} -o %L", answer))
    gpus = _list(environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS") or "")
    return Found("slurm", job, hosts, cores, memory * _MEGA, gpus, left, tuple(problems))


def _no_end(command: str, answer: str) -> str:
    return f"{command}: expected the time left, found {answer!r}; tasks may start too late"


def _flux(environ: Mapping[str, str], ask: Ask, outer: Found) -> Found:
    problems = []
    answer = (
        ask(["flux", "resource", "list", "-s", "all", "-n", "-o", "{nnodes}|{ncores}|{ngpus}|{nodelist}"]) or ""
    ).strip()
    hosts, cores, gpus = outer.hosts, outer.cores, outer.gpus
    try:
        nodes, all_cores, all_gpus, names = answer.split("|", 3)
        hosts = hostlist.expand(names)
        cores = int(all_cores) // int(nodes)
        gpus = tuple(map(str, range(int(all_gpus) // int(nodes))))
    except (ValueError, ZeroDivisionError):
        problems.append(f"flux resource list: expected nodes, cores and GPUs, found {answer!r}; is FLUX_URI right?")
    job = environ.get("FLUX_JOB_ID") or (ask(["flux", "getattr", "jobid"]) or "").strip() or outer.job_id
    timeleft = (ask(["flux", "job", "timeleft"]) or "").strip()
    left = _float(timeleft)
    if left is None and outer.seconds_left is None:
        problems.append(_no_end("flux job timeleft", timeleft))
    if left is None or (outer.seconds_left is not None and outer.seconds_left < left):
        left = outer.seconds_left
    left = None if left == float("inf") else left
    return Found("flux", job, hosts, cores, outer.memory, gpus, left, (*outer.problems, *problems))


def _lsf(environ: Mapping[str, str], ask: Ask, host: str) -> Found:
    job, problems = environ["LSB_JOBID"], []
    if _number(element := environ.get("LSB_JOBINDEX")) > 0:
        job = f"{job}[{element}]"  # elements of an array share the number
    words = environ.get("LSB_MCPU_HOSTS", "").split()
    slots = dict(zip(words[::2], map(_number, words[1::2]), strict=False))
    if len(slots) > 1 and min(slots.values()) == 1 == next(iter(slots.values())) < max(slots.values()):
        slots.pop(next(iter(slots)))  # the launch host of a machine with jsrun, which runs no tasks
    answer = (ask(["bjobs", "-noheader", "-o", "time_left", job]) or "").strip()
    left = _hours_minutes(answer)
    if left is None and answer != "-":
        problems.append(_no_end(f"bjobs -o time_left {job}", answer))
    short = {name.split(".")[0]: count for name, count in slots.items()}
    return Found("lsf", job, tuple(slots), short.get(host.split(".", maxsplit=1)[0], 0), 0, (), left, tuple(problems))


def _pbs(environ: Mapping[str, str], ask: Ask, host: str, now: float) -> Found:
    job, problems = environ["PBS_JOBID"], []
    file = environ.get("PBS_NODEFILE", "")
    try:
        lines = Path(file).read_text(encoding="utf-8").split()
    except OSError as error:
        lines = []
        problems.append(f"PBS_NODEFILE={file}: expected the job's hosts, found: {error.strerror}")
    # OpenPBS writes a line for each MPI process, Torque one for each core; NCPUS is OpenPBS's own count
    here = sum(line.split(".")[0] == host.split(".", maxsplit=1)[0] for line in lines)
    cores = max(_number(environ.get("NCPUS")), here if environ.get("PBS_NUM_PPN") else 0)
    as_json, as_text = ask(["qstat", "-f", "-F", "json", job]), ask(["qstat", "-f", job])
    left = _pbs_left(as_json, as_text, now)
    if left is None:
        problems.append(_no_end(f"qstat -f {job}", "no walltime" if as_json or as_text else ""))
    return Found("pbs", job, tuple(dict.fromkeys(lines)), cores, 0, (), left, tuple(problems))


def _pbs_left(as_json: str | None, as_text: str | None, now: float) -> float | None:
    try:
        jobs: dict[str, Any] = json.loads(as_json or "")["Jobs"]
        job = next(iter(jobs.values()))
        limit = clock(str(job["Resource_List"]["walltime"]))
        began = _pbs_time(job.get("stime"))
        used = clock(str(job.get("resources_used", {}).get("walltime", "00:00:00"))) or 0.0
    except (ValueError, KeyError, TypeError, StopIteration):
        remaining = re.search(r"Walltime\.Remaining = (\d+)", as_text or "")
        return float(remaining[1]) if remaining else None
    if limit is None:
        return None
    # PBS asks its hosts for what is used only now and then, so what it says of that is old
    return max(0.0, limit - used if began is None else began + limit - now)


def _pbs_time(said: object) -> float | None:
    """Return a time as ``qstat`` writes it, such as ``Mon Nov 23 05:51:57 2026`` of this host's zone, as Unix time."""
    try:
        return time.mktime(time.strptime(str(said), "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None


def launcher(batch_type: str, environ: Mapping[str, str], ask: Ask) -> Kind | None:
    """Return the launcher for a study's ``batch.type`` on this machine; None where scripts are started as they are."""
    match batch_type:
        case "slurm" | "lsf-srun":
            return Kind.SRUN
        case "flux":
            return flux_kind(flux_version(ask))
        case "lsf":
            return Kind.JSRUN
        case "pbs":
            return flux_kind(flux_version(ask)) if environ.get("FLUX_URI") else mpi_kind(ask)
        case _:
            return None


def flux_version(ask: Ask) -> str:
    """Return flux-core's version such as ``0.48.0``; empty where there is none."""
    named = re.search(r"(?:commands|flux-core):\s*v?(\S+)", ask(["flux", "version"]) or "")
    return named[1] if named else ""


def launcher_version(kind: Kind, ask: Ask) -> str:
    """Return the version that a launcher says of itself, such as ``22.05.8``; empty where it says none."""
    program = kind.value.split()[0]
    if program == "flux":
        return flux_version(ask)
    said = ask([program, "-V" if kind is Kind.APRUN else "--version"]) or ""
    named = re.search(r"\d+(?:\.\d+)+\S*", said)
    return named[0] if named else ""


def mpi_kind(ask: Ask) -> Kind:
    """Return the family of this machine's ``mpiexec``."""
    said = ask(["mpiexec", "--version"]) or ""
    if "PALS" in said:
        return Kind.PALS
    if "Open MPI" in said or "OpenRTE" in said or "PRRTE" in said:
        return Kind.OPENMPI
    if not said and ask(["aprun", "-V"]) is not None:
        return Kind.APRUN
    return Kind.HYDRA


def clock(text: str) -> float | None:
    """Return ``[days-]hours:minutes:seconds``, ``minutes:seconds`` or bare seconds as seconds; None for anything else."""
    given = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)", text.strip())
    if given is None:
        return None
    days, first, second, last = (None if part is None else int(part) for part in given.groups())
    hours, minutes = (first or 0, second) if second is not None else (0, first or 0)
    return float(((days or 0) * 24 + hours) * 3600 + minutes * 60 + (last or 0))


def _hours_minutes(text: str) -> float | None:
    """LSF's ``12:34 L``; a letter says how it was worked out."""
    given = re.match(r"(\d+):(\d+)", text)
    return float(int(given[1]) * 3600 + int(given[2]) * 60) if given else None


def _visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        if devices := _list(environ.get(name, "")):
            return devices
    return ()


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip() and word.strip() != "NoDevFiles")


def _number(text: str | None) -> int:
    found = re.match(r"\d+", (text or "").strip())
    return int(found[0]) if found else 0


def _float(text: str | None) -> float | None:
    try:
        return float((text or "").strip())
    except ValueError:
        return None
