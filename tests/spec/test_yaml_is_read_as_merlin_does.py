"""What `load_yaml` makes of a text, what it refuses, and where it says the fault is."""

import itertools
from typing import Any

import pytest

from merlin_study.errors import SpecError
from merlin_study.loader import MAX_BYTES, load_yaml


def load(text: str | bytes) -> Any:
    return load_yaml(text, source="f.yaml")


def refusal(text: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        load(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("10:00:00", 36000),
        ("00:30:00", "00:30:00"),
        ("1:30.5", 90.5),
        ("yes", True),
        ("Off", False),
        ("n", "n"),
        ("010", 8),
        ("08", "08"),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e309", "1e309"),
        (".75", 0.75),
        ("~", None),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("=", "="),
        ("<INSERT>", "<INSERT>"),
    ],
)
def test_scalars_are_typed_by_yaml_1_1_and_dates_stay_text(scalar: str, value: object) -> None:
    """Upstream's loader decides the type, except that dates keep the text that upstream would substitute."""
    found = load(f"a: {scalar}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_anchors_and_merge_keys_are_unfolded_and_own_keys_win() -> None:
    text = "base: &base\n  cmd: a\n  shell: b\nrun:\n  <<: *base\n  cmd: c\n"
    assert load(text)["run"] == {"cmd": "c", "shell": "b"}


def test_a_byte_order_mark_and_crlf_are_tolerated() -> None:
    text = "a: |\r\n  x\r\n  y\r\n"
    assert load("\ufeff" + text) == load(("\ufeff" + text).encode()) == {"a": "x\ny\n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: the key 'a' stands twice, first in line 1; remove one"),
        ("x: {c: 1, c: 2}", "f.yaml:1:11: the key 'c' stands twice, first in line 1; remove one"),
        ("a:\n\tb: 1", "f.yaml:2:1: a tab cannot indent in YAML; use spaces"),
        ("a: b: c", "f.yaml:1:5: ': ' starts a value where none is expected; quote the text, or check the indentation"),
        ("a: &x [*x]", "f.yaml:1:8: the alias *x holds itself; write the value out"),
        ("a: *x", "f.yaml:1:4: found undefined alias 'x'; write the anchor (&name) before it, or quote the text if the '*' is meant"),
        ("a: [1, 2", "f.yaml:1:9: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; check quotes, brackets and indentation before this place"),
        ("a: 0b_", "f.yaml:1:4: '0b_' is no number that can be read; quote it"),
        ("a: " + "9" * 5000, f"f.yaml:1:4: '{'9' * 40}' is no number that can be read; quote it"),
        ("[1]: 2", "f.yaml:1:1: expected a string as key, found a list or mapping; quote it if the text is meant"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: expected one document, found a second one after '---'; give each study a file of its own"),
        ("a: \x00", "f.yaml:1:4: the character U+0000 is not allowed in YAML; remove it"),
        (b"a: 1\nb: \xff", "f.yaml:2: expected UTF-8, found the byte 0xFF; save the file as UTF-8"),
        ("", "f.yaml: is empty; expected a study"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_line_and_column(text: str | bytes, message: str) -> None:
    assert refusal(text) == message


def test_every_duplicate_is_named_at_once() -> None:
    assert [line.split(": ")[0] for line in refusal("a: 1\na: 2\nb: {c: 1, c: 2}").splitlines()] == [
        "f.yaml:2:1",
        "f.yaml:3:11",
    ]


@pytest.mark.parametrize(
    "tagged",
    ["!!python/object:os.system {}", "!!python/object/apply:os.system [ls]", "!!binary YQ==", "!!set {a}", "!!timestamp 2024-01-31", "!own x"],
)  # fmt: skip
def test_no_tag_builds_anything_but_plain_data(tagged: str) -> None:
    assert "is not allowed; write a plain string, number, list or mapping" in refusal(f"a: {tagged}")


def test_a_bomb_of_aliases_is_refused_before_it_unfolds() -> None:
    """Nine levels of ten aliases would be 10⁹ values; the count is made while composing, so nothing is built."""
    names = "abcdefghij"
    text = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
    for parent, child in itertools.pairwise(names):
        text += f"{child}: &{child} [{', '.join([f'*{parent}'] * 10)}]\n"
    assert "expected at most 1000000 values once aliases are unfolded, found more" in refusal(text)


def test_a_bomb_of_merges_is_refused() -> None:
    entries = ", ".join(f"k{i}: 0" for i in range(1200))
    text = f"a: &a {{{entries}}}\nb:\n  <<: [{', '.join(['*a'] * 1000)}]\n"
    assert "expected at most 1000000 values once aliases are unfolded, found more" in refusal(text)


@pytest.mark.parametrize("text", ["[" * 65 + "]" * 65, "[" * 200_000, "a: " + "{a: " * 70])
def test_deep_nesting_is_refused(text: str) -> None:
    assert "expected at most 64 lists and mappings within each other, found more" in refusal(text)


def test_nesting_is_counted_through_aliases() -> None:
    text = "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40
    assert "expected at most 64 lists and mappings within each other, found more" in refusal(text)
    assert load("[" * 64 + "]" * 64)


def test_a_text_of_more_than_4_mib_is_refused_unread() -> None:
    assert refusal(b"a" * (MAX_BYTES + 1)).startswith("f.yaml: expected at most 4194304 bytes, found 4194305;")
