"""What ``merlin run`` makes of the language, from the file to the scripts and their outputs."""

import os
import subprocess
import sys
from pathlib import Path

MERLIN = str(Path(sys.executable).with_name("merlin"))


def _run(where: Path, text: str, *options: str, **environ: str) -> Path:
    """Run a specification and return the study's directory; its tasks may fail."""
    (where / "spec.yaml").write_text(text)
    command = [MERLIN, "run", "spec.yaml", "--local", "--slots", "2", *options]
    environment = {**os.environ, **environ}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "Outputs: " in done.stdout, done.stdout + done.stderr
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("Outputs: "))


MERLINS = """
description: {name: words, description: d}
env: {variables: {OUTPUT_PATH: $PLACE, TOOL: $PLACE/tool}}
study:
- {name: many, description: d, run: {cmd: "echo $(S) $(TOOL)"}}
- {name: all, description: d, run: {cmd: "cat $(many.workspace)/*/*.out; echo $(MERLIN_PATHS_ALL)", depends: [many_*]}}
- {name: list, description: d, run: {cmd: "cat $(MERLIN_INFO)/sample_paths.txt", depends: [many_*]}}
- {name: own, description: d, run: {shell: "$(WORKSPACE)/../../sh -e", cmd: "printf own"}}
merlin: {samples: {generate: {cmd: "printf '1\\\\n2\\\\n3\\\\n' > here.csv"}, file: here.csv, column_labels: [S], level_max_dirs: 9}}
"""


def test_tokens_reach_scripts_as_upstream_has_them(tmp_path: Path) -> None:
    """The environment is the submitter's; a relative table of samples lies where it is made, in the submitter's directory."""
    (tmp_path / "sh").symlink_to("/bin/sh")
    study = _run(tmp_path, MERLINS, PLACE=str(tmp_path))
    assert study.parent == tmp_path
    assert (tmp_path / "here.csv").exists()
    assert (study / "all" / "all.out").read_text() == "".join(f"{at} {tmp_path}/tool\n" for at in (1, 2, 3)) + "0 1 2\n"
    assert (study / "list" / "list.out").read_text() == "0\n1\n2\n"
    assert (study / "own" / "own.sh").read_text().startswith(f"#!{study}/own/../../sh -e\n")
    assert (study / "own" / "own.out").read_text() == "own"


MAESTROS = """
description: {name: steps, description: d}
batch: {type: flux}
study:
- {name: bad, description: d, run: {cmd: "ls -d $(OUTPUT_PATH); false"}}
- {name: after, description: d, run: {cmd: "true", depends: [bad]}}
- {name: other, description: d, run: {cmd: "true"}}
"""


def test_a_study_of_maestro_s_ends_behind_a_failure(tmp_path: Path) -> None:
    """Under ``--maestro`` any failure holds back what depends on it, and $(OUTPUT_PATH) is the study's own directory."""
    study = _run(tmp_path, MAESTROS, "--maestro")
    assert (study / "bad" / "bad.flux.out").read_text() == f"{study}\n"
    assert sorted(path.parent.name for path in study.rglob("MERLIN_FINISHED")) == ["other"]
    again = _run(tmp_path, MAESTROS)
    assert sorted(path.parent.name for path in again.rglob("MERLIN_FINISHED")) == ["after", "other"]
