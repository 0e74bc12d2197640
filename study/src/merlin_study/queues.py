"""What a step's ``task_queue`` comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from merlin_study import table
from merlin_study.spec import StudySpec
from merlin_study.template import Template, tokens

NO_QUEUE: Final = "merlin"
"""The queue of steps that ask for none (``task_queue: none``), as upstream has it without its tag."""


def queue_name(written: str) -> str:
    """Return the queue of a step that asks for ``written``, tokens expanded."""
    return NO_QUEUE if written.lower() in ("", "none") else written


def of_steps(spec: StudySpec, expand: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Return the queues of each step, each once: several where its combinations differ.

    A token of a table that is not in the specification (``parametersFrom``, ``--pgen``) stays, since nobody here knows its values.
    """
    return {expand(step.name): _queues(expand(step.run.task_queue), spec, expand) for step in spec.study}


def _queues(text: str, spec: StudySpec, expand: Callable[[str], str]) -> tuple[str, ...]:
    known = table.of_spec(spec)
    keys = {token: token.removesuffix(".label").removesuffix(".name") for token in tokens(text)}
    used = {token: key for token, key in keys.items() if key in known}
    if not used:
        return (queue_name(text),)
    found: dict[str, None] = {}
    for row in range(max(len(known[key].values) for key in used.values())):
        values = {token: expand(_value(token, known[key], key, row)) for token, key in used.items()}
        found[queue_name(Template.parse(text).render(values.get))] = None
    return tuple(found)


def _value(token: str, column: table.Column, key: str, row: int) -> str:
    if token.endswith(".name"):
        return column.name or key
    value = column.values[row] if row < len(column.values) else ""
    if not token.endswith(".label"):
        return value
    return column.label.replace("%%", value) if isinstance(column.label, str) else column.label[row]
