"""The studies that this agent works for: plan, place, word and layout of each, fetched once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from pydantic import ValidationError

from merlin_agent import binding, files, quota, specroot
from merlin_agent.binding import Place, RefusedError
from merlin_agent.broker import Message
from merlin_agent.chunkrun import Stop
from merlin_agent.execute import StepWork
from merlin_agent.owndisk import OwnDisk
from merlin_agent.post import Post, until_answered
from merlin_agent.rows import RowError, Rows, open_rows
from merlin_agent.sampling import index_file, sample_file
from merlin_agent.surroundings import complete
from merlin_study import environment, footprint, packed, workspace
from merlin_study.blob import BlobError
from merlin_study.finale import FILE, Finale
from merlin_study.geometry import Geometry
from merlin_study.plan import INFO_STEP, PLAN_VERSION, Lane, Plan
from merlin_study.seal import SealError
from merlin_study.wire import Chunk, Control
from merlin_study.workspace import Layout

MAX_PLAN: Final = 64 << 20
"""A larger plan is refused before it fills the memory; the operator admits 400,000 characters of scripts."""


class NotYetError(Exception):
    """The plan is not there or does not open; the chunk goes back."""


@dataclass
class Study:
    """What is shared by all chunks of a study."""

    uid: str
    plan: Plan
    root: str
    own_disk: OwnDisk | None = None
    warn: Callable[[str], None] | None = None
    bound: bool = False
    looks: bool = False
    """Whether it is for us to see, once the number of samples is known, that there is room for the study's files."""
    _layouts: dict[int, Layout] = field(default_factory=dict)
    _steps: dict[tuple[int, int, bool], StepWork] = field(default_factory=dict)
    _rows: Rows | None = None

    @property
    def info(self) -> str:
        """The directory ``merlin_info``."""
        return f"{self.root}/{workspace.INFO}"

    @cached_property
    def spec_root(self) -> str:
        """The specification's own folder where it is still there; empty for the files in ``merlin_info``."""
        return self.plan.spec_root if self.plan.spec_root and os.path.isdir(self.plan.spec_root) else ""

    @cached_property
    def packed(self) -> frozenset[int]:
        """The steps whose tasks run on this host's own disk."""
        return packed.steps(self.plan)

    def layout(self, samples: int) -> Layout:
        """Return the layout for so many samples."""
        if samples not in self._layouts:
            self._layouts[samples] = Layout(self.root, Geometry(self.plan, samples), self.spec_root)
        return self._layouts[samples]

    def step(self, chunk: Chunk) -> StepWork:
        """Return the work of a chunk's step; may read the sample file, so call it in a thread.

        Raises:
            RefusedError: chunk and plan don't fit, or the samples can't be read here.
            OSError: it is to run on this host's own disk, and nothing can be written there.
        """
        key = (chunk.step, chunk.samples, chunk.restart)
        self.check(chunk)
        if key not in self._steps:
            layout = self.layout(chunk.samples)
            self._check_directories(layout, chunk)
            home = ""
            if self.own_disk is not None and chunk.step in self.packed:
                home = self.own_disk.of(self.uid)
            rows = self._table(chunk)
            self._look(layout)
            self._steps[key] = StepWork(layout, chunk.step, rows=rows, restart=chunk.restart, home=home)
        return self._steps[key]

    def _look(self, layout: Layout) -> None:
        """Say once where the workspace has no room for all that the layout makes."""
        geometry = layout.geometry
        if self.looks and self.warn is not None and all(map(geometry.known, range(len(self.plan.steps)))):
            self.looks = False
            totals = {step.name: geometry.total(at) for at, step in enumerate(self.plan.steps)}
            if text := footprint.warning(self.plan, totals, self.root, quota.rooms(self.root, os.environ)):
                self.warn(text)

    def check(self, chunk: Chunk) -> None:
        """Check that the plan has the tasks of a chunk.

        Raises:
            RefusedError: it has not.
        """
        if chunk.step >= len(self.plan.steps):
            raise RefusedError(f"chunk {chunk.fence}: names step {chunk.step} of {len(self.plan.steps)}")
        if chunk.tasks.end > self.layout(chunk.samples).geometry.total(chunk.step):
            raise RefusedError(
                f"chunk {chunk.fence}: names tasks that step {self.plan.steps[chunk.step].name!r} does not have"
            )

    def lane(self, chunk: Chunk) -> Lane:
        """Return what a chunk's tasks have in common.

        Raises:
            RefusedError: the plan has no such tasks.
        """
        self.check(chunk)
        return self.layout(chunk.samples).geometry.lane(chunk.step, chunk.tasks.first)

    def _check_directories(self, layout: Layout, chunk: Chunk) -> None:
        inside = self.root + "/"
        for combination in range(len(layout.geometry.rows(chunk.step))):
            directory = layout.step_dir(chunk.step, combination)
            if os.path.normpath(directory) != directory or not directory.startswith(inside):
                raise RefusedError(
                    f"{directory}: is no proper directory inside the workspace; the step's name or label is refused"
                )

    def _table(self, chunk: Chunk) -> Rows | None:
        table = self.plan.samples
        if not self.plan.steps[chunk.step].sampled or table is None or table.count is not None:
            return None
        if self._rows is None:
            first = self.layout(0)
            path = sample_file(first, StepWork(first, 0, rows=None, restart=False))
            try:
                self._rows = open_rows(path, index_file(self.info))
            except RowError as error:
                raise RefusedError(str(error)) from error
        if self._rows.count != chunk.samples:
            found, self._rows = self._rows.count, None
            raise RefusedError(
                f"{self.root}: expected {chunk.samples} samples, found {found}; the file was changed after it was measured"
            )
        return self._rows


class Studies:
    """Opens studies, and hears the operator's word on each."""

    def __init__(
        self,
        post: Post,
        place: Place,
        workspace_root: str,
        on_word: Callable[[Control], None],
        on_end: Callable[[str], None],
        *,
        own_disk: OwnDisk | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Keep what is needed.

        ``on_word`` hears the operator's word on a study, ``on_end`` the uid of one that is over, ``warn`` in any thread that a workspace has
        no room for all files of a study; without it nobody looks.
        """
        self._warn = warn
        self._post, self._place, self._workspace_root, self._own_disk = post, place, workspace_root, own_disk
        self._on_word, self._on_end = on_word, on_end
        self._studies: dict[tuple[str, str], Study] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._asked: set[str] = set()
        self.cancelled: set[str] = set()
        """Studies that were deleted."""
        self._words: dict[str, Control] = {}
        post.broker.listen(post.space.control("*"), self._on_control)
        post.broker.listen(post.space.finale("*"), self._on_finale)
        self._listening: set[asyncio.Task[None]] = set()
        post.broker.on_connect(self._hear_again)

    async def open(self, chunk: Chunk) -> Study:
        """Return the study of a chunk, bound to this site.

        Raises:
            NotYetError: there is no plan that opens.
            RefusedError: this agent can't run it.
            OSError: its workspace can't be written.
        """
        async with self._opening.setdefault(chunk.study, asyncio.Lock()):
            await self._hear(chunk.study)
            key = (chunk.study, chunk.plan)
            if key not in self._studies:
                plan = await self._plan(chunk.study, chunk.plan)
                root = self._root(plan)
                if environment.refers(complete(plan.output_path)):
                    raise RefusedError(
                        f"OUTPUT_PATH {plan.output_path}: holds a variable that is not set in this agent's environment; "
                        "set it where the agent is started, or write the path out"
                    )
                self._studies[key] = Study(chunk.study, plan, root, self._own_disk, self._warn)
            study = self._studies[key]
            if not study.bound and chunk.study not in self.cancelled:
                study.looks = await binding.bind(
                    self._post, self._place, study=chunk.study, plan=study.plan, root=study.root
                )
                await specroot.lay_down(self._post, study=chunk.study, plan=study.plan, root=study.root)
                study.bound = True
            return study

    async def root_of(self, study: str, plan_hash: str) -> str:
        """Return where the workspace of a study is, or would be.

        Raises:
            NotYetError: there is no plan that opens.
        """
        return self._root(await self._plan(study, plan_hash))

    def _root(self, plan: Plan) -> str:
        return workspace.study_root(plan, self._workspace_root, complete)

    async def _plan(self, study: str, plan_hash: str) -> Plan:
        subject = self._post.space.plan(study, plan_hash)
        try:
            stored = await self._post.read(subject, scope=study)
            if stored is None:
                raise NotYetError(f"{subject}: expected the plan, found none")
            plan = Plan.from_json(await asyncio.to_thread(_inflated, stored))
        except (SealError, BlobError, ValidationError, zlib.error) as error:
            raise NotYetError(f"{subject}: {str(error).splitlines()[0]}") from error
        if plan.hash != plan_hash or plan.version != PLAN_VERSION:
            raise NotYetError(
                f"{subject}: expected the plan of this hash in version {PLAN_VERSION}, found {plan.hash[:16]} in {plan.version}"
            )
        name = plan.workspace
        if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in plan.output_path:
            raise NotYetError(f"{subject}: {name!r} is no name for a workspace")
        return plan

    def _hear_again(self) -> None:
        """A word may have been missed while there was no connection."""
        for study in self._asked:
            task = asyncio.create_task(self._hear(study))
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)
        self._asked.clear()

    async def _hear(self, study: str) -> None:
        if study not in self._asked:
            await self._read_word(study)

    async def _read_word(self, study: str) -> None:
        subject = self._post.space.control(study)
        data = await until_answered(lambda: self._post.broker.last(self._post.space.control_stream, subject))
        if data is not None:
            self._on_control(Message(subject, data))
        self._asked.add(study)

    def _on_control(self, message: Message) -> None:
        study = message.subject.rpartition(".")[2]
        word = self._post.word(Control, message.subject, message.data, scope=study)
        known = self._words.get(study)
        if word is None or word.study != study or study in self.cancelled or known == word:
            return
        if known is not None and word.epoch < known.epoch:
            return  # a broker that was restored says what it said once
        self._words[study] = word
        if word.cancelled:
            self.cancelled.add(study)
        self._on_word(word)

    def _on_finale(self, message: Message) -> None:
        """Hear that a study is over, and write down what came of it where it ran here, whoever else does it too."""
        uid = message.subject.rpartition(".")[2]
        finale = self._post.word(Finale, message.subject, message.data, scope=uid)
        if finale is None:
            return
        self._on_end(finale.study)
        roots = {study.root for (each, _), study in self._studies.items() if each == uid and study.bound}
        for root in roots:
            task = asyncio.create_task(asyncio.to_thread(_write_down, f"{root}/{workspace.INFO}", finale))
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)

    def is_outdated(self, chunk: Chunk) -> bool:
        """Whether a chunk was issued in an earlier epoch of its study, as far as we have heard."""
        word = self._words.get(chunk.study)
        return word is not None and chunk.epoch < word.epoch

    async def counts(self, chunk: Chunk) -> bool:
        """Ask the broker whether a chunk that is claimed was issued in the present epoch of its study."""
        await self._read_word(chunk.study)
        word = self._words.get(chunk.study)
        return chunk.epoch == 1 if word is None else chunk.epoch >= word.epoch

    def stopped(self, chunk: Chunk) -> Stop | None:
        """Return why nothing of a chunk may start, None where it may."""
        word = self._words.get(chunk.study)
        if word is None:
            return None
        if word.cancelled or chunk.fence < word.kill_below:
            return Stop.CANCELLED
        return Stop.HANDED_BACK if chunk.fence < word.drop_below else None


def is_sampling(study: Study, step: int) -> bool:
    """Whether a step is the implicit one that makes and measures the samples."""
    return study.plan.steps[step].name == INFO_STEP


def _write_down(info: str, finale: Finale) -> None:
    """Write the end of a study into its workspace; where that can't be done, the outcome logs say the same."""
    with contextlib.suppress(OSError):
        files.write_whole(f"{info}/{FILE}", finale.to_file())


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, MAX_PLAN)
    if inflater.unconsumed_tail or not inflater.eof:
        raise zlib.error(f"larger than {MAX_PLAN} bytes, or cut short")
    return text
