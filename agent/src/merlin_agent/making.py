"""What the tasks of a step run: place, text and launch lines of each script, with all that a combination's tasks share worked out once.

Short tasks end by the thousand a second, so what is done for each is little: a division, a few joins of texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final, NamedTuple

from merlin_agent import badges, launching, surroundings
from merlin_agent.alike import Alike, alike
from merlin_agent.launch import Script
from merlin_agent.resources import Share
from merlin_agent.rows import Rows
from merlin_agent.warmth import Interpreter, interpreter
from merlin_study import needs, shape
from merlin_study.launchers import Launch
from merlin_study.tasklog import Text
from merlin_study.template import tokens
from merlin_study.workspace import Layout, Scripts, TaskTokens

KEPT: Final = 1024
"""Combinations whose names and texts are kept: a step may have a hundred thousand."""


class Shared(NamedTuple):
    """What the tasks of one combination share."""

    directory: str
    script: str
    out: str
    err: str
    """Names of files in a task's directory, each with a slash before it."""
    shell: str
    warm: Interpreter | None
    fill: Callable[[int, Sequence[str]], str]
    """Makes the text of a sample, given its values."""
    launch: Launch | None
    walltime: int | None
    variables: Mapping[bytes, bytes]
    """What their environment has besides the agent's, but for what changes with the time."""
    logged: Text | None
    """The text with the tokens in it that differ between samples; None where each task's own has to be told."""
    alike: Alike | None
    """What stands for the texts of samples where these are checked; None where each is checked by itself."""
    columns: tuple[int, ...]
    """Those whose values stand in the texts."""


class Making:
    """The scripts of one step of one study.

    ``home`` is a directory on this host's own disk for tasks that run there; without one they run in the workspace.
    """

    def __init__(self, layout: Layout, step: int, *, rows: Rows | None, restart: bool, home: str = "") -> None:
        self._layout, self._step, self._rows, self.home = layout, step, rows, home
        self._places = replace(layout, root=home) if home else layout
        self._planned = layout.plan.steps[step]
        self._tokens = TaskTokens(layout, step, surroundings.complete, places=self._places)
        self._restart = restart and bool(self._planned.restart)
        self._template = self._tokens.restart if self._restart else self._tokens.cmd
        self._interpreters: dict[str, Interpreter | None] = {}
        self._shared: dict[int, Shared] = {}
        self._total, self._samples = layout.geometry.total(step), layout.geometry.samples_of(step)
        self._own = [name.lower() for name in self._template.names() if name.lower() in self._tokens.differing]
        self._differ = len(set(self._own))

    @cached_property
    def _varies(self) -> bool:
        """Whether the script differs between samples."""
        return self._layout.plan.samples is not None and self._planned.sampled and bool(self._own)

    def _interpreter(self, shell: str) -> Interpreter | None:
        """Return what may run scripts of a ``#!`` line without being started for each."""
        if not self._planned.warm:
            return None
        if shell not in self._interpreters:
            if len(self._interpreters) >= KEPT:
                self._interpreters.clear()
            self._interpreters[shell] = interpreter(shell, self._planned.preload)
        return self._interpreters[shell]

    @property
    def name(self) -> str:
        """The step's name."""
        return self._planned.name

    @property
    def restarts(self) -> bool:
        """Whether the tasks run the restart script."""
        return self._restart

    def split(self, task: int) -> tuple[int, int]:
        """Return (combination, sample) of a task.

        Raises:
            IndexError: the step has no such task.
        """
        return divmod(task, self._samples) if 0 <= task < self._total else self._layout.geometry.split(self._step, task)

    def shared(self, combination: int) -> Shared:
        """Return what the tasks of a combination share.

        Raises:
            UnfillableError: a token would not fit into their scripts.
        """
        found = self._shared.get(combination)
        if found is None:
            found = self._share(combination)
            if len(self._shared) >= KEPT:
                self._shared.clear()
            self._shared[combination] = found
        return found

    def _share(self, combination: int) -> Shared:
        names = self._layout.scripts(self._step, combination)
        script = names.restart if self._restart else names.cmd
        out, err = names.outputs(script)
        shell = self._of_combination(surroundings.complete(self._planned.shell), combination)
        launch, walltime = self._exact(combination)
        cores = shape.parse(self._layout.geometry.lane(self._step, combination * self._samples).shape).cores
        launched = launching.variables(launch.type, os.environ) if launch is not None and launch.parallel else {}
        bound = self._tokens.bound(self._template, combination)
        return Shared(
            self._places.step_dir(self._step, combination),
            f"/{script}",
            f"/{out}",
            f"/{err}",
            shell,
            self._interpreter(shell),
            self._tokens.filler(bound),
            launch,
            walltime,
            badges.variables(cores) | launched,
            self._text_for_all(shell, combination),
            alike(bound.pieces) if self._varies and launch is None else None,
            self._tokens.columns_in(bound),
        )

    def _text_for_all(self, shell: str, combination: int) -> Text | None:
        if not self._varies or self._planned.launch is not None:
            return None
        text = self._tokens.render_shared(self._template, combination=combination)
        differing = [name.lower() for name in tokens(text) if name.lower() in self._tokens.differing]
        return Text(shell, text) if differing == self._own else None

    def script(self, task: int) -> Script:
        """Return a task's script; its text has no launch lines yet.

        Raises:
            RowError: the sample's row can't be read.
            UnfillableError: a token would not fit into the script.
        """
        combination, sample = self.split(task)
        shared = self.shared(combination)
        directory = shared.directory
        if self._planned.sampled and (below := self._layout.sample_path(self._step, sample)):
            directory = f"{directory}/{below}"
        values = self._values(sample)
        same = shared.alike
        return Script(
            directory,
            directory + shared.script,
            directory + shared.out,
            directory + shared.err,
            shared.shell,
            shared.variables,
            "",
            shared.fill(sample, values),
            shared.warm,
            same.text if same is not None and same.covers([values[at] for at in shared.columns]) else "",
        )

    def _values(self, sample: int) -> Sequence[str]:
        return self._rows.row(sample) if self._varies and self._rows is not None else ()

    def launched(self, text: str, task: int, hosts: tuple[str, ...]) -> str:
        """Return a task's script with launch lines for these hosts; empty: for this one.

        Raises:
            LaunchError: it asks for what this machine's launcher can't do.
        """
        shared = self.shared(self.split(task)[0])
        return launching.expand(text, shared.launch, walltime=shared.walltime, shell=shared.shell, hosts=hosts)

    def own_variables(self, script: Script, task: int, share: Share) -> Mapping[bytes, bytes]:
        """Return the variables of a task's own with such a share."""
        if not self.is_launched or not share.pins:
            return script.own
        launch = self.shared(self.split(task)[0]).launch
        return script.own if launch is None else launching.bound(script.own, launch, share, info=self._layout.info)

    @property
    def has_launches(self) -> bool:
        """Whether the scripts may hold launch lines."""
        return self._planned.launch is not None

    @property
    def is_launched(self) -> bool:
        """Whether a launcher starts this step's processes."""
        return self._planned.launch is not None and self._planned.launch.parallel

    def _exact(self, combination: int) -> tuple[Launch | None, int | None]:
        """Return what the launch lines of one combination ask for, and its walltime."""
        if not self._planned.varies and not self._asks:
            return self._planned.launch, self._planned.lanes[0].walltime
        filled = {name: self._of_combination(text, combination) for name, text in self._planned.varies.items()}
        launch, walltime = needs.exact(self._planned, filled)
        if launch is not None and self._asks:
            own = {
                key: self._of_combination(surroundings.complete(text), combination)
                for key, text in launch.arguments.items()
            }
            launch = launch.model_copy(update={"arguments": own})
        return launch, walltime

    @cached_property
    def _asks(self) -> bool:
        """Whether further arguments of the launcher hold what only a combination or this environment knows."""
        launch = self._planned.launch
        return launch is not None and any("$" in text or "~" in text for text in launch.arguments.values())

    def _of_combination(self, text: str, combination: int) -> str:
        return self._tokens.render(self._tokens.parse(text), combination=combination, sample=0, values=())

    def below(self, task: int) -> str:
        """Return what a task's directory is called below the study's."""
        return self._layout.task_dir(self._step, task)[len(self._layout.root) + 1 :]

    def names(self, task: int) -> Scripts:
        """Return what a task's scripts are called."""
        return self._layout.scripts(self._step, self.split(task)[0])

    def logged(self, task: int, ran: str) -> tuple[Text, dict[str, str]]:
        """Return a task's script as its log has it: one text for all samples where that can be, and what is the task's own."""
        combination, sample = self.split(task)
        shared = self.shared(combination)
        if shared.logged is not None:
            own = self._tokens.own(sample, self._values(sample))
            plain = {name: value for name in self._own if (value := own(name)) is not None and "$(" not in value}
            if len(plain) == self._differ:
                return shared.logged, plain
        return Text(shared.shell, ran), {}

    def walltime(self, task: int) -> float | None:
        """Return how many seconds a task may run."""
        return self.shared(self.split(task)[0]).walltime

    def render(self, text: str) -> str:
        """Fill in what does not differ between tasks."""
        return self._of_combination(text, 0)
