"""The parameter table by column, from the specification's own block or from a file that travels beside it.

A block in the specification holds what a manifest can carry. A larger table is a file of JSON in the same form,
``{"KEY": {"values": [...], "label": "KEY.%%"}}``, compressed with gzip or not; there, and from a generator, a label may also be
a list with a text for each row.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from merlin_study import checks
from merlin_study.errors import Fault
from merlin_study.scalars import MAX_ITEMS, MAX_VALUE, spell
from merlin_study.spec import StudySpec, TableSource

MAX_TABLE_BYTES: Final = 256 << 20
"""A table that unfolds to more is refused before it fills the memory."""
MAX_ROWS: Final = 10_000_000
MAX_INLINE: Final = 200_000
"""Characters of a table that a manifest carries; kubectl keeps a second copy, and an object ends at 1.5 MiB."""
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Column:
    """One parameter: its values as text, and one label for all (``%%`` becomes the value) or one for each.

    ``name`` is the text of ``$(KEY.name)``; empty for the key.
    """

    values: tuple[str, ...]
    label: str | tuple[str, ...]
    name: str = ""


Table = Mapping[str, Column]


class TableError(ValueError):
    """A file that holds no parameter table; the message says what it holds."""


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[str | int | float | bool, ...] = Field(max_length=MAX_ROWS)
    label: str | tuple[str, ...]
    name: str = ""


_WRITTEN: Final[TypeAdapter[dict[str, _Written]]] = TypeAdapter(dict[str, _Written])


def of_spec(spec: StudySpec) -> Table:
    """Return the table that stands in a specification."""
    return {
        key: Column(tuple(map(spell, parameter.values)), parameter.label, parameter.name or "")
        for key, parameter in spec.global_parameters.items()
    }


def too_large(block: Any) -> Table | None:
    """Return the table of a block ``global.parameters`` as YAML has it where no manifest could carry it.

    None where one could, and where the block is malformed, which whoever parses the specification says.
    """
    try:
        written = _WRITTEN.validate_python(block)
    except ValidationError:
        return None
    if not all(isinstance(each.label, str) for each in written.values()):
        return None
    table = _spelled(written)
    return None if fits_manifest(table) else table


def faults(table: Table, path: str) -> list[Fault]:
    """Find what is wrong with a table that no specification's reader has seen: names, lengths, labels."""
    found = [fault for key in table if (fault := checks.token_name_fault(key, f"{path}.{key}"))]
    found += checks.parameter_faults({key: len(column.values) for key, column in table.items()}, path)
    for key, column in table.items():
        if isinstance(column.label, tuple) and len(column.label) != len(column.values):
            message = f"expected {len(column.values)} labels, one for each value, found {len(column.label)}"
            found.append(Fault(f"{path}.{key}.label", message))
        long = next((at for at, value in enumerate(column.values) if len(value) > MAX_VALUE), None)
        if long is not None:
            message = (
                f"expected at most {MAX_VALUE} characters, found {len(column.values[long])}; put long text into a file"
            )
            found.append(Fault(f"{path}.{key}.values[{long}]", message))
    return found


def fits_manifest(table: Table) -> bool:
    """Whether the block ``global.parameters`` of a manifest can hold the table as it is."""
    size = sum(len(value) + 4 for column in table.values() for value in column.values)
    plain = all(isinstance(column.label, str) and len(column.values) <= MAX_ITEMS for column in table.values())
    return plain and size <= MAX_INLINE


def block(table: Table) -> dict[str, Any]:
    """Return the table as plain data, in the form of ``global.parameters``."""
    return {
        key: {
            "values": list(column.values),
            "label": column.label if isinstance(column.label, str) else [*column.label],
            **({"name": column.name} if column.name else {}),
        }
        for key, column in table.items()
    }


def encode(table: Table) -> bytes:
    """Return the table's file; equal tables give equal bytes."""
    text = json.dumps(block(table), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), 6, mtime=0)


def decode(data: bytes) -> Table:
    """Read what `encode` wrote, or the same without compression.

    Raises:
        TableError: it is no table.
    """
    try:
        written = _WRITTEN.validate_json(_unfolded(data))
    except zlib.error as error:
        raise TableError(f"is cut short, damaged or larger than {MAX_TABLE_BYTES} bytes ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = f'expected JSON {{"KEY": {{"values": [...], "label": "KEY.%%"}}}}, found at {where or "its start"}: {first["msg"]}'
        raise TableError(message) from error
    return _spelled(written)


def inline(table: Table) -> dict[str, str]:
    """Return ``parametersFrom`` with the table's file in it."""
    data = encode(table)
    return {"data": base64.b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest()}


def of_inline(source: TableSource) -> Table:
    """Read what `inline` wrote.

    Raises:
        TableError: it is no table, or damaged.
    """
    try:
        data = base64.b64decode(source.data or "", validate=True)
    except ValueError as error:
        raise TableError(f"expected base64, found other text ({error})") from error
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise TableError("expected content with the SHA-256 that sha256 says, found other content")
    return decode(data)


def _spelled(written: Mapping[str, _Written]) -> Table:
    return {key: Column(tuple(map(spell, each.values)), each.label, each.name) for key, each in written.items()}


def _unfolded(data: bytes) -> bytes:
    if data[:2] != _GZIP:
        return data
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    text = inflater.decompress(data, MAX_TABLE_BYTES)
    if inflater.unconsumed_tail or not inflater.eof:
        raise zlib.error("the end is missing")
    return text
