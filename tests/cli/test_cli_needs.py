"""``merlin run --local`` sees to ``env.dependencies`` itself, before anything of the study exists."""

import subprocess
import sys
from pathlib import Path

MERLIN = str(Path(sys.executable).with_name("merlin"))
SPEC = """
description: {name: needy, description: d}
env: {dependencies: {paths: [{name: DATA, path: data}], git: [{name: LIB, path: libs, url: "%s"}]}}
study: [{name: a, description: d, run: {cmd: "ls $(DATA) $(LIB)"}}]
"""


def _merlin(where: Path) -> subprocess.CompletedProcess[str]:
    command = [MERLIN, "run", "needy.yaml", "--local", "--slots", "1"]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120, check=False)


def test_a_study_starts_when_all_that_it_needs_is_there_and_not_before(tmp_path: Path) -> None:
    """Relative paths are the submitter's; a second study finds the first one's clone in its way, as with upstream."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True, timeout=180)
    (tmp_path / "needy.yaml").write_text(SPEC % repository)
    refused = _merlin(tmp_path)
    assert refused.returncode != 0
    assert f"expected a path that exists, found none at {tmp_path}/data" in refused.stderr
    assert list(tmp_path.glob("needy_*")) == []
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    done = _merlin(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (study,) = tmp_path.glob("needy_*")
    assert (study / "a" / "a.out").read_text() == f"{tmp_path}/data:\nfile\n\n{tmp_path}/libs/LIB:\n"
    assert "found " + str(tmp_path / "libs/LIB") + " there already" in _merlin(tmp_path).stderr
