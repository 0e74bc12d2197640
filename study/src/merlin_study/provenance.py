"""The three files in ``merlin_info`` that say what a run was made from, as Merlin names and fills them.

    <base>.orig.yaml      the specification as its author wrote it
    <base>.partial.yaml   the same with all defaults written out, and variables and labels with their values
    <base>.expanded.yaml  the same with every variable and study-wide token replaced, in every block

Each can be given to ``merlin run`` again. What only the place of a run decides (``$(MERLIN_INFO)``, ``$(MERLIN_WORKSPACE)``) stays
a token in the plan, and `placed` replaces it when the files are written. Values keep their types; where a token made a value,
it is typed as YAML types the text, as upstream does by reading its own text again. Upstream's dumper loses comment signs
and colons within texts; this one writes what kubectl and any YAML reader read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from merlin_study import loader
from merlin_study.errors import SpecError
from merlin_study.scalars import spell
from merlin_study.spec import SUBMIT_PATH, StudySpec
from merlin_study.template import Template
from merlin_study.variables import Variables
from merlin_study.writer import dump_quoted, plain

ORIGINAL: Final = ".orig.yaml"
PARTIAL: Final = ".partial.yaml"
EXPANDED: Final = ".expanded.yaml"
_RUN: Final = {"task_queue": "merlin", "shell": "/bin/bash", "max_retries": 30}
_BATCH: Final = {"type": "local", "dry_run": False, "shell": "/bin/bash"}
_RESOURCES: Final = {"task_server": "celery", "overlap": False}
_GENERATE: Final = {"cmd": "echo 'Insert sample-generating command here'"}
"""Upstream's defaults (its ``spec/defaults.py``), written out so that a file says what ran when they change."""


def files(spec: StudySpec, variables: Variables, *, base: str, original: str | None) -> dict[str, str]:
    """Return the files' names and texts.

    Args:
        spec: The study as it was parsed, with what the command line replaced in ``vars``.
        variables: What its names stand for.
        base: What the names begin with.
        original: The specification as the user wrote it; None writes it anew.
    """
    written: dict[str, Any] = plain(spec.model_dump(by_alias=True, exclude_unset=True))
    written.pop("runId", None)  # who runs one of these files again wants a run of its own
    written.get("vars", {}).pop(SUBMIT_PATH, None)
    partial = with_defaults(written)
    expanded = _expanded(partial, variables)
    if "env" in partial:
        partial = {**partial, "env": {**partial["env"], **_named(expanded["env"], "variables", "labels")}}
    return {
        f"{base}{ORIGINAL}": original if original is not None else dump_quoted(written),
        f"{base}{PARTIAL}": dump_quoted(partial),
        f"{base}{EXPANDED}": dump_quoted(expanded),
    }


def placed(name: str, text: str, *, root: str, info: str) -> str:
    """Return a file's text as it is written to disk, with the tokens replaced that name its place.

    Args:
        name: The file's name.
        text: What the plan has for it.
        root: The study's directory, absolute.
        info: Its ``merlin_info``.
    """
    if not name.endswith((PARTIAL, EXPANDED)):
        return text
    places = {"MERLIN_WORKSPACE": root, "MERLIN_INFO": info}
    if not any(f"$({token})" in text for token in places):
        return text
    try:
        document = loader.load_yaml(text, source=name)
    except SpecError:  # not written by `files`
        return text
    if name.endswith(EXPANDED):
        done = _replaced(document, places)
    elif "env" in document:
        tables = _named(document["env"], "variables", "labels")
        done = {**document, "env": {**document["env"], **_replaced(tables, places)}}
    else:
        return text
    return dump_quoted(done)


def with_defaults(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification with upstream's defaults written out, and ``vars`` put where they belong."""
    document = {key: value for key, value in written.items() if key != "vars"}
    document["batch"] = {**_BATCH, **document.get("batch", {})}
    _override(document, written.get("vars", {}))
    run = {**_RUN, "shell": document["batch"]["shell"]}
    document["study"] = [{**step, "run": {**run, **step["run"]}} for step in document["study"]]
    merlin = dict(document.get("merlin", {}))
    resources = {**_RESOURCES, **merlin.get("resources", {})}
    resources["workers"] = _workers(resources.get("workers"), [step["name"] for step in document["study"]])
    merlin["resources"] = resources
    if samples := merlin.get("samples"):
        merlin["samples"] = {"generate": dict(_GENERATE), "level_max_dirs": 25, **samples}
    document["merlin"] = merlin
    return document


def _override(document: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put ``vars`` into the block that has the name; what no block has is one of ours (``SPECROOT``)."""
    env = dict(document.get("env", {}))
    for block in ("variables", "labels"):
        if block in env:
            env[block] = {name: overrides.get(name, value) for name, value in env[block].items()}
    if env:
        document["env"] = env


def _workers(given: Mapping[str, Any] | None, steps: list[str]) -> dict[str, Any]:
    """Every step has a worker: one for all where none is named, one more for those that no worker names."""
    if not given:
        return {"default_worker": {"steps": ["all"]}}
    workers = {name: {"steps": ["all"], **(worker or {})} for name, worker in given.items()}
    served = {step for worker in workers.values() for step in worker["steps"]}
    left = [] if "all" in served else [step for step in steps if step not in served]
    return {**workers, "default_worker": {"steps": left}} if left and left != steps else workers


def _expanded(tree: Any, variables: Variables) -> Any:
    match tree:
        case str():
            return _typed(tree, variables.expand(tree))
        case Mapping():
            return {variables.expand(str(key)): _expanded(value, variables) for key, value in tree.items()}
        case list():
            return [_expanded(item, variables) for item in tree]
        case _:
            return tree


def _replaced(tree: Any, places: Mapping[str, str]) -> Any:
    match tree:
        case str():
            return Template.parse(tree).render(places.get)
        case Mapping():
            return {key: _replaced(value, places) for key, value in tree.items()}
        case list():
            return [_replaced(item, places) for item in tree]
        case _:
            return tree


def _typed(before: str, after: str) -> Any:
    """A value as YAML types its text, where a token made it a number or a boolean and nothing of the text is lost by that."""
    if before == after or not after or "\n" in after or not before.startswith("$("):
        return after
    try:
        value = loader.load_yaml(after, source="")
    except SpecError:
        return after
    return value if isinstance(value, bool | int | float) and spell(value) == after else after


def _named(block: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: block[key] for key in keys if key in block}
