"""Scripts that differ in numbers only are checked once: the verdict is that on each of them."""

import itertools

import pytest

from merlin_agent.alike import alike
from merlin_agent.warmth import may_run
from merlin_study.template import Template

NUMBERS = ("0", "3", "7", "08", "19", "0.5", "-3", "-0.25", "1e-05", "-2.5e+10", "00/07")
BEFORE = (
    "", "echo ", "x=", "./run --x=", "out_", "set ", "set -", "export ", "declare ", "return", "return ", "trap", "e", "$", "${", "${x:",
    "$x", "$_", "a[", "a[1", "BASH_SOURCE[", "[[ ", "$((", "%(", "echo '", "/proc/", ".", " . ", "-", "--", "%", "kill -", "kill -s ", "kill %", "exit ", "exit 1 ", "[0", "`", "#", "PPID", "U",
)  # fmt: skip
AFTER = (
    "",
    " ",
    "m",
    "x",
    "]",
    "]=3",
    "}",
    "))",
    ")T",
    "_",
    "return",
    "trap",
    " trap",
    "UID",
    ":",
    " . ",
    "e",
    "'",
    ";",
    "&",
    "\n. lib",
    "]]",
)


def texts(template: str, *values: str) -> str:
    """The template with values in the places of its tokens."""
    found = iter(values)
    return Template.parse(template).render(lambda _: next(found))


def test_a_number_never_changes_the_verdict() -> None:
    """Wherever it stands, as long as it is said not to."""
    covered = 0
    for before, after in itertools.product(BEFORE, AFTER):
        stands = alike(Template.parse(f"{before}$(A){after}").pieces)
        for value in NUMBERS if stands is not None else ():
            if stands is not None and stands.covers([value]):
                covered += 1
                for names in (True, False):
                    assert may_run(before + value + after, names=names) == may_run(stands.text, names=names), (
                        before,
                        value,
                        after,
                    )
    assert covered > len(BEFORE) * len(AFTER)


@pytest.mark.parametrize("value", ["", "a", "1 2", "trap", "$x", "1;", "e5", "5e", ".5", "+1", "1\n", "٣"])
def test_what_is_no_number_is_checked_by_itself(value: str) -> None:
    """It could be anything."""
    stands = alike(Template.parse("echo $(A)").pieces)
    assert stands is not None
    assert not stands.covers([value])


def test_two_numbers_side_by_side_are_numbers() -> None:
    """Each stands behind the other."""
    stands = alike(Template.parse("./run $(A)$(B) --y=$(C)").pieces)
    assert stands is not None
    assert (stands.text, stands.signed) == ("./run 00 --y=0", False)
    assert texts("./run $(A)$(B) --y=$(C)", "1", "2", "3") == "./run 12 --y=3"
