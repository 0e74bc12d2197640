"""From a specification to a plan: deterministic, without a clock, without a file.

The names and tables of the study first (`merlin_study.basis`), then the graph in topological order, with the parameters and
samples that each step uses (`merlin_study.drafts`, `merlin_study.sizing`), then the steps as they are planned
(`merlin_study.steps`). What only an agent can know stays a token in the scripts. All faults are collected; a plan comes out
only where there are none.
"""

from __future__ import annotations

import posixpath

from merlin_study import dependencies, drafts, lean, provenance
from merlin_study.basis import Basis
from merlin_study.checks import check_study_name
from merlin_study.errors import UNDEFINED_TOKEN, Fault, SpecError
from merlin_study.notyet import not_yet
from merlin_study.plan import Plan, PlannedStep
from merlin_study.spec import SUBMIT_PATH, StudySpec
from merlin_study.steps import bound_tasks, plan_steps, share_directories
from merlin_study.table import Table
from merlin_study.template import tokens
from merlin_study.workspace import run_directory, safe_name


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
    basis = Basis(spec, stamp=stamp, base=base or safe_name(spec.description.name), spec_root=spec_root, table=table)
    plan = _plan(basis, samples_directory=samples_directory, original=original)
    if basis.broken or (basis.faults and missing is None):
        raise SpecError(basis.faults)
    if missing is not None:
        missing += dict.fromkeys((*unbuilt, *basis.faults))
    return plan


def _plan(basis: Basis, *, samples_directory: str, original: str | None) -> Plan:
    spec, names = basis.spec, basis.names
    name = names.expand(spec.description.name)
    basis.add(check_study_name(name, "spec.description.name"))
    basis.known_here(name, "spec.description.name")
    order = drafts.ordered(drafts.read(basis), basis)
    samples = basis.samples(samples_directory)
    basis.faults += dependencies.faults(spec, names)
    drafts.use(order, basis)
    steps = plan_steps(order, basis, samples, dependencies.script(spec, names))
    for step in steps:
        share_directories(step, basis)
        bound_tasks(step, samples, basis)
    for token in tokens(names.output_path):
        message = f"$({token}) has no meaning in the place of the workspace; write the path out"
        basis.fault("spec.env.variables.OUTPUT_PATH", message, UNDEFINED_TOKEN)
    scripts = [text for step in steps for text in (step.cmd, step.restart)]
    scripts += [text for step in steps if step.launch is not None for text in step.launch.arguments.values()]
    return Plan(
        name=name,
        workspace=run_directory(name, spec.run_id or basis.stamp),
        output_path=posixpath.join(str(spec.vars.get(SUBMIT_PATH, "")), names.output_path),
        parameters=basis.parameters,
        samples=samples,
        steps=steps,
        fail_fast=fail_fast(spec),
        variables=basis.variables.late(scripts),
        # Nothing of a study with faults is kept, and what grows beyond all bounds would only be told twice.
        provenance={} if basis.broken else provenance.files(spec, names, base=basis.base, original=original),
        files=basis.files,
        spec_root=basis.spec_root,
        outputs=_outputs(steps, basis),
    )


def _outputs(steps: tuple[PlannedStep, ...], basis: Basis) -> str:
    """Return what tasks leave behind, and see that no script reads what they then do not."""
    outputs = basis.spec.outputs
    if outputs == "full":
        return outputs
    for step in steps:
        at = next((at for at, each in enumerate(basis.spec.study) if each.name == step.name), None)
        if at is None:
            continue
        where = f"spec.study[{at}].run"
        for key, other, name in lean.missing_files(step, steps):
            basis.fault(
                f"{where}.{key}",
                f"reads {name} of step {other!r}, which outputs: {outputs} keeps in a log; have that step write a file of its "
                "own, or use outputs: full",
            )
    return outputs


def fail_fast(spec: StudySpec) -> bool:
    """Whether any failure blocks what depends on it: what the author says, else what the dialect means."""
    if "failure_policy" in spec.model_fields_set:
        return spec.failure_policy == "FailFast"
    return spec.dialect == "Maestro"
