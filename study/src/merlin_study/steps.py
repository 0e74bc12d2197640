"""From drafts to planned steps: edges, queues, the implicit steps before all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from merlin_study import checks
from merlin_study.basis import COUNT_TOKENS, Basis
from merlin_study.drafts import Draft, batch_type
from merlin_study.errors import NOT_YET_SUPPORTED
from merlin_study.geometry import edge_kind
from merlin_study.plan import DEPENDENCIES_STEP, INFO_STEP, Edge, EdgeKind, Parameter, PlannedStep, SampleTable
from merlin_study.queues import NO_QUEUE, queue_name
from merlin_study.shape import Shape
from merlin_study.template import tokens
from merlin_study.workspace import safe_name

_LAUNCHED: Final = frozenset({"slurm", "flux", "lsf", "lsf-srun", "pbs"})
"""Batch types whose scripts upstream names ``<step>.slurm.sh``, whatever the type."""


def plan_steps(
    order: Sequence[Draft], basis: Basis, samples: SampleTable | None, needed: str
) -> tuple[PlannedStep, ...]:
    """Return all steps of a plan, implicit ones first.

    Args:
        order: The drafts in topological order, with what they use.
        basis: Takes the faults.
        samples: The sample table, if there is one.
        needed: The script that sees to the study's dependencies; empty for none.
    """
    planned: list[PlannedStep] = []
    queue = next((_queue(draft, basis) for draft in order if draft.sampled), "merlin")
    if needed:
        first = _queue(order[0], basis) if order else NO_QUEUE
        planned.append(_implicit_step(DEPENDENCIES_STEP, needed, "/bin/bash", queue=first))
    counted = samples is not None and samples.count is not None
    if samples is not None and (not counted or any(draft.lists_paths for draft in order)):
        # upstream runs its command with /bin/sh, whatever the batch block says
        planned.append(_implicit_step(INFO_STEP, samples.generate or "", "/bin/sh", queue=queue))
    for draft in order:
        planned.append(_planned(draft, basis, planned, samples))
    if needed:
        waits = (Edge(parent=0, kind=EdgeKind.ALL),)
        planned[1:] = [step if step.edges else step.model_copy(update={"edges": waits}) for step in planned[1:]]
    return tuple(planned)


def share_directories(step: PlannedStep, parameters: Sequence[Parameter], basis: Basis) -> None:
    """Refuse combinations that would share a directory: the second would find the first one's mark and never run."""
    used = [parameter for parameter in parameters if parameter.key in step.parameters]
    owners: dict[str, tuple[str, ...]] = {}
    for labels in zip(*(parameter.labels for parameter in used), strict=False):
        directory = safe_name(".".join(labels))
        owner = owners.setdefault(directory, labels)
        if owner != labels:
            basis.fault(
                "spec.global.parameters",
                f"{' and '.join(owner)!r} and {' and '.join(labels)!r} would share the directory "
                f"{step.name}/{directory}; give the labels other texts",
            )
            return


def _planned(draft: Draft, basis: Basis, planned: Sequence[PlannedStep], samples: SampleTable | None) -> PlannedStep:
    run, expand, sized = draft.step.run, basis.variables.expand, draft.sized
    step = PlannedStep(
        name=draft.name,
        cmd=draft.scripts[0],
        restart=draft.scripts[1],
        shell=expand(run.shell or basis.spec.batch.shell or "/bin/bash"),
        queue=_queue(draft, basis),
        shape=sized.shape.token,
        max_retries=_number(run.max_retries, f"{draft.path}.run.max_retries", basis),
        retry_delay=float(_number(run.retry_delay, f"{draft.path}.run.retry_delay", basis)),
        walltime=sized.walltime,
        sampled=draft.sampled,
        parameters=tuple(sorted(draft.uses)),
        edges=(),
        suffix=_suffix(draft, basis),
        warm=run.warm is not False,
        preload=tuple(expand(module) for module in run.preload),
        launch=sized.launch,
        varies=sized.varies,
        minutes=bool(sized.varies) and basis.spec.dialect == "Maestro",
    )
    return step.model_copy(update={"edges": _edges(draft, step, planned, samples)})


def _edges(
    draft: Draft, step: PlannedStep, planned: Sequence[PlannedStep], samples: SampleTable | None
) -> tuple[Edge, ...]:
    """Return what a step waits for: the steps that it names, and the samples where nothing that it waits for has them."""
    by_name = {step.name: at for at, step in enumerate(planned)}
    edges = [
        Edge(parent=by_name[name], kind=edge_kind(step, planned[by_name[name]], funnel=funnel))
        for name, funnel in draft.depends
        if name in by_name
    ]
    if samples is None or samples.count is not None:
        waits = draft.lists_paths and samples is not None
    else:
        needs_count = draft.sampled or not COUNT_TOKENS.isdisjoint(tokens(draft.cmd + draft.restart))
        waits = needs_count and not any(planned[edge.parent].sampled for edge in edges)
    if waits:
        edges.insert(0, Edge(parent=by_name[INFO_STEP], kind=EdgeKind.ALL))
    return tuple(edges)


def _suffix(draft: Draft, basis: Basis) -> str:
    """Return what the batch type puts between a script's name and its ending."""
    kind, path = batch_type(draft, basis)
    basis.add(checks.check_batch_type(kind, path))
    if kind not in _LAUNCHED:
        return ""
    return f".{kind}" if basis.spec.dialect == "Maestro" else ".slurm"


def _queue(draft: Draft, basis: Basis) -> str:
    path = f"{draft.path}.run.task_queue"
    queue = basis.variables.expand(draft.step.run.task_queue)
    basis.known_here(queue, path)
    if tokens(queue):
        basis.fault(
            path,
            f"{queue!r} differs between tasks, and agents are started for queues by name; give the step one queue",
        )
    return queue_name(queue)


def _number(value: int | str, path: str, basis: Basis) -> int:
    text = basis.variables.expand(str(value)).strip()
    if text.isdecimal() and text.isascii():
        return int(text)
    if any(token in basis.table for token in tokens(text)):
        basis.fault(
            path,
            f"a number that differs between combinations ({text!r}) is not supported here yet; use one for all",
            NOT_YET_SUPPORTED,
        )
        return 0
    basis.fault(path, f"expected a whole number, found {text!r}")
    return 0


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
