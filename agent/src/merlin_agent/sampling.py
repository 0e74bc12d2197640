"""The implicit first step, ``merlin_info``: make the sample file if there is none, and measure it.

As upstream, ``generate`` is a shell command; its script and output lie in ``merlin_info`` as ``cmd.sh``, ``cmd.out`` and ``cmd.err``. What
upstream finds out only when it loads the file is this step's failure: no file, no rows, unequal rows, too few columns.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

from merlin_agent import files, rowindex
from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.durable import Unsynced
from merlin_agent.execute import StepWork, run_script, told, unwritable
from merlin_agent.launch import Script
from merlin_agent.rows import RowError, TextRows, open_rows
from merlin_agent.slot import Slot
from merlin_agent.slots import Work
from merlin_agent.surroundings import complete
from merlin_study import samples, workspace
from merlin_study.geometry import Geometry
from merlin_study.outcome import Outcome
from merlin_study.wire import SampleFacts
from merlin_study.workspace import Layout

_BLOCK = 1 << 20
KEEP_FROM: Final = 1 << 20
"""Bytes of a table whose index is kept; a smaller one is walked as fast as its index is read."""


def sample_file(layout: Layout, step: StepWork) -> str:
    """Return where the study's sample file lies; ``step`` fills in its tokens. A relative path is where ``generate`` runs."""
    table = layout.plan.samples
    assert table is not None, "a study without samples has no sample file; this is a bug"
    return os.path.normpath(os.path.join(layout.root, step.render(table.directory), step.render(complete(table.file))))


_BEGUN: Final = "samples.begun"
"""In ``merlin_info`` while the table is being generated: one that an agent left behind is not to be trusted."""


class SamplingWork(Work):
    """`slots.Work` of the implicit step, which has one task."""

    def __init__(self, layout: Layout, step: StepWork) -> None:
        self._layout, self._step = layout, step
        self._unsynced = Unsynced(layout.root)

    def sync(self) -> None:
        """See `slots.Work`."""
        self._unsynced.sync()

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        """See `slots.Work`."""
        del run
        try:
            return self._execute(task, slot)
        finally:
            self._unsynced.note()

    def _execute(self, task: int, slot: Slot) -> Ended:
        table = self._layout.plan.samples
        assert table is not None, "the step merlin_info belongs to studies with samples; this is a bug"
        if table.count is not None:
            return self._listed(task, table.count, table.level_max_dirs)
        path = sample_file(self._layout, self._step)
        script = self._step.script(task)
        made = self._make(task, slot, script, script.text, path)
        if made.outcome is not Outcome.SUCCEEDED:
            return made
        try:
            facts = measure(path, len(table.columns), index=index_file(self._layout.info))
            if why := Geometry(self._layout.plan, facts.count).refusal():
                return self._failed(task, script, f"{path}: {why}", made.seconds)
            if workspace.wants_paths(self._layout.plan):
                self._list_paths(facts.count, table.level_max_dirs)
        except OSError as error:
            return unwritable(task, self._layout.info, error)
        except RowError as error:
            return self._failed(task, script, str(error), made.seconds)
        return Ended(task, Outcome.SUCCEEDED, 0, made.seconds, samples=facts)

    def _make(self, task: int, slot: Slot, script: Script, text: str, path: str) -> Ended:
        """Generate the table where there is none that somebody made to its end."""
        begun = f"{self._layout.info}/{_BEGUN}"
        table = self._layout.plan.samples
        directory = os.path.join(self._layout.root, self._step.render(table.directory if table is not None else ""))
        try:
            if os.path.exists(begun):
                _set_aside(path, begun)
            if os.path.exists(path) or not text.strip():
                return Ended(task, Outcome.SUCCEEDED)
            files.mark(begun)
            made = self._generate(task, slot, script, text, os.path.normpath(directory))
            if made.outcome is Outcome.SUCCEEDED:
                os.unlink(begun)
            else:
                _set_aside(path, begun)
        except OSError as error:
            return unwritable(task, self._layout.info, error)
        return made

    def _listed(self, task: int, count: int, level_max_dirs: int) -> Ended:
        try:
            self._list_paths(count, level_max_dirs)
        except OSError as error:
            return unwritable(task, self._layout.info, error)
        return Ended(task, Outcome.SUCCEEDED)

    def _generate(self, task: int, slot: Slot, script: Script, text: str, directory: str) -> Ended:
        try:
            files.make_directory(directory)
            files.write_script(script.path, "/bin/sh", text, replace=True)
        except OSError as error:
            return unwritable(task, script.directory, error)
        inside = Script(directory, script.path, script.out, script.err, "/bin/sh")
        return run_script(slot, task, inside, walltime=self._step.walltime(task), tells=lambda: True, marker="")

    def _list_paths(self, count: int, level_max_dirs: int) -> None:
        """Write every sample's directory, one a line; whole, or not at all."""
        path = f"{self._layout.info}/{workspace.PATHS_FILE}"
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.writelines(f"{samples.path(index, count, level_max_dirs)}\n" for index in range(count))
        os.replace(f"{path}.part", path)

    def _failed(self, task: int, script: Script, message: str, seconds: float) -> Ended:
        try:
            files.append(script.err, f"{message}\n")
        except OSError as error:
            return unwritable(task, script.directory, error)
        failure = told(task, Outcome.FAILED, 1, script.directory, message)
        return Ended(task, Outcome.FAILED, 1, seconds, failure)


def _set_aside(path: str, begun: str) -> None:
    """Take a table out of the way that may be half of one, and forget that it was begun."""
    if os.path.exists(path):
        os.replace(path, f"{path}.incomplete")
    os.unlink(begun)


def index_file(info: str) -> str:
    """Return where the index of a study's table lies, given its ``merlin_info``."""
    return f"{info}/{rowindex.NAME}"


def measure(path: str, columns: int, *, index: str = "") -> SampleFacts:
    """Return how many rows and columns a sample file has, and its digest.

    Args:
        path: The file.
        columns: How many it should have at least.
        index: Where the index of its rows is kept for those who read it after us; empty for nowhere.

    Raises:
        RowError: it can't be read, is empty, or has fewer than ``columns`` columns.
    """
    if not os.path.exists(path):
        raise RowError(
            f"{path}: expected the sample file, found none; check merlin.samples.generate.cmd and merlin.samples.file"
        )
    rows = open_rows(path)
    if rows.count == 0:
        raise RowError(f"{path}: expected at least one sample, found none")
    if rows.columns < columns:
        raise RowError(
            f"{path}: expected {columns} columns, one a label of merlin.samples.column_labels, found {rows.columns}"
        )
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise RowError(f"{path}: can't be read: {error.strerror}") from error
    if index and isinstance(rows, TextRows) and os.path.getsize(path) >= KEEP_FROM:
        rowindex.save(index, path, rows.index)
    return SampleFacts(count=rows.count, columns=rows.columns, digest=digest.hexdigest())
