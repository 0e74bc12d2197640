"""``outputs: lean``: what needs a directory of its own all the same, decided from the plan's texts.

Script, output and ending of a task go into its chunk's log (`merlin_study.tasklog`). A task runs in a directory that its slot lends
it; where it leaves files there, that directory becomes its own, at the place that Merlin's layout gives it. So a task without
files costs no directory, and one with files is found where every script looks for it. Steps that name their directory
while they run, or come back to it, get it before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from merlin_study.plan import IMPLICIT, Plan, PlannedStep
from merlin_study.template import tokens
from merlin_study.workspace import safe_name

LEAN: Final = "lean"
PACKED: Final = "packed"
"""What `merlin_study.packed` is about; its archives hold logs, too."""
_OTHERS_SAMPLE: Final = re.compile(r"\$\([^()]*\.workspace\)[\"']?/[\"']?\$\(MERLIN_SAMPLE_PATH\)")
_WHERE: Final = re.compile(r"\b(?:PWD|pwd|realpath|readlink|abspath|getcwd|BASH_SOURCE)\b|\$\{?0\b")
"""How a script learns the name of the directory that it runs in, and could write it down."""


def applies(plan: Plan, step: int) -> bool:
    """Whether a step's tasks leave a log instead of files."""
    return plan.outputs in {LEAN, PACKED} and plan.steps[step].name not in IMPLICIT


def in_place(plan: Plan, step: int) -> bool:
    """Whether each task of a lean step runs in its own directory of Merlin's layout from the beginning.

    So where its script names that directory (or asks for the one that it runs in), where another step names the only one that an
    unsampled task has, and where a restart script goes on with what lies there.
    """
    planned = plan.steps[step]
    text = _OTHERS_SAMPLE.sub("", planned.cmd)
    own = set(tokens(text))
    if planned.restart or _WHERE.search(text) or "MERLIN_SAMPLE_PATH" in {name.upper() for name in own}:
        return True
    return not planned.sampled and ("WORKSPACE" in own or _is_named(plan, planned))


def needs_shared(plan: Plan, step: int) -> bool:
    """Whether the directory that a combination's samples share has to be there: a script names it."""
    planned = plan.steps[step]
    return planned.sampled and ("WORKSPACE" in tokens(planned.cmd + planned.restart) or _is_named(plan, planned))


def missing_files(reader: PlannedStep, steps: tuple[PlannedStep, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield what a script reads of another step that is not there: which script (``cmd``, ``restart``), the step, the file."""
    for key, text in (("cmd", reader.cmd), ("restart", reader.restart)):
        named = {name.removesuffix(".workspace") for name in tokens(text) if name.endswith(".workspace")}
        for step in steps:
            if step.name in named:
                own = re.escape(safe_name(step.name))
                if found := re.search(rf"(?:\*|{own}[^\s/]*)\.(?:out|err|sh)\b|MERLIN_FINISHED", text):
                    yield key, step.name, found[0]


def _is_named(plan: Plan, planned: PlannedStep) -> bool:
    name = f"$({planned.name}.workspace)"
    return any(name in text for other in plan.steps for text in (other.cmd, other.restart))
