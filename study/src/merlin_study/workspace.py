"""Where everything lies on disk: Merlin's layout, from the study's directory down to a task's files.

    <root>/<name>_<stamp>/
      merlin_info/                      provenance, samples, the workspace mark, outcome logs
      <step>/[<combination>/][<sample path>/]
        <step>[_<combination>][.restart][.slurm].sh  .out  .err  MERLIN_FINISHED

Pure arithmetic on strings; the agent makes the directories.
"""

from __future__ import annotations

import posixpath
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from merlin_study import samples
from merlin_study.geometry import Geometry
from merlin_study.plan import DEPENDENCIES_STEP, INFO_STEP, Plan
from merlin_study.template import Template

INFO: Final = "merlin_info"
FINISHED: Final = "MERLIN_FINISHED"
MARK: Final = "workspace.json"
"""In ``merlin_info``: which study the workspace belongs to. An agent that does not see it takes nothing of the study."""
PLAN_FILE: Final = "plan.json"
KEPT: Final = 1024
"""Combinations whose names and values are kept: a step may have a hundred thousand."""
SPECROOT: Final = "specroot"
"""In ``merlin_info``: the files that came with the study, where ``$(SPECROOT)`` is not the specification's own folder."""
OUTCOMES: Final = "outcomes"
"""In ``merlin_info``: one append-only log an agent, ``<agent>.jsonl``."""
TASK_LOGS: Final = "tasks"
"""In ``merlin_info``: chunks' logs under ``outputs: lean``, archives under ``packed``; a directory a step (`tasklog`, `archive`)."""
SLOTS: Final = "slots"
"""In ``merlin_info``: the directories that slots lend to tasks under ``outputs: lean``."""
SUBMISSIONS: Final = "submissions"
"""In ``merlin_info``: one file for each study that this one's steps started, ``<submission>.json``."""
PRESENCE: Final = "agents"
"""In ``merlin_info``: one file an agent, touched while it lives."""
PATHS_FILE: Final = "sample_paths.txt"
"""In ``merlin_info``: the directory of each sample below a step's, one a line, where a step mentions the file's name."""
IN_PARAMETERS: Final = frozenset({"WORKSPACE", "MERLIN_WORKSPACE", "MERLIN_INFO", "OUTPUT_PATH", "MERLIN_GLOB_PATH"})
"""Tokens of ours that a parameter's value may hold; the agent fills them in."""
PATH_LISTS: Final = (PATHS_FILE, "$(MERLIN_PATHS_ALL)")
"""What a script holds that may need `PATHS_FILE`."""

_SAFE: Final = frozenset(string.ascii_letters + string.digits + "-_.()")


def safe_name(text: str) -> str:
    """Return ``text`` as one directory name, as Maestro makes it: spaces become ``_``, what is unsafe is dropped."""
    return "".join(c for c in text.replace(" ", "_") if c in _SAFE)


def run_directory(name: str, stamp: str) -> str:
    """Return what the directory of a study's run is called, by upstream's rule: the name with ``_`` for blanks, ``_``, and the stamp."""
    return f"{name.replace(' ', '_')}_{stamp}"


def study_root(plan: Plan, workspace_root: str, complete: Callable[[str], str] = str) -> str:
    """Return the study's directory, below ``workspace_root`` unless the user gave an absolute ``OUTPUT_PATH``.

    ``complete`` replaces ``~`` and environment variables in it; without one they stand for nothing and stay.
    """
    below = posixpath.join(workspace_root, complete(plan.output_path), plan.workspace)
    return posixpath.normpath(below)


def wants_paths(plan: Plan) -> bool:
    """Whether a step of the study reads `PATHS_FILE`, or would be told to if its ``$(MERLIN_PATHS_ALL)`` grew too long."""
    return any(name in text for step in plan.steps for text in (step.cmd, step.restart) for name in PATH_LISTS)


class UnfillableError(ValueError):
    """A token has a meaning, but no text that a script could hold; the message says what to use instead."""


@dataclass(frozen=True)
class Scripts:
    """The names of the files of one task, all in its directory; a restart script has outputs of its own, as upstream."""

    cmd: str
    restart: str

    @staticmethod
    def outputs(script: str) -> tuple[str, str]:
        """Return what standard output and error of a script go to."""
        stem = script.removesuffix(".sh")
        return f"{stem}.out", f"{stem}.err"


@dataclass(frozen=True)
class Layout:
    """Paths of a study whose directory is ``root`` (absolute) and whose tasks ``geometry`` numbers.

    ``spec_root`` is what ``$(SPECROOT)`` stands for; empty for the files in ``merlin_info``.
    """

    root: str
    geometry: Geometry
    spec_root: str = ""
    _labels: dict[tuple[int, int], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def plan(self) -> Plan:
        """The plan that the geometry belongs to."""
        return self.geometry.plan

    @cached_property
    def info(self) -> str:
        """The directory ``merlin_info``."""
        return f"{self.root}/{INFO}"

    def combination_label(self, step: int, combination: int) -> str:
        """Return the labels of a combination joined by dots, in the order of the sorted keys; empty without parameters."""
        key = (step, combination)
        if key not in self._labels:
            row = self.geometry.row(step, combination)
            if len(self._labels) >= KEPT:
                self._labels.clear()
            used = self.plan.steps[step].parameters
            by_key = {parameter.key: parameter.labels for parameter in self.plan.parameters if parameter.key in used}
            self._labels[key] = ".".join(by_key[name][row] for name in used)
        return self._labels[key]

    def step_dir(self, step: int, combination: int | None = None) -> str:
        """Return a step's directory, or that of one of its combinations."""
        name = safe_name(self.plan.steps[step].name)
        if self.plan.steps[step].name == INFO_STEP:
            return self.info
        if self.plan.steps[step].name == DEPENDENCIES_STEP:
            return f"{self.info}/dependencies"
        label = "" if combination is None else safe_name(self.combination_label(step, combination))
        return f"{self.root}/{name}/{label}" if label else f"{self.root}/{name}"

    def task_logs(self, step: int) -> str:
        """Return the directory of a step's logs under ``outputs: lean``."""
        return f"{self.info}/{TASK_LOGS}/{safe_name(self.plan.steps[step].name)}"

    def sample_path(self, step: int, sample: int) -> str:
        """Return a sample's directory below the step's, ``00/07`` for instance; empty where the step has none."""
        planned, table = self.plan.steps[step], self.plan.samples
        if not planned.sampled or table is None:
            return ""
        return samples.path(sample, self.geometry.samples, table.level_max_dirs)

    def task_dir(self, step: int, task: int) -> str:
        """Return the directory that a task runs in."""
        combination, sample = self.geometry.split(step, task)
        below = self.sample_path(step, sample)
        directory = self.step_dir(step, combination)
        return f"{directory}/{below}" if below else directory

    def scripts(self, step: int, combination: int) -> Scripts:
        """Return the file names of a combination's tasks (a sample's files carry no sample in their names)."""
        planned = self.plan.steps[step]
        if planned.name == INFO_STEP:
            return Scripts("cmd.sh", "cmd.restart.sh")
        if planned.name == DEPENDENCIES_STEP:
            return Scripts("dependencies.sh", "dependencies.restart.sh")
        label = safe_name(self.combination_label(step, combination))
        stem = f"{safe_name(planned.name)}_{label}" if label else safe_name(planned.name)
        return Scripts(f"{stem}{planned.suffix}.sh", f"{stem}.restart{planned.suffix}.sh")


class TaskTokens:
    """Fills a step's script for one of its tasks.

    Defines parameters (``X``, ``X.label``, ``X.name``), ``<step>.workspace``, ``WORKSPACE``, the ``MERLIN_*`` tokens
    that differ between studies, agents or tasks, and the sample's columns. Upstream matches sample columns without
    regard to case; so do we. Before that, `Plan.variables` are put in. ``complete`` replaces what an environment knows in their
    texts and in parameters' values; not in labels, which name directories that all agents have to find. ``places`` has the directories
    of the step's own tasks where these are elsewhere.
    """

    def __init__(
        self, layout: Layout, step: int, complete: Callable[[str], str] = str, *, places: Layout | None = None
    ) -> None:
        self._layout, self._step, self._complete = layout, step, complete
        self._places = places or layout
        planned = layout.plan.steps[step]
        self._variables = {name: complete(text) for name, text in layout.plan.variables.items()}
        self.cmd = self.parse(planned.cmd)
        self.restart = self.parse(planned.restart)
        self._steps = {other.name: index for index, other in enumerate(layout.plan.steps)}
        self._funnels = {edge.parent for edge in planned.edges if edge.kind == "all"}
        self._columns: dict[str, int] = {}
        if planned.sampled and layout.plan.samples is not None:
            self._columns = {name.lower(): at for at, name in enumerate(layout.plan.samples.columns)}
        self._shared: dict[int, dict[str, str]] = {}

    def parse(self, text: str) -> Template:
        """Return a text with the plan's variables in it, ready for `render`."""
        return Template.parse(Template.parse(text).render(self._variables.get))

    def render(self, template: Template, *, combination: int, sample: int, values: Sequence[str]) -> str:
        """Return the script's text; ``values`` are the sample's columns, in the table's order.

        Raises:
            UnfillableError: it would hold more than a script can.
        """
        own = self.own(sample, values)
        return self._render(template, combination, lambda name: own(name.lower()))

    def bound(self, template: Template, combination: int) -> Template:
        """Return the template with only those tokens left in it that differ between samples.

        Raises:
            UnfillableError: it would hold more than a script can.
        """
        pieces = [template.pieces[0]]
        lookup = self._lookup(combination, lambda _: None)
        for name, text in zip(template.pieces[1::2], template.pieces[2::2], strict=True):
            if name.lower() in self.differing and name not in self._values(combination):
                pieces += name, text
            else:
                value = lookup(name)
                pieces[-1] += (f"$({name})" if value is None else value) + text
        return Template(tuple(pieces))

    def filler(self, bound: Template) -> Callable[[int, Sequence[str]], str]:
        """Return what makes the text of a sample, given the sample and its values, as `render` does it."""
        begin = bound.pieces[0]
        if len(bound.pieces) == 1:
            return lambda _, __: begin
        names = [name.lower() for name in bound.names()]
        columns = [
            (self._columns[name], text)
            for name, text in zip(names, bound.pieces[2::2], strict=True)
            if name in self._columns
        ]
        widest = max((at for at, _ in columns), default=0) if len(columns) == len(names) else sys.maxsize

        def fill(sample: int, values: Sequence[str]) -> str:
            if len(values) > widest:
                return begin + "".join([values[at] + text for at, text in columns])
            own = self.own(sample, values)
            return bound.render(lambda name: own(name.lower()))

        return fill

    def columns_in(self, bound: Template) -> tuple[int, ...]:
        """Return the sample's columns whose values stand in a text."""
        return tuple({self._columns[name.lower()] for name in bound.names() if name.lower() in self._columns})

    def render_shared(self, template: Template, *, combination: int) -> str:
        """Return the text with the tokens left in it that differ between samples."""
        return self._render(
            template, combination, lambda name: f"$({name})" if name.lower() in self.differing else None
        )

    @cached_property
    def differing(self) -> frozenset[str]:
        """The names, in lower case, that differ between samples."""
        if not self._layout.plan.steps[self._step].sampled:
            return frozenset()
        return frozenset({*self._columns, "merlin_sample_id", "merlin_sample_path"})

    def own(self, sample: int, values: Sequence[str]) -> Callable[[str], str | None]:
        """Return what gives the text of a name, in lower case, that is a sample's own."""

        def lookup(lowered: str) -> str | None:
            if lowered in self._columns:
                at = self._columns[lowered]
                return values[at] if at < len(values) else None
            if lowered == "merlin_sample_id":
                return str(sample)
            if lowered == "merlin_sample_path":
                return self._layout.sample_path(self._step, sample)
            return None

        return lookup

    def _render(self, template: Template, combination: int, own: Callable[[str], str | None]) -> str:
        return template.render(self._lookup(combination, own))

    def _values(self, combination: int) -> dict[str, str]:
        shared = self._shared.get(combination)
        if shared is None:
            if len(self._shared) >= KEPT:
                self._shared.clear()
            shared = self._shared[combination] = self._of_combination(combination)
        return shared

    def _lookup(self, combination: int, own: Callable[[str], str | None]) -> Callable[[str], str | None]:
        shared = self._values(combination)

        def lookup(name: str) -> str | None:
            if name in shared:
                return shared[name]
            if (mine := own(name)) is not None:
                return mine
            if name == "MERLIN_PATHS_ALL":
                return self._paths
            return self._workspace_of(name, combination)

        return lookup

    @cached_property
    def _paths(self) -> str | None:
        table, count = self._layout.plan.samples, self._layout.geometry.samples
        if table is None:
            return None
        text = samples.paths(count, table.level_max_dirs)
        if text is None:
            raise UnfillableError(
                f"$(MERLIN_PATHS_ALL) would be {samples.paths_size(count, table.level_max_dirs)} characters long, more than a "
                f"command line takes; read the paths from {self._layout.info}/{PATHS_FILE}, one a line"
            )
        return text

    def _of_combination(self, combination: int) -> dict[str, str]:
        layout = self._layout
        row = layout.geometry.row(self._step, combination)
        values = {
            "WORKSPACE": self._places.step_dir(self._step, combination),
            "MERLIN_WORKSPACE": layout.root,
            "MERLIN_INFO": layout.info,
            "OUTPUT_PATH": posixpath.dirname(layout.root),
            "SPECROOT": layout.spec_root or f"{layout.info}/{SPECROOT}",
        }
        table = layout.plan.samples
        if table is not None:
            values["MERLIN_GLOB_PATH"] = samples.glob(layout.geometry.samples, table.level_max_dirs)
        places = dict(values)
        for parameter in layout.plan.parameters:
            value, label = parameter.values[row], parameter.labels[row]
            values[parameter.key] = Template.parse(self._complete(value)).render(places.get)
            values[f"{parameter.key}.label"] = Template.parse(label).render(places.get)
            values[f"{parameter.key}.name"] = parameter.name or parameter.key
        return values

    def _workspace_of(self, name: str, combination: int) -> str | None:
        other = self._steps.get(name.removesuffix(".workspace")) if name.endswith(".workspace") else None
        if other is None:
            return None
        if other in self._funnels:
            return self._layout.step_dir(other)
        return self._layout.step_dir(other, self._layout.geometry.parent_combination(self._step, combination, other))
