"""What `outputs: lean` does with scripts that name directories, and how its logs survive."""

import io
import zlib

import pytest

from merlin_study import lean, tasklog
from merlin_study.compiler import compile_study
from merlin_study.errors import SpecError
from merlin_study.outcome import Outcome
from merlin_study.parse import parse_spec
from merlin_study.plan import Plan
from merlin_study.tasklog import Opening, Text

OPENING = Opening(
    version=1,
    study="s",
    plan="p",
    step="sim",
    fence=1,
    attempt=1,
    restart=False,
    samples=9,
    agent="a",
    host="h",
    began=0.0,
)


def planned(first: str, second: str = "echo") -> Plan:
    spec = {
        "description": {"name": "study", "description": "x"},
        "outputs": "lean",
        "study": [
            {"name": "sim", "description": "x", "run": {"cmd": first}},
            {"name": "last", "description": "x", "run": {"cmd": second, "depends": ["sim_*"]}},
        ],
        "merlin": {"samples": {"file": "/s.csv", "column_labels": ["X"]}},
    }
    return compile_study(parse_spec(spec)[0], stamp="20260101-000000")


@pytest.mark.parametrize(
    ("script", "own"),
    [
        ("echo $(X)", False),
        ("echo $(X) > $(WORKSPACE)/$(X)", False),
        ("cat $(last.workspace)/x$(X)", False),
        ("cd $(WORKSPACE)/$(MERLIN_SAMPLE_PATH)", True),
        ("echo $(X) $PWD", True),
        ("echo $(X); dirname $0", True),
        ("echo once", False),
        ("echo once > $(WORKSPACE)/x", True),
    ],
)
def test_a_task_has_its_directory_from_the_beginning_only_where_its_script_could_name_it(
    script: str, *, own: bool
) -> None:
    plan = planned("echo once", script.replace("last", "sim"))
    at = next(at for at, step in enumerate(plan.steps) if step.name == "last")
    assert lean.in_place(plan, at) is own


def test_a_script_that_reads_anothers_output_file_is_refused() -> None:
    for name in ("sim.out", "*.err", "MERLIN_FINISHED"):
        with pytest.raises(SpecError, match=r"spec.study\[1\].run.cmd.*which outputs: lean keeps in a log"):
            planned("echo $(X)", f"cat $(sim.workspace)/$(MERLIN_GLOB_PATH){name}")
    planned("echo $(X)", "cat $(sim.workspace)/$(MERLIN_GLOB_PATH)result.txt")


def a_log(*bodies: bytes) -> bytes:
    script = Text("/bin/bash", "echo $(X) $(date)")
    data = tasklog.opening(OPENING) + tasklog.script_entry(0, script)
    for task, body in enumerate(bodies):
        fields = {"task": task, "script": 0, "outcome": "succeeded", "code": 0, "seconds": 1.0, "values": {"x": "$(X)"}}
        data += tasklog.header(fields | {"out": len(body), "err": 0, "crc": zlib.crc32(body)}) + body + b"\n"
    return data


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("values", [{}, {"x": 'a"\\\n\u00e4', "y": "1"}])
@pytest.mark.parametrize("seconds", [0.0, 1e-9, 0.000012345678, 86400.5])
def test_the_line_of_an_execution_is_what_any_line_is(*, kept: bool, values: dict[str, str], seconds: float) -> None:
    line = tasklog.ran_header(
        7,
        script=2,
        outcome=Outcome.SOFT_FAILED,
        code=-9,
        seconds=seconds,
        sizes=(3, 4),
        crc=5,
        values=values,
        kept=kept,
    )
    fields = {
        "task": 7,
        "outcome": "soft-failed",
        "code": -9,
        "seconds": round(seconds, 6),
        "out": 3,
        "err": 4,
        "crc": 5,
    }
    own = ({"values": values} if values else {}) | ({"kept": True} if kept else {})
    assert line == tasklog.header(fields | own | {"script": 2})


def test_a_log_that_was_cut_off_anywhere_tells_exactly_what_is_whole() -> None:
    bodies, data = (b"one\n", b"", b"\xff\n\n{"), a_log(b"one\n", b"", b"\xff\n\n{")
    ends = [len(a_log(*bodies[:count])) for count in range(4)]
    for cut in range(len(data) + 1):
        read = tasklog.read(io.BytesIO(data[:cut]))
        found = [ran.task for ran in read[1]] if read else []
        assert found == list(range(sum(end <= cut for end in ends[1:])))


def test_damage_ends_a_log_and_values_go_into_scripts_literally() -> None:
    data = a_log(b"one", b"two")
    read = tasklog.read(io.BytesIO(data.replace(b"two", b"twa")))
    assert read is not None
    (ran,) = read[1]
    assert ran.content == "#!/bin/bash\n\necho $(X) $(date)\n"
