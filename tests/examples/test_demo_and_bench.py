"""What the README promises of `make demo` and `make bench`, and what `make bench-scale` measures."""

from __future__ import annotations

import re
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
    few = ["--tasks", "20", "--repeat", "1", "--seconds", "0", "--other-slots", "1"]
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")}
    assert {"merlin", "hyperqueue", "xargs -P", "fork and wait"} <= rows


def test_the_bench_of_size_measures_the_whole_path() -> None:
    """A real API server, few tasks: that it works, and what does not depend on the machine's speed."""
    command = [sys.executable, str(ROOT / "tools" / "bench_scale.py"), "--samples", "1000", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    few, many = re.findall(r"stream of reports at the end \| ([\d,]+) messages.*\| ([\d,]+) messages", done.stdout)[0]
    assert int(many.replace(",", "")) <= int(few.replace(",", "")) + 100, "a thousand times the tasks, not the messages"
