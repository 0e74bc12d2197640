"""What the language has and this version does not: one table, from which lines go as things are built.

A key that is not built yet is refused, never ignored: a study that asks for something and runs without it wastes an
allocation. A value that asks for nothing (``dry_run: false``) is no reason to refuse.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from merlin_study.errors import NOT_YET_SUPPORTED, Fault
from merlin_study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Missing:
    """A key that is not built yet, or not for each of its values.

    Attributes:
        key: Where it stands below ``spec``; ``[]`` after a list stands for each of its entries.
        harmless: Whether a value asks for nothing that is missing; given what the author wrote, never null.
        cure: What to do instead.
    """

    key: tuple[str, ...]
    harmless: Callable[[Any], bool]
    cure: str = "remove it"


def _is(*values: Any) -> Callable[[Any], bool]:
    """Exactly one of these values is harmless."""
    return lambda value: value in values


TABLE: Final = (Missing(("batch", "dry_run"), _is(False)),)
"""Every key that is not built yet."""


def not_yet(spec: StudySpec) -> list[Fault]:
    """Find everything in a study that is not built yet.

    Args:
        spec: The study as written.

    Returns:
        Faults with reason ``NotYetSupported``, in the order of the table, then of the text.
    """
    document = spec.model_dump(by_alias=True, exclude_unset=True)
    return [
        _fault(path, _shown(value), entry.cure)
        for entry in TABLE
        for path, value in _find(document, entry.key, "spec")
        if value is not None and not entry.harmless(value)
    ]


def _fault(path: str, what: str, cure: str) -> Fault:
    """Every message of this table."""
    return Fault(path, f"{what} is not supported yet; {cure}".lstrip(), NOT_YET_SUPPORTED)


def _shown(value: Any) -> str:
    """A value where it is a short one, since often another value of the key would be fine."""
    match value:
        case bool():
            return str(value).lower()
        case str() | int() | float():
            return repr(value) if len(str(value)) <= 40 else ""
        case _:
            return ""


def _find(value: Any, key: tuple[str, ...], path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of every place that a key of the table names."""
    if not key:
        yield path, value
    elif key[0] == "[]":
        for index, item in enumerate(value):
            yield from _find(item, key[1:], f"{path}[{index}]")
    elif isinstance(value, Mapping) and key[0] in value:
        yield from _find(value[key[0]], key[1:], f"{path}.{key[0]}")
