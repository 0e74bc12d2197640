"""The sizes and the walltime of a step, which may differ between its combinations (``procs: $(P)``). Pure.

Each combination is routed by the room that it takes (`merlin_study.routes`). What a launch line says, and when a task is ended, is
its own, too, which the agent works out from `PlannedStep.varies` (`merlin_study.needs.exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from merlin_study import duration, launchers, memory, needs, template
from merlin_study.errors import DIFFERS_BY_SAMPLE, Fault
from merlin_study.launchers import Kind, Launch
from merlin_study.needs import WALLTIME, Sizes
from merlin_study.shape import Shape
from merlin_study.spec import Run
from merlin_study.template import Template, tokens

_FIELDS: Final = {
    "nodes": "nodes",
    "procs": "procs",
    "cores per task": "cores",
    "gpus": "gpus",
    "gpus per task": "gpus_per_task",
}
"""Keys of ``run``, and the fields of `Sizes` and `Launch` that they become."""
_STAND_IN: Final = {
    "slurm": Kind.SRUN,
    "flux": Kind.FLUX_RUN,
    "lsf": Kind.JSRUN,
    "lsf-srun": Kind.SRUN,
    "pbs": Kind.HYDRA,
}
"""A launcher for each batch type, to see what no launcher of its kind could do; which one it is, the agent finds out."""
_SLURM: Final = {"slurm", "lsf-srun"}
_MOST: Final = 1_000_000


@dataclass(frozen=True)
class Sized:
    """What a step takes: the largest of its combinations, the texts of what differs between them, and what each takes.

    ``keys`` are the tokens in these texts; ``rows`` has shape and walltime for each row of their values.
    """

    shape: Shape = field(default_factory=Shape)
    launch: Launch | None = None
    walltime: int | None = None
    varies: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    rows: Mapping[tuple[str, ...], tuple[Shape, int | None]] = field(default_factory=dict)

    def of(self, values: Mapping[str, str]) -> tuple[Shape, int | None]:
        """Return shape and walltime where the tokens have these values; the largest where some of them are not told."""
        row = tuple(values.get(key, "") for key in self.keys)
        return self.rows.get(row, (self.shape, self.walltime))


@dataclass(frozen=True)
class Author:
    """What a step's author wrote, and what its tokens stand for.

    Attributes:
        path: Where the step stands.
        run: Its block.
        kind: Its batch type.
        minutes: Whether a bare walltime in quotes is minutes.
        expand: Replaces variables.
        expand_late: The same, but for those that an agent's environment completes.
        columns: What each token of a parameter becomes, row by row.
        is_of_samples: Whether a token differs between samples.
    """

    path: str
    run: Run
    kind: str
    minutes: bool
    expand: Callable[[str], str]
    expand_late: Callable[[str], str]
    columns: Mapping[str, Sequence[str]]
    is_of_samples: Callable[[str], bool]


def size(author: Author, scripts: Mapping[str, str]) -> tuple[Sized, list[Fault]]:
    """Read the sizes and the walltime of a step, and see that its launches fit them, for each of its combinations.

    Args:
        author: What is written.
        scripts: ``cmd`` and ``restart``, variables expanded.
    """
    reader = _Reader(author)
    found = reader.rows()
    if reader.faults:
        return Sized(), reader.faults
    launched, own = author.kind in _STAND_IN, list(dict.fromkeys(found.values()))
    rows = {
        row: (needs.shape(sizes, launched=launched, walltime=limit), limit) for row, (sizes, limit) in found.items()
    }
    shapes = [each for each, _ in rows.values()]
    largest = Shape(
        nodes=max(each.nodes for each in shapes),
        cores=max(each.cores for each in shapes),
        gpus=max(each.gpus for each in shapes),
        memory=max(each.memory for each in shapes),
        walltime_class=max(each.walltime_class for each in shapes),
    )
    limit = max((limit for _, limit in own if limit is not None), default=None)
    launch = None
    if launched:
        arguments = _arguments(author)
        for sizes in dict.fromkeys(sizes for sizes, _ in own):
            launch = needs.launch(author.kind, sizes, arguments)
            if bad := _unlaunchable(author, scripts, launch):
                return Sized(), bad
        launch = needs.launch(author.kind, _most(own), arguments)
    return Sized(largest, launch, limit, reader.varies, reader.keys, rows), []


class _Reader:
    """Reads numbers and times, once for each distinct row of the parameters that they use."""

    def __init__(self, author: Author) -> None:
        self._author = author
        self.faults: list[Fault] = []
        given = {key: getattr(author.run, key.replace(" ", "_")) for key in _FIELDS}
        self._sizes = {key: author.expand(str(value)).strip() for key, value in given.items() if value is not None}
        limit = author.run.walltime
        self._limit = None if limit is None else author.expand(str(limit))
        self._minutes = author.minutes and isinstance(limit, str)
        texts = {_FIELDS[key]: text for key, text in self._sizes.items()}
        texts |= {} if self._limit is None else {WALLTIME: self._limit}
        self.varies = {name: text for name, text in texts.items() if not author.columns.keys().isdisjoint(tokens(text))}
        self._memory = None if author.run.memory is None else author.expand(author.run.memory)
        self._extras = author.expand(author.run.slurm) if author.run.slurm and author.kind in _SLURM else ""
        held = {token for text in (*self.varies.values(), self._memory or "", self._extras) for token in tokens(text)}
        self.keys = tuple(sorted(held & author.columns.keys()))

    def rows(self) -> dict[tuple[str, ...], tuple[Sizes, int | None]]:
        """Return sizes and time for each distinct row of the tokens' values."""
        columns = [self._author.columns[key] for key in self.keys]
        rows = dict.fromkeys(zip(*columns, strict=False)) if columns else {(): None}
        found: dict[tuple[str, ...], tuple[Sizes, int | None]] = {}
        for row in rows:
            values = dict(zip(self.keys, row, strict=True))
            numbers = {_FIELDS[key]: self._number(key, text, values) for key, text in self._sizes.items()}
            sizes = Sizes(**numbers)
            found[row] = replace(sizes, memory=self._mebibytes(sizes, values)), self._seconds(values)
            if self.faults:
                break
        return found

    def _number(self, key: str, text: str, values: Mapping[str, str]) -> int:
        filled = Template.parse(text).render(values.get)
        least = 0 if key.startswith("gpus") else 1
        if template.is_number(filled) and least <= int(filled) <= _MOST:
            return int(filled)
        origin = "" if filled == text else f" of {text}"
        wanted = f"expected a whole number from {least} to {_MOST}, found {template.shown(filled)}{origin}{self._why(filled)}"
        self.faults.append(Fault(f"{self._author.path}.run.{key}", wanted))
        return least

    def _mebibytes(self, sizes: Sizes, values: Mapping[str, str]) -> int | None:
        """Return what the step declares, else what it hands to Slurm."""
        if self._memory is None:
            cores = needs.shape(sizes, launched=True, walltime=None).cores
            return memory.of_slurm(Template.parse(self._extras).render(values.get), cores) if self._extras else None
        filled = Template.parse(self._memory).render(values.get)
        try:
            return memory.mebibytes(filled)
        except ValueError as error:
            self.faults.append(Fault(f"{self._author.path}.run.memory", f"{error}{self._why(filled)}"))
            return None

    def _seconds(self, values: Mapping[str, str]) -> int | None:
        if self._limit is None:
            return None
        filled = Template.parse(self._limit).render(values.get)
        try:
            return duration.seconds(filled, minutes=self._minutes)
        except ValueError as error:
            self.faults.append(Fault(f"{self._author.path}.run.walltime", f"{error}{self._why(filled)}"))
            return None

    def _why(self, filled: str) -> str:
        return f", {DIFFERS_BY_SAMPLE}" if any(map(self._author.is_of_samples, tokens(filled))) else ""


def _most(own: Sequence[tuple[Sizes, int | None]]) -> Sizes:
    def most(name: str) -> int | None:
        return max((number for sizes, _ in own if (number := getattr(sizes, name)) is not None), default=None)

    return Sizes(*(most(name) for name in _FIELDS.values()))


def _arguments(author: Author) -> dict[str, str]:
    run = author.run
    given = {
        "slurm": run.slurm,
        "flux": run.flux,
        "lsf": run.lsf,
        "bind": run.bind,
        "num resource set": run.num_resource_set,
        "launch_distribution": run.launch_distribution,
        "exit_on_error": run.exit_on_error,
    }
    return {key: author.expand_late(str(value)) for key, value in given.items() if value is not None}


def _unlaunchable(author: Author, scripts: Mapping[str, str], launch: Launch) -> list[Fault]:
    faults = []
    for key, script in scripts.items():
        try:
            launchers.expand(script, launch, _STAND_IN[author.kind])
        except launchers.LaunchError as error:
            faults.append(Fault(f"{author.path}.run.{key}", str(error)))
    return faults
