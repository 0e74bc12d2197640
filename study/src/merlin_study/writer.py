"""A study back as text: plain data, and YAML that kubectl reads as we do.

Kubectl types scalars by other rules (``y`` is a boolean, ``1.0`` becomes 1), so `dump_quoted` quotes every key and
every string, and leaves nothing for a reader to guess. Why not PyYAML's dumper: it quotes only what PyYAML would misread.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from merlin_study.scalars import spell
from merlin_study.spec import StudySpec

MAX_KEY: Final = 1000
"""Characters of a written key: YAML gives up on longer ones."""


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


def dump_quoted(document: Any) -> str:
    """Write plain data so that any reader of YAML, kubectl's included, reads exactly that.

    Args:
        document: Dicts with string keys, lists, tuples, str, bool, None, int and finite float.

    Returns:
        Text that ends in a line break: keys and strings in double quotes, scripts as literal blocks.

    Raises:
        TypeError: At a key or value of another type.
        ValueError: At a number or text that JSON has no way to write, or a key of more than about 1,000 characters.
    """
    lines = _write(document, "")
    return "\n".join(lines) + "\n"


def _write(value: Any, indent: str) -> Iterator[str]:
    """The lines of a value that stands on lines of its own."""
    match value:
        case Mapping() if value:
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"expected a string as key, found {key!r}")
                written = _quote(key)
                if len(written) > MAX_KEY:
                    raise ValueError(f"the key {written[:40]}... is longer than {MAX_KEY} characters")
                yield from _attach(f"{indent}{written}:", item, indent)
        case list() | tuple() if value:
            for item in value:
                yield from _attach(f"{indent}-", item, indent)
        case _:
            yield from _attach("", value, indent)


def _attach(before: str, value: Any, indent: str) -> Iterator[str]:
    """The lines of a value that follows a key or a dash."""
    inner = indent + "  "
    space = " " if before else ""
    match value:
        case Mapping() | list() | tuple() if value:
            if before.endswith("-"):
                lines = _write(value, inner)
                yield f"{before} {next(lines)[len(inner) :]}"
                yield from lines
            else:
                yield before
                yield from _write(value, inner)
        case str() if before and _is_block(value):
            body = value.rstrip("\n")
            ends = len(value) - len(body)
            yield f"{before} |{'-' if ends == 0 else '' if ends == 1 else '+'}"
            yield from (f"{inner}{line}" if line else "" for line in body.split("\n"))
            yield from [""] * (ends - 1)
        case _:
            yield f"{before}{space}{_flow(value)}"


_BLOCK: Final = re.compile(
    r"(?![ \t])[\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff\n]+"
)


def _is_block(text: str) -> bool:
    """Whether a literal block holds the text unchanged: printable, several lines, and a first line that shows the indent.

    Lines of blanks only are excluded, since readers disagree about them.
    """
    first, _, rest = text.partition("\n")
    if not rest and not text.endswith("\n"):
        return False
    return bool(first) and _BLOCK.fullmatch(text) is not None and not re.search(r"^[ \t]+$", text, re.MULTILINE)


def _flow(value: Any) -> str:
    """A scalar, or an empty list or mapping, on one line."""
    match value:
        case str():
            return _quote(value)
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int():
            return str(value)
        case float():
            return _number(value)
        case Mapping() | list() | tuple():
            return "{}" if isinstance(value, Mapping) else "[]"
        case _:
            raise TypeError(f"expected plain data, found {type(value).__name__}")


def _number(value: float) -> str:
    """A float as both JSON and YAML 1.1 read it, which wants a point before an exponent."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    mantissa, exponent, power = repr(value).partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else repr(value)


_ESCAPED: Final = re.compile(r'["\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]')
_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _quote(text: str) -> str:
    """A string in double quotes, escaped by what JSON and YAML have in common."""

    def escape(match: re.Match[str]) -> str:
        found = match[0]
        if "\ud800" <= found <= "\udfff":
            raise ValueError(f"expected characters, found half of a surrogate pair in {text[:40]!r}")
        return _SHORT.get(found, f"\\u{ord(found):04x}")

    return f'"{_ESCAPED.sub(escape, text)}"'
