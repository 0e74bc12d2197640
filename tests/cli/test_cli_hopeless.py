"""A local run whose agent can't take what is left: its user is told why, and the run ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from merlin_cli import local, run
from merlin_cli.exits import CliError, Exit

SPEC = """
description: {name: grown, description: the table of samples is changed under way}
study:
- {name: grow, description: adds a row, run: {depends: [wait], cmd: "echo 3 >> $(MERLIN_INFO)/s.csv"}}
- {name: read, description: finds another table than was measured, run: {cmd: "echo $(N)", depends: [grow]}}
- {name: wait, description: measures it first, run: {cmd: "echo $(MERLIN_GLOB_PATH)"}}
merlin: {samples: {generate: {cmd: "seq 2 > $(MERLIN_INFO)/s.csv"}, file: $(MERLIN_INFO)/s.csv, column_labels: [N]}}
"""


def test_a_run_that_its_agent_refuses_says_why_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PATIENCE", 0.5)
    monkeypatch.setattr(local, "GIVE_UP", 2.0)
    (tmp_path / "grown.yaml").write_text(SPEC)
    with pytest.raises(CliError) as caught:
        run.run_locally(run.Request(spec="grown.yaml", slots=1), Console(quiet=True))
    assert caught.value.code is Exit.CANNOT_RUN
    assert "expected 2 samples, found 3; the file was changed after it was measured" in str(caught.value)
    assert "go on with: merlin restart" in str(caught.value)
