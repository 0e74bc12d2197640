"""``outputs: packed``: which steps are packed, and which scripts can't be, decided from the plan's texts.

The tasks of a step with samples run on their node's own disk, and what they leave comes back as one archive a chunk
(`merlin_study.archive`). Other steps are few and make what users look at; they leave what they leave under ``outputs: lean``, and so
do steps over several hosts, which share no disk but the workspace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from merlin_study import lean, shape
from merlin_study.plan import Plan, PlannedStep
from merlin_study.workspace import safe_name

_OWN: Final = re.compile(r"\$\(WORKSPACE\)[\"']?/+[\"']?\$\(MERLIN_SAMPLE_PATH\)")
_SHARED: Final = (
    "expected $(WORKSPACE)/$(MERLIN_SAMPLE_PATH), found $(WORKSPACE) alone: under outputs: packed a task sees its own directory "
    "only, not the one that all samples share; write to a directory of your own below $(MERLIN_WORKSPACE), or use outputs: lean"
)


def applies(plan: Plan, step: int) -> bool:
    """Whether a step's tasks run on the node's own disk."""
    return plan.outputs == lean.PACKED and is_packed(plan.steps[step])


def is_packed(planned: PlannedStep) -> bool:
    """Whether a step of a study with ``outputs: packed`` is one whose tasks run on the node's own disk."""
    return planned.sampled and all(shape.parse(lane.shape).nodes == 1 for lane in planned.lanes)


def faults(reader: PlannedStep, steps: tuple[PlannedStep, ...]) -> Iterator[tuple[str, str]]:
    """Yield what a script names that is in archives by then, or on another node: which script (``cmd``, ``restart``), and why not."""
    for key, text in (("cmd", reader.cmd), ("restart", reader.restart)):
        if is_packed(reader) and "$(WORKSPACE)" in _OWN.sub("", text):
            yield key, _SHARED
        for step in filter(is_packed, steps):
            directory = re.escape(safe_name(step.name))
            named = (
                rf"\$\({re.escape(step.name)}\.workspace\)|\$\(MERLIN_WORKSPACE\)[\"']?/+[\"']?{directory}(?![\w.-])"
            )
            if found := re.search(named, text):
                yield key, _elsewhere(found[0], step)


def _elsewhere(what: str, step: PlannedStep) -> str:
    return (
        f"reads {what}, but under outputs: packed the files of step {step.name!r} are in archives; have that step write what is read "
        "to a directory of its own below $(MERLIN_WORKSPACE), or use outputs: lean"
    )
