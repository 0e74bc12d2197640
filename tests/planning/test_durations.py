"""Walltimes in every spelling that users of Merlin, Maestro and Slurm have."""

from __future__ import annotations

import pytest

from merlin_study.duration import seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (36000, 36000),
        ("5400", 5400),
        ("90m", 5400),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("30:00", 1800),
        ("00:30:00", 1800),
        ("1:00:00", 3600),
        ("01:00:00", 3600),
        ("10:00:00", 36_000),
        ("720:00:00", 2_592_000),
        ("1:02:03:04", 93_784),
        ("1-02:03:04", 93_784),
        ("00:00:10", 10),
    ],
)
def test_equal_times_are_equal_however_they_are_written(text: int | str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "1:2:3:4:5", "1:", "5x", "1-2"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected seconds"):
        seconds(text)
