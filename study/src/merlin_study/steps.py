"""From drafts to planned steps: their edges and lanes, and the implicit steps before all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from merlin_study import checks
from merlin_study.basis import COUNT_TOKENS, Basis
from merlin_study.drafts import Draft, batch_type
from merlin_study.geometry import edge_kind, excess
from merlin_study.plan import DEPENDENCIES_STEP, INFO_STEP, Edge, EdgeKind, Lane, PlannedStep, SampleTable
from merlin_study.queues import NO_QUEUE
from merlin_study.routes import Lanes, plan_lanes
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
    lanes = {draft.name: plan_lanes(draft, basis) for draft in order}
    if needed:
        planned.append(_implicit_step(DEPENDENCIES_STEP, needed, "/bin/bash", _first_queue(order, lanes)))
    counted = samples is not None and samples.count is not None
    if samples is not None and (not counted or any(draft.lists_paths for draft in order)):
        # upstream runs its command with /bin/sh, whatever the batch block says
        queue = _first_queue([draft for draft in order if draft.sampled], lanes)
        planned.append(_implicit_step(INFO_STEP, samples.generate or "", "/bin/sh", queue))
    for draft in order:
        planned.append(_planned(draft, basis, planned, samples, lanes[draft.name]))
    if needed:
        waits = (Edge(parent=0, kind=EdgeKind.ALL),)
        planned[1:] = [step if step.edges else step.model_copy(update={"edges": waits}) for step in planned[1:]]
    return tuple(planned)


def share_directories(step: PlannedStep, basis: Basis) -> None:
    """Refuse combinations that would share a directory: the second would find the first one's mark and never run."""
    used = [parameter for parameter in basis.parameters if parameter.key in step.parameters]
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


def bound_tasks(step: PlannedStep, samples: SampleTable | None, basis: Basis) -> None:
    """Refuse a step of more tasks than there may be, where their number is known."""
    if not step.sampled or samples is None or samples.count is None:
        return
    used = [parameter.labels for parameter in basis.parameters if parameter.key in step.parameters]
    combinations = len(set(zip(*used, strict=False))) if used else 1
    if why := excess(step.name, combinations=combinations, samples=samples.count):
        basis.fault("spec.merlin.samples.count", why)


def _planned(
    draft: Draft, basis: Basis, planned: Sequence[PlannedStep], samples: SampleTable | None, lanes: Lanes
) -> PlannedStep:
    run, expand, sized = draft.step.run, basis.variables.expand, draft.sized
    step = PlannedStep(
        name=draft.name,
        cmd=draft.scripts[0],
        restart=draft.scripts[1],
        shell=expand(run.shell or basis.spec.batch.shell or "/bin/bash"),
        lanes=lanes[0],
        lane_of=lanes[1],
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
    if checks.holds_token(kind):
        basis.fault(
            path,
            f"expected one of {', '.join(checks.BATCH_TYPES)}, found {kind!r}; a step has one launcher, so make a step for each",
        )
    if kind not in _LAUNCHED:
        return ""
    return f".{kind}" if basis.spec.dialect == "Maestro" else ".slurm"


def _first_queue(order: Sequence[Draft], lanes: Mapping[str, Lanes]) -> str:
    """Return the queue of the first of some steps, whose agents do what has to be done before."""
    return lanes[order[0].name][0][0].queue if order else NO_QUEUE


def _implicit_step(name: str, cmd: str, interpreter: str, queue: str) -> PlannedStep:
    """Return a step that no specification names: one task, before others."""
    return PlannedStep(
        name=name,
        cmd=cmd,
        restart="",
        shell=interpreter,
        lanes=(Lane(queue=queue, shape=Shape().token, max_retries=0),),
        sampled=False,
        parameters=(),
        edges=(),
        suffix="",
    )
