"""`make soak` for a minute: a random process killed each second, over tasks that sleep as long as that lasts.

``MERLIN_SOAK_SECONDS`` and ``MERLIN_SOAK_TASKS`` ask for more; there are to be more tasks than agents end in that time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"


def test_a_process_that_is_killed_each_second_loses_and_doubles_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable, str(SOAK), "--seconds", os.environ.get("MERLIN_SOAK_SECONDS", "60"),
        "--tasks", os.environ.get("MERLIN_SOAK_TASKS", "800"), "--nap", "1", "--write", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "soak.md").read_text()
    for what in ("tasks without an outcome", "tasks doubled", "successes accepted twice"):
        assert f"| {what} | 0 |" in page
