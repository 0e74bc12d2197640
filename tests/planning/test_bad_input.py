"""What cannot run is refused with place, finding and cure, and `docs/refusals.md` shows each such message."""

from __future__ import annotations

from pathlib import Path

import pytest

from merlin_agent.rows import RowError, open_rows
from merlin_agent.sampling import measure
from merlin_study.compiler import compile_study
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.loader import load_yaml
from merlin_study.parse import parse_spec
from merlin_study.plan import Plan
from merlin_study.workspace import Layout, TaskTokens
from tests.folding.studies import STAMP, plan_of
from tests.planning.bad_input import SAMPLES, SPECS

DOCS = (Path(__file__).parents[2] / "docs" / "refusals.md").read_text()


def _documented(fault: str) -> str | None:
    """The message that the page shows in the row of a fault."""
    rows = [line.split(" | ", 1) for line in DOCS.splitlines() if line.startswith("| ")]
    shown = {name.removeprefix("| "): text.removesuffix(" |") for name, text in rows}
    return shown.get(fault, "").strip("`").strip().replace("\\|", "|") or None


def _compiled(text: str) -> Plan:
    spec, _ = parse_spec(load_yaml(text, source="study.yaml"))
    return compile_study(spec, stamp=STAMP)


def _first_row(path: str) -> tuple[str, ...]:
    measure(path, 2)
    return open_rows(path).row(0)


@pytest.mark.parametrize("fault", SPECS)
def test_a_specification_that_cannot_run_is_refused_as_the_page_says(fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        _compiled(SPECS[fault])
    assert [str(each) for each in caught.value.faults] == [_documented(fault)]


@pytest.mark.parametrize("fault", SAMPLES)
def test_a_table_of_samples_that_cannot_be_read_is_refused_as_the_page_says(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = SAMPLES[fault]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(RowError) as caught:
        _first_row(name)
    assert str(caught.value) == _documented(fault)


def test_a_byte_order_mark_other_line_ends_and_numbers_that_are_none_are_no_faults(tmp_path: Path) -> None:
    """Values are text, and what is substituted is what stands in the file."""
    table = tmp_path / "s.csv"
    table.write_bytes(b"\xef\xbb\xbf1,nan\r\n1e309,08\r\n")
    assert (measure(str(table), 2).count, measure(str(table), 2).columns) == (2, 2)
    assert [open_rows(str(table)).row(at) for at in range(2)] == [("1", "nan"), ("1e309", "08")]


def test_one_sample_and_a_hundred_million_are_the_same_plan() -> None:
    """The number of samples is no part of it, so neither costs more than the other."""
    plan = plan_of(
        SPECS["samples of an unknown kind"].replace("s.txt", "s.csv, column_labels: [S]").replace("cmd: x", "cmd: $(S)")
    )
    assert [Geometry(plan, count).total(1) for count in (1, 10**8)] == [1, 10**8]
    assert Layout("/w", Geometry(plan, 1)).task_dir(1, 0) == "/w/a"


@pytest.mark.parametrize(
    "text",
    [
        "$( $$ $$(x) $(a b) $((1+2)) `ls` ${X} $1 \\$(y)",
        "a'b\"c;d|e&f>g\\h",
        "tab\there, and a line\nbreak",
        "$(touch /tmp/owned)",
    ],
)
def test_values_are_put_in_as_they_are_and_never_read_again(text: str) -> None:
    """No quoting, no second look: the script is the user's, and so is what stands in it."""
    spec, _ = parse_spec(
        {
            "description": {"name": "n", "description": "d"},
            "env": {"variables": {"V": text}},
            "global.parameters": {"P": {"values": [text], "label": "P"}},
            "study": [{"name": "a", "description": "d", "run": {"cmd": "$(V) / $(P) / $(S)"}}],
            "merlin": {"samples": {"file": "s.csv", "column_labels": ["S"]}},
        }
    )
    plan = compile_study(spec, stamp=STAMP)
    tokens = TaskTokens(Layout("/w", Geometry(plan, 1)), 1)
    assert tokens.render(tokens.cmd, combination=0, sample=0, values=(text,)) == f"{text} / {text} / {text}"
