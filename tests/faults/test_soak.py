"""`make soak` in small: a random process killed each second. ``MERLIN_SOAK_SECONDS`` and ``MERLIN_SOAK_TASKS`` ask for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"


def test_a_process_that_is_killed_each_second_loses_and_doubles_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable, str(SOAK), "--seconds", os.environ.get("MERLIN_SOAK_SECONDS", "10"),
        "--tasks", os.environ.get("MERLIN_SOAK_TASKS", "800"), "--write", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "soak.md").read_text()
    for what in ("tasks without an outcome", "tasks doubled", "successes accepted twice"):
        assert f"| {what} | 0 |" in page
