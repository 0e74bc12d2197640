"""Pydantic's errors, said in our words: what was expected, what was found, what to do.

The models find what is wrong with types and bounds; what they say about it is for programmers. `translate` is the only
place that reads their errors, so no user ever sees one raw.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from merlin_study.errors import Fault, did_you_mean
from merlin_study.scalars import describe
from merlin_study.spec import LABEL_PATTERN, RUN_ID_PATTERN, SHA256_PATTERN, Block, StudySpec

QUOTE: Final = (
    "; quote it, or use `merlin convert` (YAML reads a bare yes, no, on, off and, with kubectl, y and n as booleans)"
)
_PATTERNS: Final = {
    LABEL_PATTERN: "lower-case letters, digits and '-', with a letter or digit at both ends",
    RUN_ID_PATTERN: "letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    SHA256_PATTERN: "64 hexadecimal digits",
}
_EXPECTED: Final = {
    "string_type": "a string",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list",
    "too_long": "at most {max_length} entries",
}


def block_of(annotation: Any) -> type[Block] | None:
    """The class of blocks that an annotation holds, itself, in a list, in a map or optionally."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    return next((block for part in get_args(annotation) if (block := block_of(part))), None)


def translate(details: ErrorDetails, root: str) -> Fault | None:
    """Say one of pydantic's errors in our words; None where a later check says it better."""
    path, field = root, _find(details["loc"])
    for part in details["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    found, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "merlin":
            return Fault(path, str(context["message"]))
        case "missing":
            what = re.split(r"[.,;:] |\.$", field.description or "")[0] if field else ""
            return Fault(path, f"is required: {what[:1].lower()}{what[1:]}")
        case "string_pattern_mismatch" | "string_too_long" if _is_directory(details["loc"]):
            return None
        case "too_short":  # also said of a list whose entries were all refused
            return None if found else Fault(path, "expected at least one step, found none")
        case "literal_error":
            words = get_args(field.annotation) if field else ()
            hint = did_you_mean(found, words) if isinstance(found, str) else ""
            return Fault(path, f"expected one of {', '.join(words)}, found {describe(found)}{hint}")
        case kind:
            return Fault(path, _expected(kind, found, context))


def _expected(kind: str, found: Any, context: Mapping[str, Any]) -> str:
    """What was expected and found, for each kind of error that the models can raise."""
    expected = _EXPECTED.get(kind, "a mapping").format(**context)
    if kind == "string_pattern_mismatch":
        expected = _PATTERNS[context["pattern"]]
    if kind == "too_long":
        return f"expected {expected}, found {context['actual_length']}"
    return f"expected {expected}, found {describe(found)}{_cure(kind, found, context)}"


def _cure(kind: str, found: Any, context: Mapping[str, Any]) -> str:
    """What to do, where that can be told from what was found."""
    match kind, found:
        case "string_type", bool():
            return QUOTE
        case "string_type", int() | float():
            return "; quote it"
        case "string_too_long", str():
            return f" of {len(found)}" + (
                "; put long text into a file" if context["max_length"] > 253 else "; shorten it"
            )
        case "bool_type", "true" | "false":
            return "; remove the quotes"
        case "tuple_type", str() if len(found) <= 60:
            return f"; write [{found}]"
        case _:
            return ""


def _find(location: Sequence[int | str]) -> FieldInfo | None:
    """The field that an error's location names, if it names one and not an entry of a list or map."""
    block: type[Block] | None = StudySpec
    field: FieldInfo | None = None
    for part in location:
        if isinstance(part, int) or block is None:
            continue
        known = {info.alias or name: info for name, info in block.model_fields.items()}
        field = known.get(part)
        if field is not None:
            block = block_of(field.annotation)
    return field


def _is_directory(location: Sequence[int | str]) -> bool:
    """Whether a location is a name that `merlin_study.checks` judges."""
    match tuple(location):
        case ("description", "name") | ("study", int(), "name"):
            return True
        case _:
            return False
