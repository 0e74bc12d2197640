"""From what a step asks for to the command line that starts it in parallel: ``$(LAUNCHER)`` and ``$(VLAUNCHER)``.

A step's script keeps its launcher tokens until an agent writes it, for only the machine knows which launcher it has and of
which version (upstream asks the submitter's host). The lines are those of Merlin 1.13 option by option, with its defects
mended: nodes without processes, GPUs, and several launches in a line. Every function here is pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

LAUNCHER: Final = re.compile(r"\$\(LAUNCHER\)(?:\[(?P<share>[^\]\n]*)\])?")
VLAUNCHER: Final = "$(VLAUNCHER)"
_SHARE: Final = re.compile(r"(?:(?P<nodes>\d+)\s*n?\s*,\s*(?P<procs>\d+)\s*p?|(?P<only>\d+)\s*p)")
_VARIABLES: Final = ("MERLIN_NODES", "MERLIN_PROCS", "MERLIN_CORES", "MERLIN_GPUS")
"""What ``$(VLAUNCHER)`` reads when the script runs."""


class Kind(StrEnum):
    """A launcher, told apart as far as its options differ.

    ``flux mini run`` is that of versions 0.13 to 0.47, ``flux wreckrun`` that of older ones. ``mpiexec`` has three families:
    HPE's PALS, MPICH's hydra (Intel's too) and Open MPI.
    """

    SRUN = "srun"
    FLUX_RUN = "flux run"
    FLUX_MINI = "flux mini run"
    FLUX_WRECK = "flux wreckrun"
    JSRUN = "jsrun"
    APRUN = "aprun"
    PALS = "mpiexec (PALS)"
    HYDRA = "mpiexec (hydra)"
    OPENMPI = "mpiexec (Open MPI)"


class LaunchError(ValueError):
    """A step asks for what its launcher can't do; the message says what, and what to write instead."""


class Launch(BaseModel):
    """What a step asks for, as its specification says it; None is what it leaves open.

    ``cores`` and ``gpus_per_task`` are for each process, ``nodes``, ``procs`` and ``gpus`` for the whole task. ``arguments`` maps
    ``slurm``, ``flux`` and ``lsf`` to raw arguments, and the names of jsrun's own keys (``bind``, ``num resource set`` …) to values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: str
    nodes: int | None = None
    procs: int | None = None
    cores: int | None = None
    gpus: int | None = None
    gpus_per_task: int | None = None
    arguments: dict[str, str] = Field(default_factory=dict)

    @property
    def parallel(self) -> bool:
        """Whether tokens are replaced at all: upstream leaves them to the shell where a step names neither."""
        return self.nodes is not None or self.procs is not None


@dataclass(frozen=True, slots=True)
class _Size:
    """Numbers, or the shell variables that hold them, of one launch."""

    nodes: int | str | None
    procs: int | str | None
    cores: int | str | None
    walltime: int | None
    gpus: int | str | None
    gpus_per_task: int | None
    hosts: tuple[str, ...] = ()


def flux_kind(version: str) -> Kind:
    """Return the spelling of a flux of this version (``0.48.0``); what can't be read counts as the newest.

    The borders are upstream's (``get_flux_cmd``): 0.13 brought ``flux mini``, 0.48 ``flux run``.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (99, 0)
    if number >= (0, 48):
        return Kind.FLUX_RUN
    return Kind.FLUX_MINI if number >= (0, 13) else Kind.FLUX_WRECK


def expand(
    text: str,
    launch: Launch,
    kind: Kind,
    *,
    walltime: int | None = None,
    shell: str = "/bin/bash",
    hosts: tuple[str, ...] = (),
) -> str:
    """Return a script with its launcher tokens replaced.

    Args:
        text: The script.
        launch: What its step asks for; a step without nodes and procs keeps its tokens, as upstream.
        kind: The launcher of the machine.
        walltime: The step's, in seconds.
        shell: Decides how ``$(VLAUNCHER)``'s variables are set.
        hosts: Those that the launches have, and no others; several launches share them in their order. Empty: all of the
            allocation. jsrun and flux before 0.48 can't be told.

    Raises:
        LaunchError: the step asks for what the launcher can't do.
    """
    if not launch.parallel:
        return text
    _check_shares(text, launch)
    rest = list(hosts)

    def replaced(match: re.Match[str]) -> str:
        nodes, procs = share(match["share"]) if match["share"] is not None else (launch.nodes, launch.procs)
        whole = match["share"] is None
        own = tuple(rest[:nodes]) if not whole and nodes else hosts[:procs] if not whole else hosts[:nodes]
        if not whole and nodes:
            del rest[:nodes]
        gpus = launch.gpus if whole else None
        return _line(kind, _Size(nodes, procs, launch.cores, walltime, gpus, launch.gpus_per_task, own), launch)

    expanded = LAUNCHER.sub(replaced, text)
    if VLAUNCHER not in expanded:
        return expanded
    gpus = "${MERLIN_GPUS}" if launch.gpus else None
    size = _Size("${MERLIN_NODES}", "${MERLIN_PROCS}", "${MERLIN_CORES}", None, gpus, None, hosts)
    return _settings(expanded, launch, shell) + expanded.replace(VLAUNCHER, _line(kind, size, launch))


def share(text: str) -> tuple[int | None, int]:
    """Parse what stands in brackets behind a token: ``1n, 2p``, ``2p`` or ``1, 2``; nodes and processes.

    Raises:
        LaunchError: it is none of these.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise LaunchError(f"$(LAUNCHER)[{text}]: expected [2p], [1n, 2p] or [nodes, procs] such as [1, 2]")
    if found["only"] is not None:
        return None, int(found["only"])
    return int(found["nodes"]), int(found["procs"])


def _check_shares(text: str, launch: Launch) -> None:
    """Several launches share what the step asks for, so together they take no more (Maestro's rule)."""
    shares = [share(match["share"]) for match in LAUNCHER.finditer(text) if match["share"] is not None]
    sums = {"nodes": sum(nodes or 0 for nodes, _ in shares), "procs": sum(procs for _, procs in shares)}
    for name, limit in (("nodes", launch.nodes), ("procs", launch.procs)):
        if limit is not None and sums[name] > limit:
            raise LaunchError(
                f"$(LAUNCHER)[…] takes {sums[name]} {name} in all, and the step has {limit}; raise {name} or take less"
            )


def _settings(text: str, launch: Launch, shell: str) -> str:
    """Set the variables of ``$(VLAUNCHER)`` that the script does not set itself."""
    values = (launch.nodes or 1, launch.procs or 1, launch.cores or 1, launch.gpus or 0)
    prefix = "set " if "csh" in shell else ""
    missing = (
        (name, value) for name, value in zip(_VARIABLES, values, strict=True) if not re.search(rf"\b{name}=", text)
    )
    return "".join(f"{prefix}{name}={value}\n" for name, value in missing)


def _line(kind: Kind, size: _Size, launch: Launch) -> str:
    build = _BUILDERS[kind]
    return " ".join(build(size, launch))


def _srun(size: _Size, launch: Launch) -> list[str]:
    return [
        "srun",
        *_option("-n", size.procs),
        *_option("-N", size.nodes if size.nodes is not None else len(size.hosts) or None),
        *_hosts("-w", size),
        *(["-t", clock(size.walltime)] if size.walltime else []),
        *_option("-c", size.cores),
        *([f"--gpus-per-task={size.gpus_per_task}"] if size.gpus_per_task else _long("--gpus", size.gpus)),
        *_raw(launch, "slurm"),
    ]


def _flux(command: str, walltime_option: str, *, requires: bool = False) -> Callable[[_Size, Launch], list[str]]:
    def build(size: _Size, launch: Launch) -> list[str]:
        # flux counts processes: hosts alone are one process on each
        procs = size.procs if size.procs is not None else size.nodes
        return [
            command,
            *_option("-n", procs),
            *_option("-N", size.nodes),
            *([f"--requires=hosts:{','.join(size.hosts)}"] if requires and size.hosts else []),
            *([walltime_option, f"{float(size.walltime)}s"] if size.walltime else []),
            *_option("-g", _gpus_of_each(size, procs, "flux")),
            *_option("-c", size.cores),
            *_raw(launch, "flux"),
        ]

    return build


def _jsrun(size: _Size, launch: Launch) -> list[str]:
    procs = size.procs if size.procs is not None else size.nodes
    sets = launch.arguments.get("num resource set") or size.nodes or 1
    spread = launch.arguments.get("launch_distribution") or f"plane:{_quotient(procs, size.nodes)}"
    return [
        "jsrun",
        *_option("--np", procs),
        *_option("--nrs", sets),
        *_option("-b", launch.arguments.get("bind") or "rs"),
        *_option("-d", spread),
        *_option("-X", launch.arguments.get("exit_on_error") or "1"),
        *_option("-c", size.cores),
        *_option("-g", _gpus_of_each(size, procs, "jsrun")),
        *_raw(launch, "lsf"),
    ]


def _aprun(size: _Size, launch: Launch) -> list[str]:
    del launch
    procs = size.procs if size.procs is not None else size.nodes
    return ["aprun", *_option("-n", procs), *_per_node("-N", size), *_option("-d", size.cores), *_hosts("-L", size)]


def _pals(size: _Size, launch: Launch) -> list[str]:
    del launch
    procs = size.procs if size.procs is not None else size.nodes
    depth = [f"--depth={size.cores}", "--cpu-bind=depth"] if size.cores else []
    return ["mpiexec", *_option("-n", procs), *_per_node("--ppn", size), *_hosts("--hosts", size), *depth]


def _hydra(size: _Size, launch: Launch) -> list[str]:
    del launch
    procs = size.procs if size.procs is not None else size.nodes
    return ["mpiexec", *_option("-n", procs), *_per_node("-ppn", size), *_hosts("-hosts", size)]


def _openmpi(size: _Size, launch: Launch) -> list[str]:
    del launch
    procs = size.procs if size.procs is not None else size.nodes
    each = f":PE={size.cores}" if size.cores else ""
    on_each = _quotient(procs, len(size.hosts) or 1)
    named = ["--host", ",".join(f"{host}:{on_each}" for host in size.hosts)] if size.hosts else []
    if size.nodes is not None:
        return ["mpiexec", *_option("-n", procs), *named, "--map-by", f"ppr:{_quotient(procs, size.nodes)}:node{each}"]
    return ["mpiexec", *_option("-n", procs), *named, *(["--map-by", f"slot{each}"] if each else [])]


_BUILDERS: Final[Mapping[Kind, Callable[[_Size, Launch], list[str]]]] = {
    Kind.SRUN: _srun,
    Kind.FLUX_RUN: _flux("flux run", "-t", requires=True),
    Kind.FLUX_MINI: _flux("flux mini run", "-t"),
    Kind.FLUX_WRECK: _flux("flux wreckrun", "-T"),
    Kind.JSRUN: _jsrun,
    Kind.APRUN: _aprun,
    Kind.PALS: _pals,
    Kind.HYDRA: _hydra,
    Kind.OPENMPI: _openmpi,
}


def clock(seconds: int) -> str:
    """Return a walltime as Slurm takes it, ``HH:MM:SS``; days are hours, as upstream writes them."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def _option(name: str, value: int | str | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _hosts(name: str, size: _Size) -> list[str]:
    return [name, ",".join(size.hosts)] if size.hosts else []


def _long(name: str, value: int | str | None) -> list[str]:
    return [f"{name}={value}"] if value else []


def _raw(launch: Launch, family: str) -> list[str]:
    text = launch.arguments.get(family, "").strip()
    return [text] if text else []


def _per_node(name: str, size: _Size) -> list[str]:
    return [] if size.nodes is None else [name, str(_quotient(size.procs or size.nodes, size.nodes))]


def _gpus_of_each(size: _Size, procs: int | str | None, launcher: str) -> int | str | None:
    """Return the GPUs of each process; these launchers can't be given a number for the whole task."""
    if size.gpus_per_task or not size.gpus:
        return size.gpus_per_task or None
    if isinstance(size.gpus, str) or not isinstance(procs, int):
        return f"$(({size.gpus} / {procs or 1}))"
    if size.gpus % procs:
        raise LaunchError(
            f"{launcher} takes GPUs for each process: expected gpus to be a multiple of procs, found {size.gpus} for "
            f"{procs}; write 'gpus per task'"
        )
    return size.gpus // procs


def _quotient(procs: int | str | None, nodes: int | str | None) -> int | str:
    """Return the processes on each host, rounded up; in the shell's arithmetic where they are variables."""
    if isinstance(procs, int) and (nodes is None or isinstance(nodes, int)):
        return -(-procs // (nodes or 1))
    return f"$((({procs} + {nodes} - 1) / {nodes}))"
