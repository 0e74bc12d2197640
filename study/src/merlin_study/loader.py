"""YAML as Merlin reads it, safely.

Upstream loads specs with PyYAML's full loader, that is YAML 1.1: ``10:00:00`` is the integer 36000, ``yes`` a
boolean, ``010`` eight, ``<<`` merges. A YAML 1.2 parser would break files that run today. `load_yaml` types scalars in
that way, but builds only mappings, lists, strings, numbers, booleans and null, whatever tags the text asks for, and refuses
what a text of an unknown author can do: duplicate keys, aliases that unfold to millions of nodes, nesting without end.
Dates stay text, since upstream substitutes the text of a date anyway.
"""

from collections.abc import Hashable
from typing import Any, Final, NoReturn

import yaml

from merlin_study.errors import Fault, SpecError

MAX_BYTES: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_NODES: Final = 1_000_000
"""Nodes of the whole document, each alias counted as a copy of what it names."""

_PREFIX: Final = "tag:yaml.org,2002:"
_KNOWN: Final = tuple(_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


def load_yaml(text: str | bytes, *, source: str) -> Any:
    """Read one YAML document.

    Args:
        text: At most 4 MiB; bytes are UTF-8; a byte-order mark and CRLF line ends are fine.
        source: What the text is called in messages, a file's name for instance.

    Returns:
        Dicts (in the order of the text), lists, str, int, float, bool and None. Keys may be any of the scalars. Aliases
        share one object, so the result must not be changed.

    Raises:
        SpecError: With a path ``source:line:column``, counted from 1, for whatever is no YAML or is refused.
    """
    decoded = _decode(text, source)
    if not decoded.strip():
        raise SpecError([Fault(source, "is empty; expected a study")])
    try:
        loader = _Loader(decoded, source)
        document = loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        column = error.position - decoded.rfind("\n", 0, error.position)
        message = f"the character U+{ord(decoded[error.position]):04X} is not allowed in YAML; remove it"
        raise SpecError([Fault(f"{source}:{line}:{column}", message)]) from error
    except yaml.MarkedYAMLError as error:
        raise SpecError([_said_again(error, source)]) from error
    if loader.faults:
        raise SpecError(loader.faults)
    return document


def _decode(text: str | bytes, source: str) -> str:
    """Bound the size, and turn bytes into text."""
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        message = (
            f"expected at most {MAX_BYTES} bytes, found {size}; put samples and long scripts into files of their own"
        )
        raise SpecError([Fault(source, message)])
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            message = f"expected UTF-8, found the byte 0x{error.object[error.start]:02X}; save the file as UTF-8"
            raise SpecError([Fault(f"{source}:{line}", message)]) from error
    return text.removeprefix("\ufeff")


def _said_again(error: yaml.MarkedYAMLError, source: str) -> Fault:
    """One of PyYAML's errors as a fault; our own messages pass as they are."""
    mark = error.problem_mark or error.context_mark
    path = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = error.problem or "is no YAML"
    if "'\\t'" in problem:
        problem = "a tab cannot indent in YAML; use spaces"
    elif "mapping values are not allowed" in problem:
        problem = "': ' starts a value where none is expected; quote the text, or check the indentation"
    elif isinstance(error, yaml.composer.ComposerError) and "but found another document" in problem:
        problem = "expected one document, found a second one after '---'; give each study a file of its own"
    elif isinstance(error, yaml.composer.ComposerError) and "undefined alias" in problem:
        problem = f"{problem}; write the anchor (&name) before it, or quote the text if the '*' is meant"
    elif not isinstance(error, yaml.constructor.ConstructorError):
        context = f"{error.context}, " if error.context else ""
        problem = f"{context}{problem}; check quotes, brackets and indentation before this place"
    return Fault(path, problem)


class _Loader(yaml.SafeLoader):
    """The safe loader without dates and other foreign types, with limits, and strict about keys."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.faults: list[Fault] = []
        self._source = source
        self._depth = 0
        self._nodes = 0
        # Per finished anchor: nodes and height when unfolded. An anchor that is not here yet is being composed.
        self._sizes: dict[str, tuple[int, int]] = {}
        self._height = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count while composing, before anything is built or unfolded."""
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call] # the stubs leave it untyped
        if isinstance(event, yaml.AliasEvent):
            nodes, height = self._sizes.get(event.anchor or "", (0, 0))
            if event.anchor in self.anchors and not nodes:
                _refuse(event.start_mark, f"the alias *{event.anchor} holds itself; write the value out")
            self._count(event.start_mark, nodes, height)
            return super().compose_node(parent, index)
        before, above = self._nodes, self._height
        self._count(event.start_mark, 1, 0)
        self._depth += 1
        self._height = self._depth
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before, self._height - self._depth
        self._height = max(above, self._height)
        return node

    def _count(self, mark: Any, nodes: int, height: int) -> None:
        """Add what comes next to what there is, and refuse too much."""
        self._nodes += nodes
        self._height = max(self._height, self._depth + height)
        if self._nodes > MAX_NODES:
            _refuse(
                mark,
                f"expected at most {MAX_NODES} values once aliases are unfolded, found more; write fewer aliases or move data into files",
            )
        if max(self._height, self._depth + 1) > MAX_DEPTH:
            _refuse(
                mark, f"expected at most {MAX_DEPTH} lists and mappings within each other, found more; write it flatter"
            )

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 PyYAML's signature
        """Turn Python's complaints about numbers into errors that name a place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:40]!r} is no number that can be read; quote it", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 as above
        """Refuse a key that stands twice; one that overrides a merged key is fine."""
        assert isinstance(node, yaml.MappingNode)  # construct_yaml_map is its only caller
        self._check_keys(node)
        return super().construct_mapping(node, deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Note duplicates; called before merge keys are unfolded."""
        lines: dict[tuple[type, Hashable], int] = {}
        for key_node, _value in node.value:
            if key_node.tag == f"{_PREFIX}merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(
                    key_node.start_mark,
                    "expected a string as key, found a list or mapping; quote it if the text is meant",
                )
            key = self.construct_object(key_node)
            typed = type(key), key  # 1 and true are equal in Python
            line = key_node.start_mark.line + 1
            if typed in lines:
                place = f"{self._source}:{line}:{key_node.start_mark.column + 1}"
                self.faults.append(
                    Fault(place, f"the key '{key}' stands twice, first in line {lines[typed]}; remove one")
                )
            else:
                lines[typed] = line


def _refuse(mark: Any, message: str) -> NoReturn:
    """Stop reading, at a place."""
    raise yaml.constructor.ConstructorError(None, None, message, mark)


def _undefined(_loader: _Loader, node: yaml.Node) -> NoReturn:
    """Refuse every tag that is not one of YAML's plain types."""
    shown = node.tag.replace(_PREFIX, "!!")
    _refuse(node.start_mark, f"the tag {shown} is not allowed; write a plain string, number, list or mapping")


# The tables are class attributes that PyYAML shares with SafeLoader; these are copies without the foreign types.
_Loader.yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _KNOWN}
_Loader.add_constructor(None, _undefined)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in {*_KNOWN, f"{_PREFIX}merge"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
