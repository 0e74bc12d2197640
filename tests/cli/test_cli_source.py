"""What a file and the command line's wishes become before anything is compiled."""

from pathlib import Path

import pytest

from merlin_cli import names, source
from merlin_cli.exits import CliError
from merlin_study.errors import SpecError

SPEC = """\
description: {name: tiny, description: a test}
env:
  variables: {OUTPUT_PATH: $HERE/studies, N: 3}
study:
  - name: one
    description: says a word
    run: {cmd: "echo $(N) $(LATER)"}
"""
MANIFEST = """\
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {name: mine, namespace: theirs}
spec:
  description: {name: tiny, description: a test}
  study:
    - {name: one, description: says a word, run: {cmd: echo word}}
"""


def read(tmp_path: Path, text: str) -> source.Source:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    return source.read(str(file))


def test_a_manifest_is_its_spec_and_its_metadata(tmp_path: Path) -> None:
    found = read(tmp_path, MANIFEST)
    assert found.metadata == {"name": "mine", "namespace": "theirs"}
    assert source.parse(found, {}).description.name == "tiny"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("v1alpha1", "v2", "apiVersion: expected 'merlin.dev/v1alpha1', found 'merlin.dev/v2' (string)"),
        ("kind: Study", "kind: Pod", "kind: expected 'Study', found 'Pod' (string)"),
        ("name: mine", "name: 7", "metadata.name: expected a string, found 7 (integer)"),
        (
            "metadata: {name: mine, namespace: theirs}",
            "metadata: x",
            "metadata: expected a mapping, found 'x' (string)",
        ),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    with pytest.raises(SpecError) as refused:
        read(tmp_path, MANIFEST.replace(old, new))
    assert str(refused.value) == fault


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a mapping with the blocks description and study, found a list of 1"):
        read(tmp_path, "- one\n")


def test_a_variable_that_is_there_is_overridden_and_one_that_is_only_mentioned_is_added(tmp_path: Path) -> None:
    spec = source.parse(read(tmp_path, SPEC), {"N": 5, "LATER": "x"})
    assert spec.vars == {"N": 5}
    assert spec.env.variables["LATER"] == "x"


def test_the_command_lines_output_path_counts_before_the_files(tmp_path: Path) -> None:
    spec = source.parse(read(tmp_path, SPEC), {}, output_path="/elsewhere")
    assert spec.env.variables["OUTPUT_PATH"] == "/elsewhere"
    assert "OUTPUT_PATH" not in spec.vars


def test_the_environment_in_a_specification_is_that_of_the_submitter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everywhere but in scripts, whose shell has its own; what a manifest is made of is left for an agent."""
    monkeypatch.setenv("HERE", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    found = read(tmp_path, SPEC)
    assert source.parse(found, {}).env.variables["OUTPUT_PATH"] == "/scratch/me/studies"
    assert source.parse(found, {"OUTPUT_PATH": "~/out"}).vars["OUTPUT_PATH"] == "/home/me/out"
    assert source.parse(found, {"OUTPUT_PATH": "./$(N)"}).vars["OUTPUT_PATH"] == "./$(N)"
    assert source.parse(found, {}, elsewhere=True).env.variables["OUTPUT_PATH"] == "$HERE/studies"


def test_what_looks_like_an_integer_becomes_one() -> None:
    assert source.variables(["A=12", "B=-3", "C=1.0", "D=", "E=0x1"]) == {
        "A": 12,
        "B": -3,
        "C": "1.0",
        "D": "",
        "E": "0x1",
    }


@pytest.mark.parametrize("assignment", ["A", "=1", "A=1=2", "$A=1"])
def test_a_malformed_assignment_is_wrong_usage(assignment: str) -> None:
    with pytest.raises(CliError, match="--vars"):
        source.variables([assignment])


@pytest.mark.parametrize(
    ("text", "stamp", "expected"),
    [
        ("My Study (2)", "", "my-study-2"),
        ("hello", "20260102-030405", "hello-20260102-030405"),
        ("x" * 80, "20260102-030405", "x" * 36 + "-20260102-030405"),
        ("Käse_", "", "k-se"),
        ("***", "", "study"),
    ],
)
def test_object_names_fit_what_the_cluster_allows(text: str, stamp: str, expected: str) -> None:
    assert names.object_name(text, stamp) == expected
    assert len(names.object_name(text, stamp)) <= names.MAX_NAME
