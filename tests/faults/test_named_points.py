"""Failpoints and histories: off unless they are asked for, and exact where they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merlin_study import failpoints, history


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run some Python with these variables."""
    return subprocess.run(
        [sys.executable, "-c", f"from merlin_study import failpoints, history\n{code}"],
        env=os.environ | environ, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_nothing_happens_where_nothing_is_armed() -> None:
    failpoints.reach("agent.claim")
    history.note("began", task=1)
    assert not history.ON


def test_a_point_kills_raises_or_waits_at_the_passing_that_is_named(tmp_path: Path) -> None:
    killed = run("for n in range(5): print(n, flush=True); failpoints.reach('a')", MERLIN_FAILPOINTS="a=kill@3")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "0\n1\n2\n")
    raised = run("failpoints.reach('b'); failpoints.reach('a')", MERLIN_FAILPOINTS="a=raise")
    assert "FailpointError: a" in raised.stderr
    gate = tmp_path / "gate"
    waited = f"import threading; threading.Timer(0.2, open, ({str(gate)!r}, 'w')).start(); failpoints.reach('a')"
    assert (
        run(f"{waited}; import os; print(os.path.exists({str(gate)!r}))", MERLIN_FAILPOINTS=f"a=pause:{gate}").stdout
        == "True\n"
    )


@pytest.mark.parametrize("text", ["a", "a=die", "a=kill@x"])
def test_what_arms_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        failpoints.parse(text)


def test_events_outlive_the_process_that_noted_them(tmp_path: Path) -> None:
    done = run(
        "history.note('began', task=7); failpoints.reach('x')", MERLIN_HISTORY=str(tmp_path), MERLIN_FAILPOINTS="x=kill"
    )
    assert done.returncode == -signal.SIGKILL
    (path,) = tmp_path.glob("*.jsonl")
    event = json.loads(path.read_text())
    assert (event["event"], event["task"]) == ("began", 7)
