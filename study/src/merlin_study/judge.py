"""The fourth pass of `merlin_study.parse`: names, graph, parameters and samples of data that may still be malformed.

Each rule looks at whatever is well enough formed to be looked at, so that a user hears of a circle and of a misspelt key at
once. What needs tokens to be expanded is judged by the compiler, with the same `merlin_study.checks`.
"""

from collections.abc import Iterator
from typing import Any

from merlin_study import checks
from merlin_study.errors import Fault, did_you_mean
from merlin_study.spec import MAX_SCRIPT_CHARACTERS, SPECROOT, SUBMIT_PATH


def judge(pruned: dict[str, Any], root: str) -> Iterator[Fault]:
    """Find what the checks say of a study's data.

    Args:
        pruned: What the second pass kept.
        root: How paths begin.
    """
    view = _View(pruned)
    names = view.names()
    for index, name in enumerate(names):
        if name and (fault := checks.check_step_name(name, f"{root}.study[{index}].name")):
            yield fault
    yield from checks.duplicate_faults(names, f"{root}.study")
    yield from checks.graph_faults(names, view.depends(), f"{root}.study")
    yield from _tokens(view, root)
    yield from _samples(view, root)
    lengths = {key: len(values) for key, values in view.parameters().items()}
    yield from checks.parameter_faults(lengths, f"{root}.global.parameters")
    yield from _dependencies(view, root)
    for where, text in view.batch_types():
        if fault := checks.check_batch_type(text, f"{root}.{where}"):
            yield fault
    if (study_name := view.text("description", "name")) and (
        fault := checks.check_study_name(study_name, f"{root}.description.name")
    ):
        yield fault
    total = sum(map(len, view.scripts()))
    if total > MAX_SCRIPT_CHARACTERS:
        message = f"expected at most {MAX_SCRIPT_CHARACTERS} characters in all scripts together, found {total}"
        yield Fault(f"{root}.study", f"{message}; put long scripts into files")
    if view.text("site") == "any":
        yield Fault(f"{root}.site", "'any' stands for no site; leave the key out to let the first agent decide")


def _tokens(view: "_View", root: str) -> Iterator[Fault]:
    """Names that ``$(NAME)`` has to reach, and overrides of variables that are there."""
    for where, name in view.token_names():
        if where == f"vars.{SPECROOT}":  # what `merlin run` knows and the cluster does not
            continue
        if fault := checks.token_name_fault(name, f"{root}.{where}"):
            yield fault
    seen: dict[str, str] = {}
    for where, name in view.token_names():
        other = seen.setdefault(name, where)
        if where.startswith("env.dependencies.") and other != where:
            yield Fault(f"{root}.{where}", f"'{name}' is defined by {root}.{other} already; take another name")
    known = [*view.mapping("env", "variables"), *view.mapping("env", "labels")]
    for name in view.mapping("vars"):
        if name not in (*known, SPECROOT, SUBMIT_PATH):
            yield Fault(f"{root}.vars.{name}", f"env.variables has no '{name}' to override{did_you_mean(name, known)}")


def _dependencies(view: "_View", root: str) -> Iterator[Fault]:
    """What a study needs before it runs: no two revisions of one clone, and nothing that nobody would see to."""
    path = f"{root}.env.dependencies"
    for index, clone in enumerate(view.blocks("env", "dependencies", "git")):
        revisions = [key for key in ("tag", "hash", "branch") if key in clone]
        if len(revisions) > 1:
            yield Fault(
                f"{path}.git[{index}]", f"expected one of tag, hash and branch, found {' and '.join(revisions)}"
            )
    if view.mapping("env", "dependencies", "spack"):
        yield Fault(
            f"{path}.spack",
            "neither Merlin nor Maestro does anything with it; remove it, and load the package in cmd",
        )


def _samples(view: "_View", root: str) -> Iterator[Fault]:
    """The table of samples."""
    samples, path = view.mapping("merlin", "samples"), f"{root}.merlin.samples"
    if samples and ("file" in samples) == ("count" in samples):
        yield Fault(
            f"{path}.file", "is required: path of the table" if "file" not in samples else "either file or count"
        )
    if "count" in samples:
        for key in ("generate", "column_labels"):
            if samples.get(key):
                yield Fault(f"{path}.{key}", "belongs to a file, and samples that are counted have none; remove it")
    yield from checks.column_faults(view.columns(), view.mapping("global.parameters"), path)


class _View:
    """Reads raw data that may be malformed; what is not of the right type is not there."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def at(self, *keys: str) -> Any:
        """Follow keys down; None where there is nothing."""
        value: Any = self.raw
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, *keys: str) -> str:
        """Follow keys down to a string; empty where there is none."""
        value = self.at(*keys)
        return value if isinstance(value, str) else ""

    def mapping(self, *keys: str) -> dict[str, Any]:
        """Follow keys down to a mapping."""
        value = self.at(*keys)
        return value if isinstance(value, dict) else {}

    def blocks(self, *keys: str) -> list[dict[str, Any]]:
        """Follow keys down to a list of mappings; an empty one for what is none."""
        found = self.at(*keys)
        return [item if isinstance(item, dict) else {} for item in found] if isinstance(found, list) else []

    def steps(self) -> list[dict[str, Any]]:
        """The steps; an empty mapping for what is none."""
        return self.blocks("study")

    def runs(self) -> list[dict[str, Any]]:
        """The ``run`` of each step."""
        return [run if isinstance(run := step.get("run"), dict) else {} for step in self.steps()]

    def names(self) -> list[str]:
        """The name of each step; empty where it has none."""
        return [name if isinstance(name := step.get("name"), str) else "" for step in self.steps()]

    def depends(self) -> list[list[str]]:
        """The ``depends`` of each step."""
        return [_strings(run.get("depends")) for run in self.runs()]

    def columns(self) -> list[str]:
        """The labels of the sample table."""
        return _strings(self.at("merlin", "samples", "column_labels"))

    def parameters(self) -> dict[str, list[Any]]:
        """The values of each parameter that has a list."""
        table = self.mapping("global.parameters")
        lists = ((key, value.get("values")) for key, value in table.items() if isinstance(value, dict))
        return {key: values for key, values in lists if isinstance(values, list)}

    def token_names(self) -> Iterator[tuple[str, str]]:
        """Path and name of everything that defines a token."""
        for keys in (("env", "variables"), ("env", "labels"), ("vars",), ("global.parameters",)):
            for name in self.mapping(*keys):
                yield f"{'.'.join(keys)}.{name}", name
        for kind in ("paths", "git"):
            for index, block in enumerate(self.blocks("env", "dependencies", kind)):
                if isinstance(token := block.get("name"), str) and token:
                    yield f"env.dependencies.{kind}[{index}].name", token

    def batch_types(self) -> Iterator[tuple[str, str]]:
        """Path and text of every ``batch.type``."""
        places: list[tuple[str, Any]] = [("batch", self.mapping("batch"))]
        places += [(f"study[{index}].run.batch", run.get("batch")) for index, run in enumerate(self.runs())]
        workers = self.mapping("merlin", "resources", "workers")
        places += [
            (f"merlin.resources.workers.{name}.batch", _View(workers).mapping(name, "batch")) for name in workers
        ]
        for where, batch in places:
            if isinstance(batch, dict) and isinstance(text := batch.get("type"), str):
                yield f"{where}.type", text

    def scripts(self) -> Iterator[str]:
        """Every script's text."""
        for run in self.runs():
            yield from (text for key in ("cmd", "restart", "pre", "post") if isinstance(text := run.get(key), str))
        yield self.text("merlin", "samples", "generate", "cmd")


def _strings(value: Any) -> list[str]:
    """The strings of a list, the others as empty ones so that indices stay."""
    return [item if isinstance(item, str) else "" for item in value] if isinstance(value, list) else []
