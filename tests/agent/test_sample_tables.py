"""Rows of sample files are read as upstream reads them, with NumPy as the oracle."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_agent import rowindex, sampling
from merlin_agent.chunkrun import ChunkRun
from merlin_agent.execute import StepWork
from merlin_agent.rows import STRIDE, RowError, open_rows
from merlin_agent.slot import Slot
from merlin_study.geometry import Geometry
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk
from merlin_study.workspace import Layout
from tests.folding.studies import plan_of


def rows_of(path: Path) -> list[tuple[str, ...]]:
    """All rows, each by its number."""
    table = open_rows(str(path))
    return [table.row(number) for number in range(table.count)]


def written(path: Path, text: bytes) -> Path:
    """The file."""
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("csv", "1,2\n3,4\n"),
        ("csv", "1,2\n3,4"),
        ("csv", "a, b ,c\n1, 2 ,3\n"),
        ("csv", "# head\n1,2 # why\n\n3,4\n#\n"),
        ("csv", "1,\n,2\n"),
        ("csv", "1,2,\n3,4,\n"),
        ("csv", '"a,b",c\n'),
        ("csv", "one\ntwo\n"),
        ("csv", "1,2\r\n3,4\r\n"),
        ("csv", "é,ü\n"),
        ("tab", "1 2\t 3\n  4\t5   6  \n"),
        ("tab", "# head\na,b c\n\n\nd e # f\n"),
        ("tab", "nan inf\r\n1e-5 0x1\r\n"),
    ],
)
@pytest.mark.filterwarnings("ignore:Input line")
def test_text_is_split_as_loadtxt_does(tmp_path: Path, ending: str, text: str) -> None:
    """Blanks beside commas stay, comments and empty lines go."""
    expected = np.loadtxt(io.StringIO(text), delimiter="," if ending == "csv" else None, ndmin=2, dtype=str)
    assert rows_of(written(tmp_path / f"s.{ending}", text.encode())) == [tuple(map(str, row)) for row in expected]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    """Spreadsheets write it; it is no part of the first value."""
    assert rows_of(written(tmp_path / "s.csv", b"\xef\xbb\xbf1,2\r\n3,4\r\n")) == [("1", "2"), ("3", "4")]


def test_any_row_of_a_long_table_is_found(tmp_path: Path) -> None:
    """Comments and empty lines between the kept places don't disturb."""
    count = 5 * STRIDE + 3
    text = "".join(f"{n},{n * n}\n" + "# c\n\n" * (n % 3) for n in range(count))
    table = open_rows(str(written(tmp_path / "s.csv", text.encode())))
    assert (table.count, table.columns) == (count, 2)
    assert [table.row(n) for n in (0, STRIDE - 1, STRIDE, STRIDE + 1, count - 1)] == [
        (str(n), str(n * n)) for n in (0, STRIDE - 1, STRIDE, STRIDE + 1, count - 1)
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("s.csv", b"1,2\n\n# c\n3\n", r"s.csv:4: expected 2 columns as in line 1, found 1; give every line the same"),
        ("s.tab", b"# c\n1\n2 3\n", r"s.tab:3: expected 1 columns as in line 2, found 2"),
        ("s.csv", b"1\r2\r", r"s.csv:1: expected lines that end in \\n or \\r\\n, found a bare \\r"),
        ("s.csv", b"a\n\xff\n", r"s.csv:2: expected UTF-8, found byte 0xff"),
        ("s.txt", b"", r"expected a sample file that ends in .csv, .tab or .npy, found '.txt'"),
        ("s", b"", r"found 'no ending'"),
        ("s.npy", b"1,2\n", r"s.npy: expected a file that numpy.save wrote"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: bytes, says: str) -> None:
    """Path, line, expected, found, cure."""
    with pytest.raises(RowError, match=says):
        rows_of(written(tmp_path / name, text))


def test_a_missing_file_and_a_missing_row_are_errors(tmp_path: Path) -> None:
    """Neither is an exception of another kind."""
    with pytest.raises(RowError, match=r"none\.csv: can't be read: No such file"):
        open_rows(str(tmp_path / "none.csv"))
    empty = open_rows(str(written(tmp_path / "s.csv", b"")))
    assert empty.count == 0
    with pytest.raises(RowError, match="expected a row 0, found 0 rows"):
        empty.row(0)


def test_a_table_is_walked_once_and_others_read_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index that the first step keeps is that of this table, or it is not used."""
    monkeypatch.setattr(sampling, "KEEP_FROM", 0)
    table, kept = (
        written(tmp_path / "s.csv", b"".join(b"%d,%d\n" % (n, n * n) for n in range(500))),
        str(tmp_path / "i"),
    )
    assert sampling.measure(str(table), 2, index=kept).count == 500
    with_index = open_rows(str(table), kept)
    assert [with_index.row(n) for n in (0, 63, 64, 499)] == [open_rows(str(table)).row(n) for n in (0, 63, 64, 499)]
    known = rowindex.load(kept, str(table))
    assert known is not None
    assert (known.count, known.columns) == (500, 2)
    whole = Path(kept).read_bytes()
    for damaged in (whole[:-1], whole[:-8] + b"x" * 8, whole[:3], b"[]\n", b""):
        Path(kept).write_bytes(damaged)
        assert rowindex.load(kept, str(table)) is None
        assert open_rows(str(table), kept).count == 500
    Path(kept).write_bytes(whole)
    written(table, b"1,2\n" * 3)
    assert (rowindex.load(kept, str(table)), open_rows(str(table), kept).count) == (None, 3)


def saved(path: Path, array: Any) -> Path:
    """The array's file."""
    np.save(path, array)
    return path


def as_upstream(array: Any) -> list[tuple[str, ...]]:
    """What upstream makes of an array."""
    table = array.reshape(-1, 1) if array.ndim == 1 else array
    return [tuple(str(value) for value in row) for row in table]


_random = np.random.default_rng(7)
_bits = _random.bytes(64_000)
ARRAYS: dict[str, Any] = {
    "f8": np.frombuffer(_bits, np.float64),
    "f8 usual": _random.random((500, 3)),
    "f4": np.frombuffer(_bits, np.float32),
    "f4 usual": (_random.random(3000) * 10.0 ** _random.integers(-8, 18, 3000)).astype(np.float32),
    "f4 powers": np.array([2.0**k for k in range(-149, 128)], dtype=np.float32),
    "f2 all": np.arange(65536, dtype=np.uint16).view(np.float16),
    "c16": np.frombuffer(_bits, np.complex128),
    "c8": np.frombuffer(_bits, np.complex64),
    "c16 odd": np.array([1 + 2j, 0, 3j, -0.0 + 1j, 1e20 + 1e-7j, complex("nanj"), complex("-inf"), -1 - 1j]),
    "i1": np.frombuffer(_bits, np.int8).reshape(-1, 4),
    "u8": np.frombuffer(_bits, np.uint64),
    "bool": np.array([[True, False], [False, True]]),
    "text": np.array(["a", "bcd ", "", "é\U0001f600"]),
    "bytes": np.array([b"a", b"b\0c", b"'"]),
    "big-endian": np.arange(12).reshape(3, 4).astype(">i4"),
    "big-endian text": np.array(["ab", "c"]).astype(">U2"),
    "by column": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_written_as_numpys_str_does(tmp_path: Path, name: str) -> None:
    """Every type of number and text, with the fewest digits that read back."""
    array = ARRAYS[name]
    path = saved(tmp_path / "s.npy", array)
    assert open_rows(str(path)).columns == (1 if array.ndim == 1 else array.shape[1])
    assert rows_of(path) == as_upstream(array)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(max_examples=100)
def test_any_narrow_float_is_written_as_numpy_does(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    """Found by search, not by choice."""
    array = np.array(values, dtype=np.float32)
    path = tmp_path_factory.getbasetemp() / "narrow.npy"
    path.unlink(missing_ok=True)
    assert rows_of(saved(path, array)) == as_upstream(array)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([{"a": 1}], dtype=object), "found pickled objects, which run code when they are read"),
        (np.zeros((2, 2, 2)), r"expected an array of one or two dimensions, found shape \(2, 2, 2\)"),
        (np.float64(3), r"found shape \(\)"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "expected plain numbers or text"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), r"found the type '<M8\[D\]'; convert it, with astype\(str\)"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any, says: str) -> None:
    """Objects above all: reading them would run what the file says."""
    with pytest.raises(RowError, match=says):
        open_rows(str(saved(tmp_path / "s.npy", array)))


def test_an_array_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """Rather than read beyond its end."""
    path = saved(tmp_path / "s.npy", np.arange(100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RowError, match="it was cut short, write it again"):
        open_rows(str(path))


@pytest.mark.parametrize(("rows", "ends"), [(3, Outcome.SUCCEEDED), (4, Outcome.FAILED)])
def test_a_table_that_makes_more_tasks_than_there_may_be_fails_where_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, ends: Outcome
) -> None:
    """Two combinations of each row: before any operator has to look at them all."""
    monkeypatch.setattr("merlin_study.geometry.MAX_TASKS", 6)
    table = written(tmp_path / "s.csv", b"1\n" * rows)
    plan = plan_of(
        "description: {name: n, description: d}\n"
        "global.parameters: {P: {values: [1, 2], label: P.%%}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(P) $(S)}}]\n"
        f"merlin: {{samples: {{file: {table}, column_labels: [S]}}}}\n"
    )
    layout = Layout(str(tmp_path / "w"), Geometry(plan, 1))
    Path(layout.info).mkdir(parents=True)
    work = sampling.SamplingWork(layout, StepWork(layout, 0, rows=None, restart=False))
    chunk = Chunk(study="u", plan=plan.hash, epoch=1, fence=1, step=0, tasks=TaskSet(first=0, width=1), attempt=1)
    unused = cast("Slot", None)  # nothing is generated
    ended = work.execute(ChunkRun(chunk), 0, unused)
    assert ended.outcome is ends
    assert ended.failure is None or "expected at most 6 tasks in a step" in ended.failure.tail
