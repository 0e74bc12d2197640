"""From raw data to a `StudySpec`, or to everything that is wrong with it.

Raw data is what kubectl's JSON or `merlin_study.loader` gives. It goes through four passes, each of which notes its faults
and hands on what it could keep, so that one submission shows a user all mistakes:

1. *clean*: keys are text, text has no NUL, numbers are finite, nothing is nested without end;
2. *prune*: keys that the language does not have go (a fault, or a warning where upstream only warns), nulls too; a token in
   the place of a list or number becomes one;
3. *validate*: pydantic checks types and bounds, and `merlin_study.translate` says its errors in our words;
4. *judge*: names, graph, parameters and samples, by `merlin_study.judge`.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from merlin_study import retype
from merlin_study.errors import UNKNOWN_FIELD, Fault, SpecError, did_you_mean
from merlin_study.judge import judge
from merlin_study.scalars import describe
from merlin_study.spec import Block, StudySpec
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
    notes.faults += judge(pruned, root)
    if notes.faults:
        faults = list(dict.fromkeys(notes.faults))
        more = [Fault(root, f"and {len(faults) - MAX_FAULTS} faults more")] if len(faults) > MAX_FAULTS else []
        raise SpecError([*faults[:MAX_FAULTS], *more])
    assert spec is not None
    return spec, notes.warnings


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
                self.fault(
                    path[:200],
                    f"expected at most {MAX_DEPTH} lists and mappings within each other, found more; write it flatter",
                )
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
