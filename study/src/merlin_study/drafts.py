"""Steps while their places in the graph are worked out: variables expanded, in order, with what each of them uses.

A step uses the parameters that its own texts name, and inherits those of the steps that it waits for (but not through a
funnel), and of those whose workspace it names. It is sampled where its scripts name a sample's token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from merlin_study import checks, sizing
from merlin_study.basis import SAMPLE_TOKENS, TASK_TOKENS, Basis
from merlin_study.errors import DIFFERS_BY_SAMPLE, UNDEFINED_TOKEN
from merlin_study.sizing import Sized
from merlin_study.spec import Step
from merlin_study.template import tokens
from merlin_study.workspace import PATH_LISTS

_ONE_FOR_ALL: Final = frozenset(
    {"shell", "slurm", "flux", "lsf", "bind", "num resource set", "launch_distribution", "exit_on_error"}
)
"""Keys of ``run`` that hold no sample's token; those of sizes, queue and retries are judged where they are read."""


@dataclass
class Draft:
    """A step; ``at`` is its index in the specification.

    ``scripts`` are ``cmd`` and ``restart`` with the tokens that an agent's environment completes still in them.
    """

    at: int
    name: str
    step: Step
    cmd: str
    restart: str
    depends: list[tuple[str, bool]]
    scripts: tuple[str, str]
    sized: Sized = field(default_factory=Sized)
    sampled: bool = False
    uses: set[str] = field(default_factory=set)

    @property
    def path(self) -> str:
        """Where the step stands."""
        return f"spec.study[{self.at}]"

    @property
    def lists_paths(self) -> bool:
        """Whether it reads the list of all samples' directories, or would where their texts grow too long."""
        return any(name in self.cmd + self.restart for name in PATH_LISTS)

    def workspaces(self) -> set[str]:
        """Return the steps whose directories its scripts name."""
        found = tokens(self.cmd) + tokens(self.restart)
        return {token.removesuffix(".workspace") for token in found if token.endswith(".workspace")}


def read(basis: Basis) -> list[Draft]:
    """Return the steps as they are written, variables expanded."""
    expand, expand_script, drafts = basis.variables.expand, basis.variables.expand_script, []
    for at, step in enumerate(basis.spec.study):
        draft = Draft(
            at,
            expand(step.name),
            step,
            expand(step.run.cmd, f"spec.study[{at}].run.cmd"),
            expand(step.run.restart or "", f"spec.study[{at}].run.restart"),
            [checks.parse_depends(expand(entry)) for entry in step.run.depends],
            (expand_script(step.run.cmd), expand_script(step.run.restart or "")),
        )
        basis.add(checks.check_step_name(draft.name, f"{draft.path}.name"))
        basis.known_here(draft.name, f"{draft.path}.name")
        _size(draft, basis)
        if tokens(draft.name):
            basis.fault(f"{draft.path}.name", f"{draft.name!r} holds a token that no variable defines", UNDEFINED_TOKEN)
        drafts.append(draft)
    names = [draft.name for draft in drafts]
    written = [[expand(entry) for entry in draft.step.run.depends] for draft in drafts]
    basis.faults += checks.duplicate_faults(names) + checks.graph_faults(names, written)
    return drafts


def batch_type(draft: Draft, basis: Basis) -> tuple[str, str]:
    """Return the flavour of a step's launcher, its own or the study's, and where it stands."""
    own = draft.step.run.batch.type if draft.step.run.batch is not None else None
    path = f"{draft.path}.run.batch.type" if own else "spec.batch.type"
    return basis.variables.expand(own or basis.spec.batch.type) or "local", path


def _size(draft: Draft, basis: Basis) -> None:
    author = sizing.Author(
        path=draft.path,
        run=draft.step.run,
        kind=batch_type(draft, basis)[0],
        minutes=basis.spec.dialect == "Maestro",
        expand=basis.variables.expand,
        expand_late=basis.variables.expand_script,
        columns=basis.token_columns,
        is_of_samples=basis.is_of_samples,
    )
    draft.sized, faults = sizing.size(author, {"cmd": draft.cmd, "restart": draft.restart})
    basis.faults += faults


def ordered(drafts: list[Draft], basis: Basis) -> list[Draft]:
    """Return the steps so that each stands after what it depends on, else in the order of the text."""
    if basis.broken:
        return drafts  # there may be circles
    placed: dict[str, Draft] = {}
    waiting = list(drafts)
    while waiting:
        free = [draft for draft in waiting if all(parent in placed for parent, _ in draft.depends)]
        # A step may name the workspace of another without waiting for it; then it comes later where it can.
        later = {draft.name for draft in waiting}
        ready = next((draft for draft in free if not draft.workspaces() & later - {draft.name}), free[0])
        placed[ready.name] = ready
        waiting.remove(ready)
    return list(placed.values())


def use(order: list[Draft], basis: Basis) -> None:
    """Find the parameters and samples that each step uses; refuse tokens of ours that nothing defines."""
    earlier: dict[str, Draft] = {}
    for draft in order:
        _use(draft, earlier, basis)
        earlier[draft.name] = draft


def _use(draft: Draft, earlier: Mapping[str, Draft], basis: Basis) -> None:
    funnels = {name for name, funnel in draft.depends if funnel}
    for name, funnel in draft.depends:
        if not funnel and name in earlier:
            draft.uses |= earlier[name].uses
    for path, text in _texts(draft):
        for token in tokens(basis.variables.expand(text)):
            stem, _, ending = token.rpartition(".")
            key = stem if ending in ("label", "name") else token
            if key in basis.table:
                draft.uses.add(key)
            elif ending == "workspace" and stem in earlier:
                draft.uses |= set() if stem in funnels else earlier[stem].uses
            else:
                _judge(token, path, earlier, basis)
    scripts = tokens(draft.cmd) + tokens(draft.restart)
    draft.sampled = basis.has_samples and any(map(basis.is_of_samples, scripts))


def _judge(token: str, path: str, earlier: Mapping[str, Draft], basis: Basis) -> None:
    """Refuse a token that has no meaning, or none in its place."""
    if basis.has_samples and basis.is_of_samples(token):
        if path.rpartition(".")[2] in _ONE_FOR_ALL:
            basis.fault(path, f"expected one text for all samples, found $({token}), {DIFFERS_BY_SAMPLE}")
    elif not basis.has_samples and token in SAMPLE_TOKENS:
        basis.fault(path, f"$({token}) has no meaning in a study without merlin.samples", UNDEFINED_TOKEN)
    elif token not in TASK_TOKENS:
        basis.judge(token, path, earlier)


def _texts(draft: Draft) -> list[tuple[str, str]]:
    run = draft.step.run.model_dump(by_alias=True, exclude_unset=True)
    texts = [(f"{draft.path}.run.{key}", value) for key, value in run.items() if isinstance(value, str)]
    return [*texts, (f"{draft.path}.description", draft.step.description)]
