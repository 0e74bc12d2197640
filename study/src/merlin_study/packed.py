"""``outputs: packed``: which steps are packed, decided from the plan's texts.

The tasks of a step with samples run on their node's own disk, and what they leave comes back as one archive a chunk
(`merlin_study.archive`). Other steps leave what they leave under ``outputs: lean``: those without samples, which are few and make
what users look at; those over several hosts, which share no disk but the workspace; and those whose directory a script names, because
what it looks for would be in archives by then, or on another node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from merlin_study import lean, shape
from merlin_study.plan import Plan, PlannedStep
from merlin_study.template import Template, tokens
from merlin_study.workspace import safe_name

_OWN: Final = re.compile(r"\$\(WORKSPACE\)[\"']?/+[\"']?\$\(MERLIN_SAMPLE_PATH\)")
_ROOT: Final = r"\$\(MERLIN_WORKSPACE\)"
_ANY: Final = re.compile(_ROOT + r"(?![\"']?/+[\"']?(?!\.{1,2}/)[\w.()-]+(?![\w.()*?\[{$-]))")
"""The study's directory where no single name follows: a script that is given it may look anywhere below."""


class Reading(NamedTuple):
    """Why a step is not packed: which step's script names what."""

    step: str
    reader: str
    what: str

    def __str__(self) -> str:
        return (
            f"step {self.reader!r}: names {self.what}, so under outputs: packed the tasks of step {self.step!r} are not packed; they "
            "leave what they leave under outputs: lean"
        )


def steps(plan: Plan) -> frozenset[int]:
    """Return the steps whose tasks run on the node's own disk."""
    if plan.outputs != lean.PACKED:
        return frozenset()
    return frozenset(at for at, planned in enumerate(plan.steps) if _can_be(planned)) - _read(plan).keys()


def readings(plan: Plan) -> list[Reading]:
    """Return why steps are not packed that would be if no script named their directories; one reason each."""
    return list(_read(plan).values()) if plan.outputs == lean.PACKED else []


def _can_be(planned: PlannedStep) -> bool:
    return planned.sampled and all(shape.parse(lane.shape).nodes == 1 for lane in planned.lanes)


def _read(plan: Plan) -> dict[int, Reading]:
    candidates = {planned.name: at for at, planned in enumerate(plan.steps) if _can_be(planned)}
    found: dict[int, Reading] = {}
    for at, reader in enumerate(plan.steps) if candidates else ():
        for step, what in _named(plan, at, candidates):
            found.setdefault(step, Reading(plan.steps[step].name, reader.name, what))
    return found


def _named(plan: Plan, reader: int, candidates: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Yield the candidates whose directories a step's scripts name, and how."""
    text = _texts(plan, plan.steps[reader])
    own = plan.steps[reader].name
    if own in candidates and "$(WORKSPACE)" in _OWN.sub("", text):
        yield candidates[own], "$(WORKSPACE), which all its samples share"
    for name in tokens(text):
        if name.endswith(".workspace") and name.removesuffix(".workspace") in candidates:
            yield candidates[name.removesuffix(".workspace")], f"$({name})"
    directories = {safe_name(name): step for name, step in candidates.items()}
    longest_first = "|".join(map(re.escape, sorted(directories, key=len, reverse=True)))
    for match in re.finditer(rf"(?:{_ROOT}[\"']?|\.\.)/+[\"']?({longest_first})(?![\w.-])", text):
        yield directories[match[1]], match[0]
    if _ANY.search(text):
        for step in sorted(_above(plan, reader) & set(candidates.values())):
            yield step, "$(MERLIN_WORKSPACE) without one directory in it"


def _texts(plan: Plan, planned: PlannedStep) -> str:
    """Return a step's scripts as an agent completes them, and the parameters' values that come into them."""
    scripts = Template.parse(f"{planned.cmd}\n{planned.restart}").render(plan.variables.get)
    used = (parameter for parameter in plan.parameters if parameter.key in planned.parameters)
    return "\n".join((scripts, *(value for each in used for value in each.values if "$(" in value)))


def _above(plan: Plan, step: int) -> set[int]:
    """Return the steps that a step waits for, directly or through others."""
    found: set[int] = set()
    todo = [step]
    while todo:
        parents = {edge.parent for edge in plan.steps[todo.pop()].edges} - found
        found |= parents
        todo += parents
    return found
