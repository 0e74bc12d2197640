"""What the README promises of `make demo` and `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MERLIN = str(Path(sys.executable).with_name("merlin"))


def test_the_demo_ends_well_and_says_where_its_outputs_lie(tmp_path: Path) -> None:
    """What ``make demo`` runs: more than a thousand sampled tasks, a chain and two funnels."""
    command = [MERLIN, "run", str(ROOT / "docs" / "examples" / "demo.yaml"), "--local", "--slots", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = Path(done.stdout.strip().splitlines()[-1].removeprefix("Outputs: "))
    assert len(list(study.glob("throw/*/**/MERLIN_FINISHED"))) == 1000
    assert "expected error" in (study / "report" / "pi.txt").read_text()


def test_the_bench_measures_all_contenders() -> None:
    """Few tasks, one turn: that it works, not how fast anything is."""
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--tasks", "20", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "merlin / hyperqueue" in done.stdout
