"""The small values of a study: what YAML may have made of them, and how they are spelled.

From a file or from kubectl a value arrives as text, number or boolean, and upstream is loose about which. Each type here
says what it takes in three ways that must agree: a Python type, a check whose message a user can act on, and the JSON
schema that ``crds/study.yaml`` repeats (a test compares them).

Two kinds cannot be told apart by a structural schema, which knows no unions but ``int-or-string``: values that may also be
fractions or booleans, and `Exclusive`. The CRD leaves those untyped, and the checks here are the only ones.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

TOKEN: Final = r"^\$\(\w+\)$"  # noqa: S105 a pattern, not a secret
"""One reference and nothing else, as upstream's schema has it for numbers."""
_TOKEN: Final = re.compile(TOKEN, re.ASCII)  # ASCII, as the API server's \w is
MAX_INT: Final = 2_147_483_647
MAX_VALUE: Final = 16_384
"""Characters of one variable, label or parameter value."""
MAX_ITEMS: Final = 10_000
"""Values of one variable that is a list, or of one parameter."""

_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def describe(value: object) -> str:
    """What was found, for a message: ``3 (integer)``, ``'x' (string)``, ``true (boolean)``, ``a list of 2``."""
    match value:
        case bool():
            return f"{str(value).lower()} (boolean)"
        case None:
            return "null"
        case str():
            return f"{value if len(value) <= 40 else value[:37] + '...'!r} (string)"
        case Mapping():
            return f"a mapping of {len(value)}"
        case Sequence():
            return f"a list of {len(value)}"
        case _:
            shown = str(value) if not isinstance(value, int) or abs(value) < 10**40 else "a very long number"
            return f"{shown} ({_TYPES.get(type(value), type(value).__name__)})"


def spell(value: str | float | bool | Sequence[Any]) -> str:  # noqa: FBT001 a value of the user's, not a flag
    """The text of a value as upstream substitutes it: Python's own ``str``.

    So ``0.50`` read as a number is ``0.5``, ``yes`` is ``True`` and ``10:00:00`` is ``36000``. A list gives its Python
    form, as upstream's does.
    """
    return str(list(value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _refuse(expected: str, found: object, cure: str = "") -> PydanticCustomError:
    """An error that `merlin_study.parse` passes on as it is."""
    message = f"expected {expected}, found {describe(found)}{cure}"
    return PydanticCustomError("merlin", "{message}", {"message": message})


def _scalar(value: Any) -> str | int | float | bool:
    """Text, a finite number or a boolean."""
    match value:
        case str() if len(value) > MAX_VALUE:
            raise _refuse(f"at most {MAX_VALUE} characters", value, f" of {len(value)}; put long text into a file")
        case float() if not math.isfinite(value):
            raise _refuse("a finite number", value, "; quote it if the text is meant")
        case str() | bool() | int() | float():
            return value
        case _:
            raise _refuse("a string, number or boolean", value)


def _variable(value: Any) -> str | int | float | tuple[str | int | float | bool, ...]:
    """Text, a number or a list; a boolean is what YAML makes of ``yes`` or ``n``, and upstream refuses it too."""
    if isinstance(value, bool):
        raise _refuse(
            "a string, number or list",
            value,
            "; quote it, or let `merlin convert` do so (YAML reads a bare yes, no, on, off and, with kubectl, y and n as booleans)",
        )
    if isinstance(value, list | tuple):
        if len(value) > MAX_ITEMS:
            raise _refuse(f"at most {MAX_ITEMS} values", value)
        return tuple(_scalar(item) for item in value)
    if not isinstance(value, str | int | float):
        raise _refuse("a string, number or list", value)
    return _scalar(value)


def _override(value: Any) -> str | int:
    """Text or a whole number: what a schema can type, so that a rule of the CRD can compare it."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _refuse("a string or whole number", value, "; quote it")
    _scalar(value)
    return value


def _number(minimum: int, maximum: int, words: Sequence[str] = ()) -> Callable[[Any], int | str]:
    """A check for a whole number in bounds, one ``$(TOKEN)``, or one of some words."""
    expected = f"a whole number from {minimum} to {maximum}, one token such as $(NAME)" + "".join(
        f" or '{word}'" for word in words
    )

    def check(value: Any) -> int | str:
        match value:
            case bool():
                raise _refuse(expected, value)
            case int() if minimum <= value <= maximum:
                return value
            case str() if value in words or (len(value) <= 256 and _TOKEN.fullmatch(value)):
                return value
            case str() if value.isdecimal():
                raise _refuse(expected, value, "; remove the quotes")
            case _:
                raise _refuse(expected, value)

    return check


def _number_schema(minimum: int, maximum: int, pattern: str = TOKEN) -> dict[str, Any]:
    """The structural schema of `_number`; pattern and length bind strings only, minimum and maximum numbers only."""
    bounds = {"minimum": minimum, "maximum": maximum, "maxLength": 256, "pattern": pattern}
    return {"x-kubernetes-int-or-string": True, **bounds}


def _walltime(value: Any) -> int | str:
    """Seconds, or text that is read when tokens are gone."""
    match value:
        case bool():
            pass
        case int() if 0 <= value <= MAX_INT:
            return value
        case str() if 1 <= len(value) <= 256:
            return value
        case _:
            pass
    raise _refuse("seconds or [days:]hours:minutes:seconds", value)


def _version(value: Any) -> str | float:
    """Text such as ``0.49.0``, or a number such as ``0.49``."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refuse("a version", value, "; quote it")
    return value


def _exclusive(value: Any) -> bool | str | Mapping[str, Any]:
    """A boolean, a token, or Maestro's mapping of ``allocation`` and ``launcher``."""
    match value:
        case bool():
            return value
        case str() if _TOKEN.fullmatch(value):
            return value
        case Mapping() if set(value) <= {"allocation", "launcher"}:
            return value
        case _:
            raise _refuse("true, false, one token such as $(NAME) or a mapping of allocation and launcher", value)


def _step_priority(value: Any) -> str | float:
    """Maestro's urgency word, or its fraction."""
    words = ("held", "minimal", "low", "medium", "high", "expedited")
    match value:
        case bool():
            pass
        case int() | float() if 0 <= value <= 1:
            return value
        case str() if value.lower() in words or _TOKEN.fullmatch(value):
            return value
        case _:
            pass
    raise _refuse(f"a number from 0 to 1, one token such as $(NAME) or one of {', '.join(words)}", value)


_UNTYPED: Final = {"x-kubernetes-preserve-unknown-fields": True}
_UNTYPED_WORD: Final = {**_UNTYPED, "maxLength": 256}
_UNTYPED_VALUE: Final = {**_UNTYPED, "maxLength": MAX_VALUE}

Scalar = Annotated[str | int | float | bool, PlainValidator(_scalar), WithJsonSchema(_UNTYPED_VALUE)]
"""A label or parameter value: text, number or boolean."""

Variable = Annotated[
    str | int | float | tuple[str | int | float | bool, ...],
    PlainValidator(_variable),
    WithJsonSchema({**_UNTYPED_VALUE, "maxItems": MAX_ITEMS}),
]
"""The value of a variable: text, number or list."""

Override = Annotated[
    int | str,
    PlainValidator(_override),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": MAX_VALUE}),
]
"""The value that replaces a variable's, as ``--vars`` gives it."""

Count = Annotated[int | str, PlainValidator(_number(1, 1_000_000)), WithJsonSchema(_number_schema(1, 1_000_000))]
"""How many of something, at least one, or a token."""

CountOrZero = Annotated[int | str, PlainValidator(_number(0, 1_000_000)), WithJsonSchema(_number_schema(0, 1_000_000))]
"""How many of something, or a token."""

Nodes = Annotated[
    int | str,
    PlainValidator(_number(1, 1_000_000, words=("all",))),
    WithJsonSchema(_number_schema(1, 1_000_000, r"^(all|\$\(\w+\))$")),
]
"""How many hosts a worker spans: a count, ``all`` or a token."""

Seconds = Annotated[int | str, PlainValidator(_number(0, 31_536_000)), WithJsonSchema(_number_schema(0, 31_536_000))]
"""A pause of up to a year, or a token."""

Walltime = Annotated[
    int | str,
    PlainValidator(_walltime),
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "minimum": 0, "maximum": MAX_INT, "minLength": 1, "maxLength": 256}
    ),
]
"""A limit in time: seconds, ``[d:]h:m:s`` or a text with tokens."""

Exclusive = Annotated[bool | str | Mapping[str, Any], PlainValidator(_exclusive), WithJsonSchema(_UNTYPED_WORD)]
"""Maestro's ``exclusive``."""

StepPriority = Annotated[str | float, PlainValidator(_step_priority), WithJsonSchema(_UNTYPED_WORD)]
"""Maestro's ``priority`` of a step."""

Flag = Annotated[bool, Field(strict=True)]
Word = Annotated[str, Field(strict=True, min_length=1, max_length=253)]
"""A name, a queue, a bank: one short line."""
Blank = Annotated[str, Field(strict=True, max_length=253)]
"""A `Word` whose empty text means that there is none, as upstream has it."""
BlankLine = Annotated[str, Field(strict=True, max_length=4096)]
"""A `Line` whose empty text means that there is none."""
Version = Annotated[str | float, PlainValidator(_version), WithJsonSchema(_UNTYPED_WORD)]
"""A version, which YAML may have taken for a number."""
Line = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
"""A path, a command's arguments."""
Text = Annotated[str, Field(strict=True, min_length=1, max_length=16_384)]
"""Prose."""
Script = Annotated[str, Field(strict=True, min_length=1, max_length=262_144)]
"""The body of a script; all of a study together have a limit of their own."""
