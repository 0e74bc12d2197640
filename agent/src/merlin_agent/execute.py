"""Running one task: directory, script, process, marker, outcome. Called in slots' threads, so all of it may block."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final, NamedTuple

from merlin_agent import allocation, badges, files, launching, surroundings
from merlin_agent.badges import Speaker
from merlin_agent.chunkrun import ChunkRun, Ended, Stop
from merlin_agent.launch import NotStartedError, Script
from merlin_agent.npy import NpyError
from merlin_agent.pace import Pace
from merlin_agent.rows import RowError, Rows
from merlin_agent.slot import Fate, Job, Launched, Slot
from merlin_agent.slots import Telling, Work
from merlin_agent.warmth import Interpreter, interpreter
from merlin_study import failpoints, history, lean, needs, outcome, shape, wire
from merlin_study.launchers import Launch, LaunchError
from merlin_study.outcome import Outcome
from merlin_study.tasklog import Text
from merlin_study.template import Template, tokens
from merlin_study.workspace import FINISHED, SLOTS, Layout, Scripts, TaskTokens, UnfillableError, safe_name

HOST: Final = surroundings.host()
SCRIPT_FAULTS: Final = (RowError, NpyError, UnfillableError, LaunchError)
"""Why a task's script can't be made."""
_ENTRIES: Final = 5
"""What a task of Merlin's layout makes: directory, script, two outputs, mark."""
KEPT: Final = 1024
"""Combinations whose names and texts are kept: a step may have a hundred thousand."""


class Taking(NamedTuple):
    """How tasks that run one after the other are told of; ``marker`` is left behind by success."""

    ended: Callable[[int, Ended], None]
    back: Callable[[Sequence[int]], None]
    tells: Callable[[], bool]
    marker: str = FINISHED


class StepWork:
    """The tasks of one step of one study, with everything that they share worked out once.

    ``home`` is a directory on this host's own disk for tasks that run there; without one they run in the workspace.
    """

    def __init__(self, layout: Layout, step: int, *, rows: Rows | None, restart: bool, home: str = "") -> None:
        self._layout, self._step, self._rows, self.home = layout, step, rows, home
        self._places = replace(layout, root=home) if home else layout
        self._planned = layout.plan.steps[step]
        self._tokens = TaskTokens(layout, step, surroundings.complete, places=self._places)
        self._restart = restart and bool(self._planned.restart)
        self._template = self._tokens.restart if self._restart else self._tokens.cmd
        self._texts: dict[int, str] = {}
        self._interpreters: dict[str, Interpreter | None] = {}
        self._shells: dict[int, str] = {}
        self._exacts: dict[int, tuple[Launch | None, int | None]] = {}
        self._scripts: dict[int, tuple[str, Scripts]] = {}
        self._logged: dict[int, Text | None] = {}
        self._made: set[int] = set()
        self.pace = Pace()
        """How long its tasks take here."""

    @cached_property
    def _varies(self) -> bool:
        """Whether the script differs between samples."""
        table = self._layout.plan.samples
        if table is None or not self._planned.sampled:
            return False
        own = {name.lower() for name in table.columns} | {"merlin_sample_id", "merlin_sample_path"}
        return any(name.lower() in own for name in self._template.names())

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

    def speaker(self, run: ChunkRun, task: int) -> Speaker:
        """Return who speaks where a task of this step does."""
        return Speaker(
            run.chunk.study, self._planned.name, task, run.chunk.attempt if self._restart else 0, self._layout.info
        )

    def cores(self, task: int) -> int:
        """Return how many cores a task has on its node."""
        return shape.parse(self._layout.geometry.lane(self._step, task).shape).cores

    def script(self, task: int) -> tuple[Script, str]:
        """Return where a task's script goes, and its text.

        Raises:
            RowError: the sample's row can't be read.
            UnfillableError: a token would not fit into the script.
        """
        combination, sample = self._layout.geometry.split(self._step, task)
        shared = self._scripts.get(combination)
        if shared is None:
            if len(self._scripts) >= KEPT:
                self._scripts.clear()
            shared = self._scripts[combination] = (
                self._places.step_dir(self._step, combination),
                self._layout.scripts(self._step, combination),
            )
        directory, names = shared
        if self._planned.sampled and (below := self._layout.sample_path(self._step, sample)):
            directory = f"{directory}/{below}"
        name = names.restart if self._restart else names.cmd
        out, err = names.outputs(name)
        text, shell = self._text(combination, sample), self._shell(combination)
        script = Script(
            directory,
            f"{directory}/{name}",
            f"{directory}/{out}",
            f"{directory}/{err}",
            shell,
            text=text,
            warm=self._interpreter(shell),
        )
        return script, text

    def _shell(self, combination: int) -> str:
        """Return what follows ``#!``; it may differ between combinations, not between samples."""
        if combination not in self._shells:
            if len(self._shells) >= KEPT:
                self._shells.clear()
            self._shells[combination] = self._of_combination(surroundings.complete(self._planned.shell), combination)
        return self._shells[combination]

    def _text(self, combination: int, sample: int) -> str:
        if self._varies:
            values = self._rows.row(sample) if self._rows is not None else ()
            return self._filled(combination, sample, values)
        text = self._texts.get(combination)
        if text is None:
            text = self._filled(combination, 0, ())
            if len(self._texts) >= KEPT:
                self._texts.clear()
            self._texts[combination] = text
        return text

    def _filled(self, combination: int, sample: int, values: Sequence[str]) -> str:
        return self._tokens.render(self._template, combination=combination, sample=sample, values=values)

    def launched(self, text: str, task: int, hosts: tuple[str, ...]) -> str:
        """Return a task's script with launch lines for these hosts; empty: for this one.

        Raises:
            LaunchError: it asks for what this machine's launcher can't do.
        """
        combination = self._layout.geometry.split(self._step, task)[0]
        launch, walltime = self._exact(combination)
        return launching.expand(text, launch, walltime=walltime, shell=self._shell(combination), hosts=hosts)

    def made(self, task: int, hosts: tuple[str, ...]) -> Script | Ended:
        """Return a task's script with its text, for these hosts; what the task came to where there can be none.

        It would fail everywhere and every time, so it is no fault of this host.
        """
        try:
            script, text = self.script(task)
            return replace(script, text=self.launched(text, task, hosts))
        except SCRIPT_FAULTS as error:
            return Ended(task, Outcome.FAILED, 1, failure=told(task, Outcome.FAILED, 1, "", str(error)))

    @property
    def is_launched(self) -> bool:
        """Whether a launcher starts this step's processes."""
        return self._planned.launch is not None and self._planned.launch.parallel

    def _exact(self, combination: int) -> tuple[Launch | None, int | None]:
        """Return what the launch lines of one combination ask for, and its walltime."""
        if not self._planned.varies and not self._asks:
            return self._planned.launch, self._planned.lanes[0].walltime
        if combination not in self._exacts:
            if len(self._exacts) >= KEPT:
                self._exacts.clear()
            filled = {name: self._of_combination(text, combination) for name, text in self._planned.varies.items()}
            launch, walltime = needs.exact(self._planned, filled)
            if launch is not None and self._asks:
                own = {
                    key: self._of_combination(surroundings.complete(text), combination)
                    for key, text in launch.arguments.items()
                }
                launch = launch.model_copy(update={"arguments": own})
            self._exacts[combination] = launch, walltime
        return self._exacts[combination]

    @cached_property
    def _asks(self) -> bool:
        """Whether further arguments of the launcher hold what only a combination or this environment knows."""
        launch = self._planned.launch
        return launch is not None and any("$" in text or "~" in text for text in launch.arguments.values())

    def _of_combination(self, text: str, combination: int) -> str:
        return self._tokens.render(self._tokens.parse(text), combination=combination, sample=0, values=())

    def execute_all(
        self,
        run: ChunkRun,
        slot: Slot,
        ready: Sequence[tuple[int, Script]],
        taking: Taking,
    ) -> None:
        """Run tasks whose scripts are written, one after the other; tell what became of each, by its position in ``ready``."""
        tokens = [slot.badges.issue(self.speaker(run, task)) for task, _ in ready]
        try:
            shared = slot.share.variables() | self.variables()
            jobs = [
                Job(replace(script, own=badges.variables(token, self.cores(task)) | shared), self.walltime(task))
                for (task, script), token in zip(ready, tokens, strict=True)
            ]

            def ended(at: int, fate: Fate) -> None:
                task, script = ready[at]
                slot.badges.revoke(tokens[at])
                found = concluded(
                    slot, task, script, fate, tells=taking.tells, marker=taking.marker, launched=self.is_launched
                )
                self.pace.note(found.seconds, warm=jobs[at].script.warm is not None)
                if history.ON:
                    _note(run, task, "ended", outcome=found.outcome, code=found.code)
                taking.ended(at, found)

            def back(which: range) -> None:
                tasks = [ready[at][0] for at in which]
                if history.ON:
                    for task in tasks:
                        _note(run, task, "ended", outcome=None, code=0)  # before another slot or agent has it
                taking.back(tasks)

            failpoints.reach("agent.start")
            if history.ON:
                for task, _ in ready:
                    _note(run, task, "began")
            slot.launch_all(jobs, ended, back)
        finally:
            for token in tokens:
                slot.badges.revoke(token)

    @property
    def appetite(self) -> int:
        """How many tasks a slot should take at once."""
        return 1 if history.ON or failpoints.ARMED or self.is_launched else self.pace.appetite

    # What a task leaves under `outputs: lean` and `packed`

    @property
    def root(self) -> str:
        """The study's directory."""
        return self._layout.root

    def below(self, task: int) -> str:
        """Return what a task's directory is called below the study's."""
        return self._layout.task_dir(self._step, task)[len(self._layout.root) + 1 :]

    def names(self, task: int) -> Scripts:
        """Return what a task's scripts are called."""
        return self._layout.scripts(self._step, self._layout.geometry.split(self._step, task)[0])

    @cached_property
    def is_lean(self) -> bool:
        """Whether the tasks leave a log instead of files."""
        return lean.applies(self._layout.plan, self._step)

    @property
    def is_packed(self) -> bool:
        """Whether they run on this host's own disk."""
        return bool(self.home)

    @cached_property
    def in_place(self) -> bool:
        """Whether each task runs in its own directory of Merlin's layout from the beginning."""
        return lean.in_place(self._layout.plan, self._step)

    @cached_property
    def task_logs(self) -> str:
        """Where the step's logs lie."""
        return self._layout.task_logs(self._step)

    @cached_property
    def slots(self) -> str:
        """Where the directories lie that slots lend."""
        return f"{self._places.info}/{SLOTS}"

    @cached_property
    def stem(self) -> str:
        """What script and outputs are called in such a directory, without their endings: it knows no combination."""
        return f"{safe_name(self._planned.name)}{self._planned.suffix}"

    @cached_property
    def _needs_shared(self) -> bool:
        return lean.needs_shared(self._layout.plan, self._step)

    def make_shared(self, task: int) -> None:
        """Make the directory that the samples of a task's combination share, where a script names it.

        Raises:
            OSError: it can't be made.
        """
        if self._needs_shared:
            combination, _ = self._layout.geometry.split(self._step, task)
            if combination not in self._made:
                files.make_directory(self._places.step_dir(self._step, combination))
                self._made.add(combination)

    def logged(self, task: int, ran: str) -> tuple[Text, dict[str, str]]:
        """Return a task's script as its log has it: one text for all samples where that can be, and what is the task's own."""
        combination, sample = self._layout.geometry.split(self._step, task)
        shell = self._shell(combination)
        if not self._varies or self._planned.launch is not None:
            return Text(shell, ran), {}
        shared = self._logged.get(combination)
        if shared is None:
            if len(self._logged) >= KEPT:
                self._logged.clear()
            text = self._tokens.render_shared(self._template, combination=combination)
            same = self._differing(text) == self._differing(self._template)
            shared = self._logged[combination] = Text(shell, text) if same else None
        values = self._rows.row(sample) if self._rows is not None else ()
        own = self._tokens.own(sample, values)
        found = {name: own(name) for name in self._differing(self._template)}
        plain = {name: value for name, value in found.items() if value is not None and "$(" not in value}
        if shared is None or len(plain) < len(found):
            return Text(shell, ran), {}
        return shared, plain

    def _differing(self, text: Template | str) -> list[str]:
        names = tokens(text) if isinstance(text, str) else text.names()
        return [name.lower() for name in names if name.lower() in self._tokens.differing]

    def variables(self) -> dict[bytes, bytes]:
        """Return what the environment of this step's tasks has besides the agent's."""
        launch = self._planned.launch
        launched = launching.variables(launch.type, os.environ) if launch is not None and launch.parallel else {}
        return launched | allocation.clock().variables(time.time())

    def walltime(self, task: int) -> float | None:
        """Return how many seconds a task may run."""
        return self._exact(self._layout.geometry.split(self._step, task)[0])[1]

    def render(self, text: str) -> str:
        """Fill in what does not differ between tasks."""
        return self._of_combination(text, 0)


class ChunkWork(Work):
    """`slots.Work` for one chunk of an ordinary step."""

    def __init__(self, step: StepWork, tells: Callable[[], bool]) -> None:
        self._step, self._tells = step, tells

    @property
    def appetite(self) -> int:
        """See `slots.Work`."""
        return self._step.appetite

    def execute_all(self, run: ChunkRun, tasks: Sequence[int], slot: Slot, telling: Telling) -> None:
        """See `slots.Work`."""
        ready: list[tuple[int, Script]] = []
        for at, task in enumerate(tasks):
            if not slot.creates.take(_ENTRIES, patient=not ready, given_up=lambda: run.stopped is not None):
                telling.back(tasks[at:])
                break
            found = self._ready(run, task, slot)
            if isinstance(found, Ended):
                telling.ended(found)
            else:
                ready.append((task, found))
        taking = Taking(lambda _, ended: telling.ended(ended), telling.back, self._tells)
        self._step.execute_all(run, slot, ready, taking)

    def _ready(self, run: ChunkRun, task: int, slot: Slot) -> Ended | Script:
        """Make a task's directory and its script; return what it came to where it is not to run."""
        script = self._step.made(task, slot.share.hosts)
        if isinstance(script, Ended):
            return script
        try:
            fresh = files.make_directory(script.directory)
            if not fresh and run.chunk.fresh:
                files.remove(f"{script.directory}/{FINISHED}")
            elif not fresh and os.path.exists(f"{script.directory}/{FINISHED}"):
                return Ended(task, Outcome.SUCCEEDED)
            files.write_script(script.path, script.shell, script.text, replace=not fresh)
        except OSError as error:
            return unwritable(task, script.directory, error)
        return script


def _note(run: ChunkRun, task: int, what: str, **more: object) -> None:
    history.note(what, study=run.chunk.study, fence=run.chunk.fence, step=run.chunk.step, task=task, **more)


def run_script(
    slot: Slot, task: int, script: Script, *, walltime: float | None, tells: Callable[[], bool], marker: str = FINISHED
) -> Ended:
    """Run a script that is written, and return what became of it; ``marker`` is left behind by success."""
    found: list[Fate] = []
    slot.launch_all([Job(script, walltime)], lambda _, fate: found.append(fate), lambda _: None)
    if not found:
        return Ended(task, None)
    return concluded(slot, task, script, found[0], tells=tells, marker=marker)


def concluded(
    slot: Slot, task: int, script: Script, fate: Fate, *, tells: Callable[[], bool], marker: str, launched: bool = False
) -> Ended:
    """Return what became of a task whose script ended so; ``launched``: a launcher starts its processes."""
    if isinstance(fate, NotStartedError):
        files.append(script.err, f"{fate}\n")
        fate = Launched(fate.code, late=False, seconds=0.0, struck=None)
    if isinstance(fate, OSError):
        return Ended(task, None, problem=f"{script.path}: can't be started: {fate.strerror}")
    code, late, seconds, struck = fate
    failpoints.reach("agent.exited")
    if code == 0 and not late:
        return _succeeded(task, script, seconds, marker)
    if struck is Stop.HANDED_BACK or (not struck and not late and slot.is_swept(code, launched=launched)):
        return Ended(task, None, seconds=seconds)
    if not struck and not late and slot.lost_a_host(time.monotonic() - seconds):
        return Ended(task, None, seconds=seconds)  # handed back: the host died, not the step
    if not struck and (full := files.room(script.directory)) is not None:
        return unwritable(task, script.directory, full)  # whatever it says, it could not write
    ends = Outcome.TIMED_OUT if late else Outcome.CANCELLED if struck else outcome.of_exit(code)
    failure = None
    if tells():
        failure = told(task, ends, code, script.directory, files.read_tail(script.err, wire.MAX_TAIL))
    return Ended(task, ends, code, seconds, failure)


def _succeeded(task: int, script: Script, seconds: float, marker: str) -> Ended:
    """Leave the mark of a success."""
    problem = ""
    try:
        if marker:
            files.mark(f"{script.directory}/{marker}")
    except OSError as error:
        if error.errno in files.FULL:
            return unwritable(task, script.directory, error)  # what it wrote may be cut short: nothing may build on it
        # It did succeed, and its outcome is recorded; only a later restart from the files alone would run it again.
        problem = f"{script.directory}: no {marker}: {error.strerror}"
    return Ended(task, Outcome.SUCCEEDED, 0, seconds, problem=problem)


def told(task: int, ends: Outcome, code: int, directory: str, tail: str) -> wire.Failure:
    """Return a failure in full."""
    return wire.Failure(task=task, outcome=ends, code=code, host=HOST, directory=directory, tail=tail[-wire.MAX_TAIL :])


def unwritable(task: int, directory: str, error: OSError) -> Ended:
    """Return what a task comes to whose directory or script can't be written: nobody's failure, handed back."""
    cure = {
        errno.EDQUOT: "free some of the quota",
        errno.ENOSPC: "free some space",
        errno.EACCES: "give this user the right to write there",
    }.get(error.errno or 0, "see to the file system")
    problem = f"{directory}: can't be written: {error.strerror}; {cure}"
    return Ended(task, None, problem=problem, full=error.errno in files.FULL)
