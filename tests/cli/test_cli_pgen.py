"""Parameters from a generator: unmodified ones of Maestro's run, and what is wrong with one is said with its cure."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from merlin_cli import pgen, run, source, submit
from merlin_cli.exits import CliError, Exit
from merlin_cli.place import Place
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.workspace import Layout
from tests.cli.test_cli_submit import Recorder

SPEC = """\
description: {name: grid, description: a test}
env: {variables: {ROUNDS: 3, NAME: "run-$(ROUNDS)"}}
global.parameters:
  OLD: {values: [1], label: OLD.%%}
study:
  - {name: one, description: d, run: {cmd: "echo $(SIZE) $(ITER.label)"}}
"""
MAESTRO = """\
from itertools import product

from maestrowf.datastructures.core import ParameterGenerator


def get_custom_generator(env, **kwargs):
    p_gen = ParameterGenerator()
    rounds = int(kwargs.get("rounds", env.find("ROUNDS").value))
    pairs = list(product((10, 20), range(rounds)))
    p_gen.add_parameter("SIZE", [size for size, _ in pairs], "SIZE.%%")
    p_gen.add_parameter("ITER", [at for _, at in pairs], LABEL)
    return p_gen
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)
    return file


def generator(directory: Path, text: str) -> str:
    file = directory / "gen.py"
    file.write_text(text)
    return str(file)


def parsed(request: run.Request) -> Any:
    return run.parsed(request, source.read(request.spec), {}, place=Place(None))


def test_an_unmodified_generator_replaces_the_specifications_parameters(spec: Path, tmp_path: Path) -> None:
    """`find` gives variables as they are typed, and `--pargs` wins where the generator says so."""
    file = generator(tmp_path, MAESTRO.replace("LABEL", '"ITER.%%"'))
    study, table = parsed(run.Request(str(spec), pgen=file))
    assert table is None
    assert study.global_parameters["SIZE"].values == ("10", "10", "10", "20", "20", "20")
    assert set(study.global_parameters) == {"SIZE", "ITER"}
    study, _ = parsed(run.Request(str(spec), pgen=file, pargs=("rounds:1",)))
    assert study.global_parameters["ITER"].values == ("0", "0")
    assert "maestrowf" not in sys.modules


def test_the_submitted_study_holds_what_the_generator_made(spec: Path, tmp_path: Path) -> None:
    """The cluster never sees the generator."""
    cluster = Recorder()
    file = generator(tmp_path, MAESTRO.replace("LABEL", '"ITER.%%"'))
    submit.submit(run.Request(str(spec), pgen=file, pargs=("rounds:1",)), Console(file=io.StringIO()), cluster)
    [(_, body)] = cluster.created
    assert body["spec"]["global.parameters"] == {
        "SIZE": {"values": ["10", "20"], "label": "SIZE.%%"},
        "ITER": {"values": ["0", "0"], "label": "ITER.%%"},
    }


def test_a_list_of_labels_names_each_value(spec: Path, tmp_path: Path) -> None:
    """Only a generator can give one."""
    file = generator(tmp_path, MAESTRO.replace("LABEL", '[f"i{n}" for n in range(len(pairs))]'))
    request = run.Request(str(spec), pgen=file)
    found = source.read(request.spec)
    study, table = run.parsed(request, found, {}, place=Place(None))
    plan = run.compiled(study, found, table=table)
    layout = Layout("/w", Geometry(plan, 0))
    assert layout.task_dir(0, 4) == "/w/one/i4.SIZE.20"


class _Scalar:
    """As NumPy has it."""

    shape = ()

    def item(self) -> float:
        return 0.5


MAESTROS = """\
import os
import shutil
from maestrowf.datastructures.core import ParameterGenerator


def get_custom_generator(env, **kwargs):
    root = kwargs["SPECROOT"]
    assert root.value == env.find("SPECROOT").value == os.path.dirname(os.path.abspath(__file__)), root.value
    out = kwargs["OUTPUT_PATH"]
    assert out == env.find("OUTPUT_PATH").value
    assert env.find("CODE").path == "/usr"
    assert env.apply_environment("$(NAME).txt") == "run-3.txt"
    shutil.copy(os.path.join(root, "spec.yaml"), os.path.join(out, "design.txt"))
    p_gen = ParameterGenerator(ltoken="@@")
    p_gen.add_parameter("SIZE", [1, 2], "SIZE.@@", "size of it")
    p_gen.add_parameter("ITER", [3, 4], "ITER.@@")
    return p_gen
"""


def test_a_generator_of_maestros_knows_the_studys_directory_and_names_its_parameters(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is there, empty, before the study is compiled, and the study then runs in it."""
    monkeypatch.chdir(tmp_path)
    text = SPEC.replace("ITER.label", "SIZE.name) $(ITER.label").replace("echo", "cat $(OUTPUT_PATH)/design.txt; echo")
    spec.write_text(text.replace("env: {", "env: {dependencies: {paths: [{name: CODE, path: /usr}]}, ", 1))
    request = run.Request(str(spec), pgen=generator(tmp_path, MAESTROS), maestro=True, dry=True, output_path="out")
    assert run.run_locally(request, Console(file=io.StringIO())) == Exit.OK
    [directory] = (tmp_path / "out").iterdir()
    assert (directory / "design.txt").read_text() == spec.read_text()
    script = (directory / "one/ITER.3.SIZE.1/one_ITER.3.SIZE.1.sh").read_text()
    assert script == f"#!/bin/bash\n\ncat {directory}/design.txt; echo 1 size of it ITER.3\n"


def test_a_generator_of_maestros_that_fails_leaves_no_directory(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = generator(tmp_path, MAESTRO.replace("rounds =", "assert os.path.isdir(kwargs['OUTPUT_PATH']); rounds ="))
    with pytest.raises(CliError, match="NameError"):
        run.run_locally(run.Request(str(spec), pgen=file, maestro=True), Console(file=io.StringIO()))
    assert {path.name for path in tmp_path.iterdir()} == {"spec.yaml", "gen.py"}


@pytest.mark.parametrize(
    "use", ["os.path.join(out, 'x')", "out + '/x'", "f'{out}/x'", "str(env.find('OUTPUT_PATH').value)"]
)
def test_a_directory_that_only_an_agent_knows_is_told_apart_from_one_that_is_known(
    spec: Path, tmp_path: Path, use: str
) -> None:
    """Into a cluster the directory lies on the site: known where it is absolute, and with the stamp that the study gets."""
    text = MAESTRO.replace("rounds =", f"import os; out = kwargs['OUTPUT_PATH']; there = {use}; rounds =")
    file = generator(
        tmp_path, text.replace("[at for at, _ in pairs]", "[at for _, at in pairs]").replace("LABEL", '"I.%%"')
    )
    request = run.Request(str(spec), pgen=file, maestro=True)
    with pytest.raises(CliError, match="make OUTPUT_PATH absolute"):
        submit.submit(request, Console(file=io.StringIO()), Recorder())
    spec.write_text(SPEC.replace("ROUNDS: 3", "ROUNDS: 3, OUTPUT_PATH: /p/lustre"))
    there = (
        text.replace('"ITER"', '"OUT"')
        .replace("[at for _, at in pairs]", "[out for _ in pairs]")
        .replace("LABEL", '"O"')
    )
    cluster = Recorder()
    submit.submit(
        run.Request(str(spec), pgen=generator(tmp_path, there), maestro=True), Console(file=io.StringIO()), cluster
    )
    [(_, body)] = cluster.created
    made = body["spec"]["global.parameters"]["OUT"]["values"][0]
    assert made == f"/p/lustre/grid_{body['spec']['runId']}"


def test_numbers_of_arrays_are_spelled_as_plain_ones() -> None:
    assert [pgen._text(value) for value in (_Scalar(), 1e-5, True, "a b")] == ["0.5", "1e-05", "True", "a b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", r"expected a function get_custom_generator\(env, \*\*kwargs\), found none; define it"),
        ("def get_custom_generator(env, **kwargs):\n    return 3\n", "to return a ParameterGenerator, found int"),
        ("def get_custom_generator(env, **kwargs):\n    return 1 / 0\n", r"gen\.py:2: .* ZeroDivisionError"),
        ("def get_custom_generator(env):\n    )\n", r"gen\.py:2: .* SyntaxError"),
        ("import nothing_like_it\n", r"gen\.py:1: .* ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise SystemExit(3)\n", r"gen\.py:1: .* SystemExit"),
        (
            (
                "from maestrowf.datastructures.core import ParameterGenerator as P\n"
                "def get_custom_generator(env, **kwargs):\n    return P()\n"
            ),
            "added no parameter; call add_parameter",
        ),
        (
            (
                "from maestrowf.datastructures.core import ParameterGenerator as P\n"
                "def get_custom_generator(env, **kwargs):\n    p = P()\n    p.add_parameter('A', [1, 2])\n"
                "    p.add_parameter('B', [1])\n    return p\n"
            ),
            r"gen\.py:5: .* parameter B has 1 values, those before have 2",
        ),
    ],
)
def test_a_generator_that_fails_is_told_with_its_line(spec: Path, tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CliError, match=says) as told:
        parsed(run.Request(str(spec), pgen=generator(tmp_path, text)))
    assert told.value.code == Exit.REFUSED


def test_arguments_without_a_generator_or_without_a_colon_are_wrong_usage(spec: Path, tmp_path: Path) -> None:
    file = generator(tmp_path, MAESTRO)
    for request, says in (
        (run.Request(str(spec), pargs=("a:1",)), "--pargs are the arguments of --pgen"),
        (run.Request(str(spec), pgen=file, pargs=("a=1",)), "expected KEY:VALUE"),
        (run.Request(str(spec), pgen=str(tmp_path / "none.py")), "there is no such file"),
    ):
        with pytest.raises(CliError, match=says) as told:
            parsed(request)
        assert told.value.code == Exit.USAGE


def test_a_parameter_that_no_token_could_name_is_refused(spec: Path, tmp_path: Path) -> None:
    text = (
        "from maestrowf.datastructures.core import ParameterGenerator as P\n"
        "def get_custom_generator(env, **kwargs):\n    p = P()\n    p.add_parameter('WORKSPACE', [1])\n    return p\n"
    )
    with pytest.raises(SpecError, match="'WORKSPACE' is filled in by the system"):
        parsed(run.Request(str(spec), pgen=generator(tmp_path, text)))


def test_a_table_that_no_manifest_could_carry_goes_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand combinations in the file itself are as good as those of a generator."""
    rows = 100_000
    monkeypatch.setenv("DATA", "/data")
    values = ", ".join(["$DATA/0", *map(str, range(1, rows))])
    file = tmp_path / "big.yaml"
    file.write_text(
        "description: {name: big, description: d}\n"
        f"global.parameters: {{P: {{values: [{values}], label: P.%%}}}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(P)}}]\n"
    )
    spec, table = parsed(run.Request(spec=str(file)))
    assert table is not None
    assert (len(table["P"].values), table["P"].values[:2], dict(spec.global_parameters)) == (rows, ("/data/0", "1"), {})
    plan = run.compiled(spec, source.read(str(file)), table=table)
    layout = Layout("/w", Geometry(plan, 0))
    assert (layout.geometry.total(0), layout.task_dir(0, rows - 1)) == (rows, f"/w/a/P.{rows - 1}")


def test_a_large_table_with_a_fault_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    values = ", ".join(map(str, range(10_001)))
    file.write_text(
        "description: {name: big, description: d}\n"
        f"global.parameters: {{P: {{values: [{values}], label: P.%%}}, Q: {{values: [1], label: Q.%%}}}}\n"
        "study: [{name: a, description: d, run: {cmd: echo $(P)}}]\n"
    )
    with pytest.raises(SpecError, match=r"global\.parameters: all lists of values need one length"):
        parsed(run.Request(spec=str(file)))
