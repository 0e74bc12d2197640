"""``merlin run --dry``: what a run would put on disk, and nothing started."""

import subprocess
import sys
from pathlib import Path

import pytest

from merlin_study import loader

SPEC = """\
description: {name: try, description: two steps}
env: {variables: {WORD: "010", OUTPUT_PATH: out}}
study:
  - name: one
    description: is not run
    run: {cmd: touch ran $(N) $(P), restart: touch again $(N)}
  - name: two
    description: needs all of them
    run: {cmd: "echo $(WORD) > $(MERLIN_INFO)/x", depends: [one_*], task_queue: $(WORD)}
global.parameters:
  P: {values: [1, 2], label: P.%%}
merlin:
  samples:
    generate: {cmd: "printf 'a\\nb\\n' > $(MERLIN_INFO)/n.csv; pwd"}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""


def dry(place: Path, text: str, *options: str) -> tuple[int, str]:
    (place / "spec.yaml").write_text(text)
    command = [sys.executable, "-m", "merlin_cli", "run", "spec.yaml", "--dry", *options]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=180, check=False)
    return done.returncode, done.stdout + done.stderr


def outputs(said: str) -> Path:
    return Path(said.strip().splitlines()[-1].removeprefix("Outputs: "))


@pytest.mark.parametrize("options", [(), ("--local",)])
def test_directories_and_scripts_are_written_and_nothing_runs(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said = dry(tmp_path, SPEC, *options)
    study = outputs(said)
    assert (code, study.parent) == (0, tmp_path / "out"), said
    assert "5 tasks written, nothing was run" in said
    written = {str(path.relative_to(study)) for path in study.rglob("*") if path.is_file()}
    assert {name for name in written if not name.startswith("merlin_info/")} == {
        "two/two.sh",
        *(f"one/P.{p}/{n}/one_P.{p}{kind}.sh" for p in (1, 2) for n in ("00", "01") for kind in ("", ".restart")),
    }
    assert (study / "one/P.2/01/one_P.2.sh").read_text() == "#!/bin/bash\n\ntouch ran b 2\n"
    assert (study / "two/two.sh").read_text() == f"#!/bin/bash\n\necho 010 > {study}/merlin_info/x\n"
    assert (study / "merlin_info/cmd.out").read_text() == f"{tmp_path}\n"


def test_what_was_written_can_be_run(tmp_path: Path) -> None:
    _, said = dry(tmp_path, SPEC)
    command = [sys.executable, "-m", "merlin_cli", "restart", str(outputs(said)), "--local"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(outputs(said).rglob("MERLIN_FINISHED"))) == 5


def test_a_study_may_ask_for_it_itself(tmp_path: Path) -> None:
    code, said = dry(tmp_path, SPEC + "batch: {dry_run: true}\n")
    assert (code, "nothing was run" in said, "refused" in said) == (0, True, False)


def test_what_would_be_refused_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    code, said = dry(tmp_path, SPEC.replace("echo $(WORD)", "echo $(MERLIN_NONSENSE)"))
    assert code == 1
    assert "spec.study[1].run.cmd: $(MERLIN_NONSENSE) is not defined" in said
    assert not (tmp_path / "out").exists()


def test_samples_that_can_not_be_made_are_told_with_what_their_command_said(tmp_path: Path) -> None:
    code, said = dry(tmp_path, SPEC.replace("printf", "echo no licence >&2; exit 3; printf"))
    assert code == 4
    assert f"merlin.samples.generate.cmd ended with exit code 3 in {tmp_path}; it said:\nno licence" in said


def test_provenance_needs_no_variables(tmp_path: Path) -> None:
    text = SPEC.replace('env: {variables: {WORD: "010", OUTPUT_PATH: out}}\n', "").replace("$(WORD)", "word")
    code, said = dry(tmp_path, text)
    assert code == 0, said
    assert "$(MERLIN_INFO)" in (outputs(said) / "merlin_info/spec.partial.yaml").read_text()


def test_provenance_says_what_ran(tmp_path: Path) -> None:
    _, said = dry(tmp_path, SPEC, "--vars", "WORD=yes")
    info = outputs(said) / "merlin_info"
    assert (info / "spec.orig.yaml").read_text() == SPEC
    partial, expanded = (
        loader.load_yaml((info / f"spec.{kind}.yaml").read_text(), source=kind) for kind in ("partial", "expanded")
    )
    assert partial["env"]["variables"] == expanded["env"]["variables"] == {"WORD": "yes", "OUTPUT_PATH": "out"}
    assert partial["study"][1]["run"]["cmd"] == "echo $(WORD) > $(MERLIN_INFO)/x"
    assert expanded["study"][1]["run"]["cmd"] == f"echo yes > {info}/x"
    assert partial["study"][0]["run"]["max_retries"] == 30
    assert expanded["merlin"]["samples"]["file"] == f"{info}/n.csv"
    assert expanded["merlin"]["resources"]["workers"] == {"default_worker": {"steps": ["all"]}}
