"""From a specification to a plan: deterministic, without a clock, without a file.

Variables first, then the graph in topological order: which parameters a step uses (its own and those that it inherits),
whether it is sampled, which edges lead to it. What only an agent can know stays a token in the scripts. All faults are
collected; a plan comes out only where there are none.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from merlin_study import checks, dependencies, environment, lean, provenance, sizing
from merlin_study import table as tables
from merlin_study.errors import INVALID_SPEC, NOT_YET_SUPPORTED, UNDEFINED_TOKEN, Fault, SpecError, did_you_mean
from merlin_study.geometry import edge_kind
from merlin_study.notyet import not_yet
from merlin_study.outcome import EXIT_CODES
from merlin_study.plan import DEPENDENCIES_STEP, INFO_STEP, Edge, EdgeKind, Parameter, Plan, PlannedStep, SampleTable
from merlin_study.queues import NO_QUEUE, queue_name
from merlin_study.shape import Shape
from merlin_study.sizing import Sized
from merlin_study.sources import planned_files
from merlin_study.spec import SPECROOT, SUBMIT_PATH, Step, StudySpec
from merlin_study.table import Table
from merlin_study.template import tokens
from merlin_study.variables import Variables
from merlin_study.workspace import PATH_LISTS, safe_name

_COUNT_TOKENS: Final = frozenset({"MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL"})
"""What can be filled in, in any step, once the number of samples is known."""
_SAMPLE_TOKENS: Final = frozenset({"MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", *_COUNT_TOKENS})
_STUDY_TOKENS: Final = frozenset({"MERLIN_WORKSPACE", "MERLIN_INFO", "OUTPUT_PATH"})
_TASK_TOKENS: Final = frozenset({"WORKSPACE", *_STUDY_TOKENS, *_SAMPLE_TOKENS})
"""What an agent fills in for each task."""
_LAUNCHED: Final = frozenset({"slurm", "flux", "lsf", "lsf-srun", "pbs"})
"""Batch types whose scripts upstream names ``<step>.slurm.sh``, whatever the type."""


def compile_study(
    spec: StudySpec,
    *,
    stamp: str,
    base: str | None = None,
    spec_root: str | None = None,
    samples_directory: str = "",
    original: str | None = None,
    table: Table | None = None,
    missing: list[Fault] | None = None,
) -> Plan:
    """Return the plan of a study.

    Args:
        spec: what `merlin_study.parse.parse_spec` returned.
        stamp: YYYYMMDD-HHMMSS of the submission; ends the workspace's name unless ``spec.runId`` does.
        base: what the provenance files' names begin with; None takes the study's name.
        spec_root: the folder that ``$(SPECROOT)`` stands for; None where only the study's own files travel.
        samples_directory: where ``merlin.samples.generate`` runs; empty for the study's workspace.
        original: the specification's text as the user wrote it; None writes it anew.
        table: the parameters where they come from elsewhere (a generator, a file); they replace ``global.parameters``.
        missing: takes what is not built yet, for a plan that nothing will run; None refuses it.

    Raises:
        SpecError: the study is not one that can run; carries every fault found.
    """
    unbuilt = not_yet(spec)
    if unbuilt and missing is None:
        raise SpecError(unbuilt)
    compiler = _Compiler(
        spec, stamp=stamp, base=base or safe_name(spec.description.name), spec_root=spec_root, table=table
    )
    plan = compiler.plan(samples_directory=samples_directory, original=original)
    if compiler.faults and (missing is None or any(fault.reason != NOT_YET_SUPPORTED for fault in compiler.faults)):
        raise SpecError(compiler.faults)
    if missing is not None:
        missing += dict.fromkeys((*unbuilt, *compiler.faults))
    return plan


@dataclass
class _Draft:
    """A step while its place in the graph is worked out; ``at`` is its index in the specification.

    ``scripts`` are ``cmd`` and ``restart`` with the tokens that an agent's environment completes still in them.
    """

    at: int
    name: str
    step: Step
    cmd: str
    restart: str
    depends: list[tuple[str, bool]]
    scripts: tuple[str, str] = ("", "")
    sized: Sized = field(default_factory=Sized)
    sampled: bool = False
    uses: set[str] = field(default_factory=set)

    @property
    def path(self) -> str:
        return f"spec.study[{self.at}]"


class _Compiler:
    def __init__(self, spec: StudySpec, *, stamp: str, base: str, spec_root: str | None, table: Table | None) -> None:
        self.spec, self.stamp, self.base = spec, stamp, base
        spec_root = _told_root(spec) or spec_root
        elsewhere = spec.model_copy(update={"vars": _without(spec.vars, SPECROOT)}) if spec_root else spec
        self.variables = Variables(elsewhere, stamp=stamp, base=base, spec_root=None)
        """For what agents fill in the rest of: there ``$(SPECROOT)`` stays, since the folder may be gone one day."""
        self.names = Variables(spec, stamp=stamp, base=base, spec_root=spec_root)
        """For what is decided here."""
        self.spec_root = spec_root or ""
        self.faults: list[Fault] = self.variables.faults
        self.files, faults = planned_files(spec.files)
        self.faults += faults
        if spec.parameters_from is not None and table is None:
            message = "the table has not been read; whoever compiles the study has to bring it"
            self._fault("spec.parametersFrom", message)
        self.table = tables.of_spec(spec) if table is None else table
        self.keys = tuple(sorted(self.table))
        samples = spec.merlin.samples
        self.columns = tuple(map(self.variables.expand, samples.column_labels)) if samples is not None else ()
        if table is not None:
            self.faults += tables.faults(table, "global.parameters")
        self.faults += checks.column_faults(self.columns, self.table)

    def plan(self, *, samples_directory: str, original: str | None) -> Plan:
        name = self.names.expand(self.spec.description.name)
        self._add(checks.check_study_name(name, "spec.description.name"))
        self._known_here(name, "spec.description.name")
        drafts = self._drafts()
        order = self._order(drafts)
        samples = self._samples(samples_directory)
        self.faults += dependencies.faults(self.spec, self.names)
        script = dependencies.script(self.spec, self.names)
        steps = self._steps(order, samples, script)
        output_path = self.names.output_path
        parameters = self._parameters()
        for step in steps:
            self._directories(step, parameters)
        for token in tokens(output_path):
            message = f"$({token}) has no meaning in the place of the workspace; write the path out"
            self._fault("spec.env.variables.OUTPUT_PATH", message, UNDEFINED_TOKEN)
        scripts = [text for step in steps for text in (step.cmd, step.restart)]
        return Plan(
            name=name,
            workspace=f"{name.replace(' ', '_')}_{self.spec.run_id or self.stamp}",
            output_path=posixpath.join(str(self.spec.vars.get(SUBMIT_PATH, "")), output_path),
            parameters=parameters,
            samples=samples,
            steps=steps,
            fail_fast=fail_fast(self.spec),
            variables=self.variables.late(scripts),
            # Nothing of a study with faults is kept, and what grows beyond all bounds would only be told twice.
            provenance={}
            if any(fault.reason != NOT_YET_SUPPORTED for fault in self.faults)
            else provenance.files(self.spec, self.names, base=self.base, original=original),
            files=self.files,
            spec_root=self.spec_root,
            outputs=self._outputs(steps),
        )

    def _outputs(self, steps: tuple[PlannedStep, ...]) -> str:
        """Return what tasks leave behind, and see that no script reads what they then do not."""
        if self.spec.outputs == lean.LEAN:
            for step in steps:
                at = next((at for at, each in enumerate(self.spec.study) if each.name == step.name), None)
                for key, other, name in lean.missing_files(step, steps) if at is not None else ():
                    self._fault(
                        f"spec.study[{at}].run.{key}",
                        f"reads {name} of step {other!r}, which outputs: lean keeps in a log; have that step write a file of its "
                        "own, or use outputs: full",
                    )
        return self.spec.outputs

    def _add(self, fault: Fault | None) -> None:
        if fault is not None:
            self.faults.append(fault)

    def _fault(self, path: str, message: str, reason: str = INVALID_SPEC) -> None:
        self.faults.append(Fault(path, message, reason))

    def _refuse(self, path: str, message: str) -> None:
        self._fault(path, message, NOT_YET_SUPPORTED)

    def _known_here(self, text: str, path: str) -> None:
        """Refuse a text that is needed before an agent with an environment has seen it."""
        if environment.refers(text):
            self._fault(
                path,
                f"{text!r} holds an environment variable or '~', which only `merlin run` replaces; write the text out",
            )

    # Steps as they are written, variables expanded

    def _drafts(self) -> list[_Draft]:
        expand, drafts = self.variables.expand, []
        for at, step in enumerate(self.spec.study):
            draft = _Draft(
                at,
                expand(step.name),
                step,
                expand(step.run.cmd, f"spec.study[{at}].run.cmd"),
                expand(step.run.restart or "", f"spec.study[{at}].run.restart"),
                [checks.parse_depends(expand(entry)) for entry in step.run.depends],
            )
            expand_script = self.variables.expand_script
            draft.scripts = (expand_script(step.run.cmd), expand_script(step.run.restart or ""))
            self._add(checks.check_step_name(draft.name, f"{draft.path}.name"))
            self._known_here(draft.name, f"{draft.path}.name")
            self._size(draft)
            if tokens(draft.name):
                self._fault(
                    f"{draft.path}.name", f"{draft.name!r} holds a token that no variable defines", UNDEFINED_TOKEN
                )
            drafts.append(draft)
        names = [draft.name for draft in drafts]
        written = [[expand(entry) for entry in draft.step.run.depends] for draft in drafts]
        self.faults += checks.duplicate_faults(names) + checks.graph_faults(names, written)
        return drafts

    def _size(self, draft: _Draft) -> None:
        author = sizing.Author(
            path=draft.path,
            run=draft.step.run,
            kind=self._batch_type(draft)[0],
            minutes=self.spec.dialect == "Maestro",
            expand=self.variables.expand,
            columns={key: tuple(map(self.names.expand, column.values)) for key, column in self.table.items()},
        )
        draft.sized, faults = sizing.size(author, {"cmd": draft.cmd, "restart": draft.restart})
        self.faults += faults

    def _batch_type(self, draft: _Draft) -> tuple[str, str]:
        """Return the flavour of a step's launcher, its own or the study's, and where it stands."""
        own = draft.step.run.batch.type if draft.step.run.batch is not None else None
        path = f"{draft.path}.run.batch.type" if own else "spec.batch.type"
        return self.variables.expand(own or self.spec.batch.type) or "local", path

    def _order(self, drafts: list[_Draft]) -> list[_Draft]:
        """Return the steps so that each stands after what it depends on, else in the order of the text."""
        if any(fault.reason != NOT_YET_SUPPORTED for fault in self.faults):
            return drafts  # there may be circles
        placed: dict[str, _Draft] = {}
        waiting = list(drafts)
        while waiting:
            free = [draft for draft in waiting if all(parent in placed for parent, _ in draft.depends)]
            # A step may name the workspace of another without waiting for it; then it comes later where it can.
            later = {draft.name for draft in waiting}
            ready = next((draft for draft in free if not _workspaces(draft) & later - {draft.name}), free[0])
            placed[ready.name] = ready
            waiting.remove(ready)
        return list(placed.values())

    # What each step uses

    def _steps(self, order: Sequence[_Draft], samples: SampleTable | None, needed: str) -> tuple[PlannedStep, ...]:
        earlier: dict[str, _Draft] = {}
        for draft in order:
            self._use(draft, earlier, has_samples=samples is not None)
            earlier[draft.name] = draft
        planned: list[PlannedStep] = []
        queue = next((self._queue(draft) for draft in order if draft.sampled), "merlin")
        if needed:
            first = self._queue(order[0]) if order else NO_QUEUE
            planned.append(_implicit_step(DEPENDENCIES_STEP, needed, "/bin/bash", queue=first))
        counted = samples is not None and samples.count is not None
        if samples is not None and (not counted or any(_lists_paths(draft) for draft in order)):
            # upstream runs its command with /bin/sh, whatever the batch block says
            planned.append(_implicit_step(INFO_STEP, samples.generate or "", "/bin/sh", queue=queue))
        for draft in order:
            planned.append(self._planned(draft, planned, samples))
        if needed:
            waits = (Edge(parent=0, kind=EdgeKind.ALL),)
            planned[1:] = [step if step.edges else step.model_copy(update={"edges": waits}) for step in planned[1:]]
        return tuple(planned)

    def _use(self, draft: _Draft, earlier: Mapping[str, _Draft], *, has_samples: bool) -> None:
        """Find the parameters and samples that a step uses; refuse tokens of ours that nothing defines."""
        funnels = {name for name, funnel in draft.depends if funnel}
        for name, funnel in draft.depends:
            if not funnel and name in earlier:
                draft.uses |= earlier[name].uses
        for path, text in self._texts(draft):
            for token in tokens(self.variables.expand(text)):
                stem, _, ending = token.rpartition(".")
                key = stem if ending in ("label", "name") else token
                if key in self.table:
                    draft.uses.add(key)
                elif ending == "workspace" and stem in earlier:
                    draft.uses |= set() if stem in funnels else earlier[stem].uses
                elif not has_samples and token in _SAMPLE_TOKENS:
                    self._fault(path, f"$({token}) has no meaning in a study without merlin.samples", UNDEFINED_TOKEN)
                elif not self._sample_token(token) and token not in _TASK_TOKENS:
                    self._judge(token, path, earlier)
        scripts = tokens(draft.cmd) + tokens(draft.restart)
        draft.sampled = has_samples and any(self._sample_token(token) for token in scripts)

    def _texts(self, draft: _Draft) -> list[tuple[str, str]]:
        run = draft.step.run.model_dump(by_alias=True, exclude_unset=True)
        texts = [(f"{draft.path}.run.{key}", value) for key, value in run.items() if isinstance(value, str)]
        return [*texts, (f"{draft.path}.description", draft.step.description)]

    def _sample_token(self, token: str) -> bool:
        lowered = token.lower()
        return lowered in ("merlin_sample_id", "merlin_sample_path") or lowered in (c.lower() for c in self.columns)

    def _judge(self, token: str, path: str, earlier: Mapping[str, _Draft]) -> None:
        """Refuse a token that looks like one of ours; any other is the shell's."""
        known = [*self.variables.names, *self.keys, *self.columns, *_TASK_TOKENS, *EXIT_CODES]
        if token == SPECROOT:
            if not self.files and not self.spec_root:
                cure = "name the files in spec.files, or submit the study with `merlin run`, which brings them"
                self._fault(path, f"$({token}): no file came with the study; {cure}", UNDEFINED_TOKEN)
        elif " " in token or "\t" in token:  # a command of the shell's that ends like one of ours
            return
        elif token.endswith(".workspace"):
            hint = did_you_mean(token, [f"{name}.workspace" for name in earlier])
            self._fault(path, f"$({token}): no such step comes before this one{hint}", UNDEFINED_TOKEN)
        elif token.startswith("MERLIN_") or (token.isupper() and did_you_mean(token, known)):
            self._fault(path, f"$({token}) is not defined{did_you_mean(token, known)}", UNDEFINED_TOKEN)

    # Steps as they are planned

    def _planned(self, draft: _Draft, planned: Sequence[PlannedStep], samples: SampleTable | None) -> PlannedStep:
        run, expand = draft.step.run, self.variables.expand
        by_name = {step.name: at for at, step in enumerate(planned)}
        number = self._number
        sized = draft.sized
        step = PlannedStep(
            name=draft.name,
            cmd=draft.scripts[0],
            restart=draft.scripts[1],
            shell=expand(run.shell or self.spec.batch.shell or "/bin/bash"),
            queue=self._queue(draft),
            shape=sized.shape.token,
            max_retries=number(run.max_retries, f"{draft.path}.run.max_retries"),
            retry_delay=float(number(run.retry_delay, f"{draft.path}.run.retry_delay")),
            walltime=sized.walltime,
            sampled=draft.sampled,
            parameters=tuple(sorted(draft.uses)),
            edges=(),
            suffix=self._suffix(draft),
            warm=run.warm is not False,
            preload=tuple(expand(module) for module in run.preload),
            launch=sized.launch,
            varies=sized.varies,
            minutes=bool(sized.varies) and self.spec.dialect == "Maestro",
        )
        edges = [
            Edge(parent=by_name[name], kind=edge_kind(step, planned[by_name[name]], funnel=funnel))
            for name, funnel in draft.depends
            if name in by_name
        ]
        if samples is None or samples.count is not None:
            waits = _lists_paths(draft) and samples is not None
        else:
            needs_count = draft.sampled or not _COUNT_TOKENS.isdisjoint(tokens(draft.cmd + draft.restart))
            waits = needs_count and not any(planned[edge.parent].sampled for edge in edges)
        if waits:
            edges.insert(0, Edge(parent=by_name[INFO_STEP], kind=EdgeKind.ALL))
        return step.model_copy(update={"edges": tuple(edges)})

    def _directories(self, step: PlannedStep, parameters: Sequence[Parameter]) -> None:
        """Refuse combinations that would share a directory: the second would find the first one's mark and never run."""
        used = [parameter for parameter in parameters if parameter.key in step.parameters]
        owners: dict[str, tuple[str, ...]] = {}
        for labels in zip(*(parameter.labels for parameter in used), strict=False):
            directory = safe_name(".".join(labels))
            owner = owners.setdefault(directory, labels)
            if owner != labels:
                self._fault(
                    "spec.global.parameters",
                    f"{' and '.join(owner)!r} and {' and '.join(labels)!r} would share the directory "
                    f"{step.name}/{directory}; give the labels other texts",
                )
                return

    def _suffix(self, draft: _Draft) -> str:
        """Return what the batch type puts between a script's name and its ending."""
        kind, path = self._batch_type(draft)
        self._add(checks.check_batch_type(kind, path))
        if kind not in _LAUNCHED:
            return ""
        return f".{kind}" if self.spec.dialect == "Maestro" else ".slurm"

    def _queue(self, draft: _Draft) -> str:
        path = f"{draft.path}.run.task_queue"
        queue = self.variables.expand(draft.step.run.task_queue)
        self._known_here(queue, path)
        if tokens(queue):
            self._fault(
                path,
                f"{queue!r} differs between tasks, and agents are started for queues by name; give the step one queue",
            )
        return queue_name(queue)

    def _number(self, value: int | str, path: str) -> int:
        text = self.variables.expand(str(value)).strip()
        if text.isdecimal() and text.isascii():
            return int(text)
        if any(token in self.table for token in tokens(text)):
            self._refuse(
                path,
                f"a number that differs between combinations ({text!r}) is not supported here yet; use one for all",
            )
            return 0
        self._fault(path, f"expected a whole number, found {text!r}")
        return 0

    # Tables

    def _parameters(self) -> tuple[Parameter, ...]:
        result = []
        for key in self.keys:
            column = self.table[key]
            values = tuple(map(self.names.expand, column.values))
            if isinstance(column.label, str):
                label = self.names.expand(column.label)
                labels = tuple(label.replace("%%", value) for value in values)
            else:
                labels = tuple(map(self.names.expand, column.label))
            if any(f"$({SPECROOT})" in value for value in values):
                message = (
                    f"a value can't hold $({SPECROOT}), which is another folder on each site; write it in the script"
                )
                self._fault(f"spec.global.parameters.{key}", message)
            result.append(Parameter(key=key, values=values, labels=labels))
        return tuple(result)

    def _samples(self, directory: str) -> SampleTable | None:
        table = self.spec.merlin.samples
        if table is None:
            return None
        path = "spec.merlin.samples"
        if table.file is None and table.count is None:
            self._fault(f"{path}.file", "is required: the .csv, .tab or .npy file that holds the samples")
        if table.level_max_dirs < 2:
            self._fault(
                f"{path}.level_max_dirs", "expected at least 2 directories a level, found 1; they would nest for ever"
            )
        if table.count is not None:
            return SampleTable(
                generate=None, file="", columns=(), level_max_dirs=table.level_max_dirs, count=table.count
            )
        file = self.variables.expand(table.file or "", f"{path}.file")
        if not file.endswith((".csv", ".tab", ".npy")):
            self._fault(f"{path}.file", f"expected a name that ends in .csv, .tab or .npy, found {file!r}")
        generate = self.variables.expand(table.generate.cmd) if table.generate is not None else None
        for text, where in ((generate or "", f"{path}.generate.cmd"), (file, f"{path}.file")):
            for token in tokens(text):
                if token not in _STUDY_TOKENS:
                    self._judge(token, where, {})
        return SampleTable(
            generate=generate, file=file, columns=self.columns, level_max_dirs=table.level_max_dirs, directory=directory
        )


def _told_root(spec: StudySpec) -> str:
    """Return the folder of the specification where ``vars`` tells it; empty where only an environment knows."""
    root = str(spec.vars.get(SPECROOT, ""))
    return "" if environment.refers(root) else root


def _without(given: Mapping[str, str | float | bool], name: str) -> dict[str, str | float | bool]:
    return {key: value for key, value in given.items() if key != name}


def _workspaces(draft: _Draft) -> set[str]:
    """Steps whose directories a step's scripts name."""
    found = tokens(draft.cmd) + tokens(draft.restart)
    return {token.removesuffix(".workspace") for token in found if token.endswith(".workspace")}


def _lists_paths(draft: _Draft) -> bool:
    """Whether a step reads the list of all samples' directories, or would where their texts grow too long."""
    return any(name in draft.cmd + draft.restart for name in PATH_LISTS)


def fail_fast(spec: StudySpec) -> bool:
    """Whether any failure blocks what depends on it: what the author says, else what the dialect means."""
    if "failure_policy" in spec.model_fields_set:
        return spec.failure_policy == "FailFast"
    return spec.dialect == "Maestro"


def _implicit_step(name: str, cmd: str, interpreter: str, *, queue: str) -> PlannedStep:
    """Return a step that no specification names: one task, before others."""
    return PlannedStep(
        name=name,
        cmd=cmd,
        restart="",
        shell=interpreter,
        queue=queue,
        shape=Shape().token,
        max_retries=0,
        retry_delay=1.0,
        walltime=None,
        sampled=False,
        parameters=(),
        edges=(),
        suffix="",
    )
