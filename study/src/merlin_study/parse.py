"""From raw data to a `StudySpec`, or to everything that is wrong with it.

Raw data is what kubectl's JSON or `merlin_study.loader` gives. It goes through four passes, each of which notes its faults
and hands on what it could keep, so that one submission shows a user all mistakes:

1. *clean*: keys are text, text has no NUL, numbers are finite, nothing is nested without end;
2. *prune*: keys that the language does not have go (a fault, or a warning where upstream only warns), nulls too; a token in
   the place of a list or number becomes one;
3. *validate*: pydantic checks types and bounds, and `merlin_study.translate` says its errors in our words;
4. *judge*: names, graph, parameters and samples, by `merlin_study.checks`.

What needs tokens to be expanded is judged by the compiler, with the same checks.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from merlin_study import checks, retype
from merlin_study.errors import UNKNOWN_FIELD, Fault, SpecError, did_you_mean
from merlin_study.scalars import describe, spell
from merlin_study.spec import MAX_SCRIPT_CHARACTERS, SPECROOT, SUBMIT_PATH, Block, StudySpec
from merlin_study.translate import QUOTE, block_of, translate

MAX_DEPTH: Final = 64
MAX_FAULTS: Final = 100
"""More would fill a condition's message and help nobody."""
MAX_KEYS_SHOWN: Final = 12


def parse_spec(
    raw: Mapping[str, Any], *, unknown: Literal["refuse", "warn"] = "refuse", root: str = "spec"
) -> tuple[StudySpec, list[str]]:
    """Read the ``spec`` of a Study, or an upstream file, which has the same shape.

    Args:
        raw: Plain mappings, lists and scalars; not changed.
        unknown: What an unknown key is: a fault, as kubectl has it, or a warning, as upstream has it.
        root: How paths begin.

    Returns:
        The study as written (nothing expanded), and warnings of one line each.

    Raises:
        SpecError: With every fault found, in the order of the passes.
    """
    notes = _Notes(unknown)
    cleaned = notes.clean(raw, root, 0)
    if not isinstance(cleaned, dict):
        raise SpecError([Fault(root, f"expected a mapping, found {describe(raw)}")])
    notes.variables = retype.table(cleaned)
    pruned = notes.prune(StudySpec, cleaned, root)
    spec: StudySpec | None = None
    try:
        spec = StudySpec.model_validate(pruned, by_alias=True, by_name=False)
    except ValidationError as error:
        translated = (translate(details, root) for details in error.errors(include_url=False))
        notes.faults += [fault for fault in translated if fault]
    notes.judge(_View(pruned), root)
    if notes.faults:
        faults = list(dict.fromkeys(notes.faults))
        more = [Fault(root, f"and {len(faults) - MAX_FAULTS} faults more")] if len(faults) > MAX_FAULTS else []
        raise SpecError([*faults[:MAX_FAULTS], *more])
    assert spec is not None
    return spec, notes.warnings


def to_document(spec: StudySpec) -> dict[str, Any]:
    """Turn a study back into plain data that kubectl's YAML cannot misread.

    Keys are the original ones, in the order of the models; only what the author wrote is there. Values whose type the
    language leaves open (variables, labels, parameters) become text as upstream spells it, since kubectl would make ``1``
    of ``1.0``.

    Args:
        spec: What `parse_spec` gave.

    Returns:
        The ``spec`` of a manifest: dicts, lists, strings, numbers and booleans only.
    """
    document: dict[str, Any] = plain(spec.model_dump(by_alias=True, exclude_unset=True))
    tables = [document.get("env", {}).get("variables"), document.get("env", {}).get("labels"), document.get("vars")]
    for table in tables:
        for key, value in (table or {}).items():
            table[key] = spell(value)
    for parameter in document.get("global.parameters", {}).values():
        parameter["values"] = [spell(value) for value in parameter["values"]]
    return document


def plain(value: Any) -> Any:
    """Tuples become lists, so that only JSON's types remain."""
    match value:
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


class _Notes:
    """What the passes have found so far."""

    def __init__(self, unknown: Literal["refuse", "warn"]) -> None:
        self.unknown = unknown
        self.variables: Mapping[str, Any] = {}
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def fault(self, path: str, message: str) -> None:
        """Note what is merely invalid."""
        self.faults.append(Fault(path, message))

    def clean(self, value: Any, path: str, depth: int) -> Any:
        """Copy raw data without what nothing later could bear."""
        match value:
            case Mapping() | list() | tuple() if depth > MAX_DEPTH:
                self.fault(path[:200], f"is nested more than {MAX_DEPTH} deep")
                return None
            case Mapping():
                return {
                    key: self.clean(item, f"{path}.{key}", depth + 1)
                    for key, item in value.items()
                    if self._good_key(key, path)
                }
            case list() | tuple():
                return [self.clean(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
            case str() if fault := _bad_text(value):
                self.fault(path, fault)
                return value.encode("utf-8", "replace").decode().replace("\0", "?")
            case float() if not math.isfinite(value):
                self.fault(path, f"expected a finite number, found {describe(value)}; quote it if the text is meant")
            case _:
                pass
        return value

    def _good_key(self, key: Any, path: str) -> bool:
        """Whether a key is text that can be shown."""
        if not isinstance(key, str):
            self.fault(
                path,
                f"expected a string as key, found {describe(key)}{QUOTE if isinstance(key, bool) else '; quote it'}",
            )
            return False
        if fault := _bad_text(key):
            self.fault(path, f"a key {fault}")
            return False
        return True

    def prune(self, model: type[Block], raw: dict[str, Any], path: str) -> dict[str, Any]:
        """Drop nulls and unknown keys, all the way down."""
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        kept: dict[str, Any] = {}
        for key, value in raw.items():
            place = f"{path}.{key}"
            if key not in fields:
                hint = did_you_mean(key, fields)
                if self.unknown == "warn":
                    self.warnings.append(f"{place}: unknown key, dropped{hint}")
                else:
                    known = (
                        f"; known are {', '.join(sorted(fields))}" if len(fields) <= MAX_KEYS_SHOWN else "; remove it"
                    )
                    self.faults.append(Fault(place, f"unknown key{hint or known}", UNKNOWN_FIELD))
            elif value is not None:
                kept[key] = self._prune_value(
                    fields[key], retype.retype(fields[key].annotation, value, self.variables), place
                )
        return kept

    def _prune_value(self, field: FieldInfo, value: Any, path: str) -> Any:
        """Prune a field's own blocks: the field itself, the items of its list, or the values of its map."""
        block = block_of(field.annotation)
        match value:
            case dict() if _is_map(field.annotation):
                for key in value:
                    if key in {"true", "false"}:
                        self.fault(f"{path}.{key}", f"expected a name, found what YAML made of a bare word{QUOTE}")
                return {key: self._prune_item(block, item, f"{path}.{key}") for key, item in value.items()}
            case dict() if block:
                return self.prune(block, value, path)
            case list() if block:
                return [self._prune_item(block, item, f"{path}[{index}]") for index, item in enumerate(value)]
            case _:
                return value

    def _prune_item(self, block: type[Block] | None, item: Any, path: str) -> Any:
        """Prune a member of a list or map; an empty entry of a map of blocks (``worker:``) is an empty block."""
        if block is None:
            return item
        return self.prune(block, {} if item is None else item, path) if isinstance(item, dict | None) else item

    def judge(self, view: "_View", root: str) -> None:
        """Note what the checks find, on whatever is well enough formed to be checked."""
        names, depends = view.names(), view.depends()
        for index, name in enumerate(names):
            if name and (fault := checks.check_step_name(name, f"{root}.study[{index}].name")):
                self.faults.append(fault)
        self.faults += checks.duplicate_faults(names, f"{root}.study")
        self.faults += checks.graph_faults(names, depends, f"{root}.study")
        self._judge_tokens(view, root)
        self._judge_samples(view, root)
        lengths = {key: len(values) for key, values in view.parameters().items()}
        self.faults += checks.parameter_faults(lengths, f"{root}.global.parameters")
        self._judge_dependencies(view, root)
        for where, text in view.batch_types():
            if fault := checks.check_batch_type(text, f"{root}.{where}"):
                self.faults.append(fault)
        if (study_name := view.text("description", "name")) and (
            fault := checks.check_study_name(study_name, f"{root}.description.name")
        ):
            self.faults.append(fault)
        total = sum(map(len, view.scripts()))
        if total > MAX_SCRIPT_CHARACTERS:
            message = f"expected at most {MAX_SCRIPT_CHARACTERS} characters in all scripts together, found {total}"
            self.fault(f"{root}.study", f"{message}; put long scripts into files")
        if view.text("site") == "any":
            self.fault(f"{root}.site", "'any' stands for no site; leave the key out to let the first agent decide")

    def _judge_tokens(self, view: "_View", root: str) -> None:
        """Names that ``$(NAME)`` has to reach, and overrides of variables that are there."""
        for where, name in view.token_names():
            if where == f"vars.{SPECROOT}":  # what `merlin run` knows and the cluster does not
                continue
            if fault := checks.token_name_fault(name, f"{root}.{where}"):
                self.faults.append(fault)
        seen: dict[str, str] = {}
        for where, name in view.token_names():
            other = seen.setdefault(name, where)
            if where.startswith("env.dependencies.") and other != where:
                self.fault(f"{root}.{where}", f"'{name}' is defined by {root}.{other} already; take another name")
        known = [*view.mapping("env", "variables"), *view.mapping("env", "labels")]
        for name in view.mapping("vars"):
            if name not in (*known, SPECROOT, SUBMIT_PATH):
                self.fault(
                    f"{root}.vars.{name}", f"env.variables has no '{name}' to override{did_you_mean(name, known)}"
                )

    def _judge_dependencies(self, view: "_View", root: str) -> None:
        """What a study needs before it runs: no two revisions of one clone, and nothing that nobody would see to."""
        path = f"{root}.env.dependencies"
        for index, clone in enumerate(view.blocks("env", "dependencies", "git")):
            revisions = [key for key in ("tag", "hash", "branch") if key in clone]
            if len(revisions) > 1:
                self.fault(
                    f"{path}.git[{index}]", f"expected one of tag, hash and branch, found {' and '.join(revisions)}"
                )
        if view.mapping("env", "dependencies", "spack"):
            self.fault(
                f"{path}.spack",
                "neither Merlin nor Maestro does anything with it; remove it, and load the package in cmd",
            )

    def _judge_samples(self, view: "_View", root: str) -> None:
        """The table of samples."""
        samples, path = view.mapping("merlin", "samples"), f"{root}.merlin.samples"
        if samples and ("file" in samples) == ("count" in samples):
            self.fault(
                f"{path}.file", "is required: path of the table" if "file" not in samples else "either file or count"
            )
        if "count" in samples:
            for key in ("generate", "column_labels"):
                if samples.get(key):
                    self.fault(f"{path}.{key}", "belongs to a file, and samples that are counted have none; remove it")
        self.faults += checks.column_faults(view.columns(), view.mapping("global.parameters"), path)


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


def _bad_text(text: str) -> str:
    """What is wrong with the characters of a text, if anything."""
    if "\0" in text:
        return "holds a NUL byte, which no file or script can; remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character; remove it"
    return ""


def _is_map(annotation: Any) -> bool:
    """Whether an annotation is a map whose keys the user chooses and the language reads."""
    return get_origin(annotation) is Mapping and Any not in get_args(annotation)
