"""kubectl reads from a converted manifest exactly the values that Merlin's reader read from the file."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from merlin_cli import convert as converting
from merlin_cli.__main__ import main
from merlin_study import loader
from merlin_study.errors import SpecError
from tests.ground.needs import ROOT, program

TRICKY = """\
description: {name: "Tricky: yes", description: values that YAML readers disagree about}
env:
  variables:
    N: 010
    y: "yes"
    VERSION: 1.0
    LONG: 10:00:00
    EMPTY: ""
    LIST: [1, 2.50, no]
global.parameters:
  N2: {values: [1.0, 2e3, y, ~x], label: N2.%%}
  X: {values: [on, off, 0.10, "null"], label: "X%%"}
study:
  - name: 'off'
    description: "a: b # c"
    run:
      cmd: "echo 'a: #1' && printf '\\t%s\\n' $(N)"
      walltime: 10:00:00
      max_retries: 3
  - name: after
    description: text
    run:
      depends: ['off_*']
      shell: /usr/bin/env python3
      cmd: |
          if True:
              print("$(X)")

          print("end")
user: {n: {N: null, o: [yes, 1.5]}}
"""


def convert(file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert", str(file)]) == 0
    return capsys.readouterr().out


def as_kubectl_reads(manifest: str, tmp_path: Path) -> Any:
    """Turn YAML into JSON with kubectl's own reader, without a cluster."""
    file = tmp_path / "manifest.yaml"
    config = tmp_path / "kubeconfig"
    file.write_text(manifest)
    patch = [program("kubectl"), "patch", "--local", "-f", str(file), "--type=merge", "-p", "{}", "-o", "json"]
    ended = subprocess.run(
        patch, capture_output=True, text=True, check=False, env={**os.environ, "KUBECONFIG": str(config)}
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", ["tricky", "demo", "hello"])
def test_kubectl_reads_what_merlin_reads(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / f"docs/examples/{name}.yaml"
    if name == "tricky":
        file = tmp_path / "tricky.yaml"
        file.write_text(TRICKY)
    manifest = convert(file, capsys)
    assert as_kubectl_reads(manifest, tmp_path) == loader.load_yaml(manifest, source="manifest")


def test_values_are_spelled_as_upstream_substitutes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tricky.yaml"
    file.write_text(TRICKY)
    spec = as_kubectl_reads(convert(file, capsys), tmp_path)["spec"]
    assert spec["env"]["variables"] == {
        "N": "8",
        "y": "yes",
        "VERSION": "1.0",
        "LONG": "36000",
        "EMPTY": "",
        "LIST": "[1, 2.5, False]",
    }
    assert spec["global.parameters"]["N2"]["values"] == ["1.0", "2e3", "y", "~x"]
    assert spec["global.parameters"]["X"]["values"] == ["True", "False", "0.1", "null"]
    assert spec["study"][0]["run"]["walltime"] == 36000
    assert spec["study"][0]["run"]["cmd"] == "echo 'a: #1' && printf '\t%s\n' $(N)"


def test_converting_a_manifest_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = convert(ROOT / "docs/examples/demo.yaml", capsys)
    file = tmp_path / "manifest.yaml"
    file.write_text(once)
    assert convert(file, capsys) == once


def test_the_name_becomes_one_that_a_cluster_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tricky.yaml"
    file.write_text(TRICKY)
    assert loader.load_yaml(convert(file, capsys), source="manifest")["metadata"] == {"name": "tricky-yes"}


def test_a_study_that_no_cluster_could_hold_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    """The API server would only say that the request is too large."""
    values = "".join(f"    V{at}: {'x' * 16_000}\n" for at in range(80))
    file = tmp_path / "large.yaml"
    file.write_text(
        f"description: {{name: n, description: d}}\nenv:\n  variables:\n{values}"
        "study: [{name: a, description: d, run: {cmd: echo}}]\n"
    )
    with pytest.raises(
        SpecError, match=r"^spec: expected at most 1200000 bytes in all, found 128[0-9]{4}; put long values"
    ):
        converting.convert(str(file))
