"""What `dump_quoted` writes: every reader of YAML gets the same values out of it."""

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from merlin_study.loader import load_yaml
from merlin_study.writer import dump_quoted

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Texts that are likely to be misread: words that YAML types, line breaks and blanks in every place, indicators.
awkward = st.lists(
    st.sampled_from(["\n", " ", "\t", "\r", "#", ": ", "- ", "x", "yes", "'", '"', "\\", "|", "é", "\x85"]), max_size=8
)
strings = st.one_of(
    texts, awkward.map("".join), st.sampled_from(["n", "y", "1.0", "010", "10:00:00", "null", "=", "<<", "~", ""])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    strings,
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4), max_leaves=20
)  # fmt: skip


def typed(value: Any) -> Any:
    """The value with every type made visible, since 1, 1.0 and True are equal in Python."""
    match value:
        case dict():
            return {key: typed(item) for key, item in value.items()}
        case list():
            return [typed(item) for item in value]
        case _:
            return type(value).__name__, value


@given(documents)
def test_what_is_written_is_read_back_the_same(document: Any) -> None:
    """Values, types and the order of keys survive our own reader and PyYAML's, and JSON can say the same."""
    written = dump_quoted(document)
    for read in (load_yaml(written, source="x"), yaml.safe_load(written)):
        assert typed(read) == typed(document)
        assert json.dumps(read) == json.dumps(document)


@given(st.dictionaries(strings, strings, min_size=1, max_size=5))
def test_no_key_or_string_is_left_bare(document: dict[str, str]) -> None:
    """A reader never has a reason to guess: every line is quoted, or belongs to a literal block."""
    for event in yaml.parse(dump_quoted(document)):
        if isinstance(event, yaml.ScalarEvent):
            assert event.style in {'"', "|"}


def test_a_script_stays_readable() -> None:
    document = {"run": {"cmd": "set -e\n\tx=1\n\nexit $x\n", "cores per task": 1, "list": [["n"], {"a": "b\nc"}, []]}}
    assert dump_quoted(document) == (
        '"run":\n  "cmd": |\n    set -e\n    \tx=1\n\n    exit $x\n  "cores per task": 1\n  "list":\n'
        '    - - "n"\n    - "a": |-\n        b\n        c\n    - []\n'
    )  # fmt: skip


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"a": math.inf}, ValueError),
        ({"a": math.nan}, ValueError),
        ({"a": "\ud800"}, ValueError),
        ({"k" * 1001: 1}, ValueError),
        ({1: 2}, TypeError),
        ({"a": {1, 2}}, TypeError),
        ({"a": b"x"}, TypeError),
    ],
)
def test_what_json_cannot_say_is_not_written(document: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        dump_quoted(document)
