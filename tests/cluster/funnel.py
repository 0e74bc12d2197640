"""The study that both whole-loop tests run, and what must be true of it at its end: two parameters, samples, a funnel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

COMBINATIONS = 2
STUDY = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: {name}}}
spec:
  description: {{name: {name}, description: two parameters and many samples and a funnel}}
  global.parameters:
    GREET: {{values: ["hello", "hola"], label: "GREET.%%"}}
    WORLD: {{values: ["world", "mundo"], label: "WORLD.%%"}}
  study:
  - name: say
    description: one line into the task's directory and one into the shared count of executions
    run:
      cmd: |
        {before}
        echo "$(GREET) $(WORLD) $(NUMBER)" > said.txt
        echo "$(GREET) $(NUMBER)" >> $(MERLIN_WORKSPACE)/executions
      task_queue: many
  - name: count
    description: the funnel
    run:
      cmd: find $(say.workspace) -name said.txt -exec cat {{}} + | sort -u | wc -l > total.txt
      depends: [say_*]
  merlin:
    samples:
      generate: {{cmd: "seq {samples} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""


def manifest(name: str, *, samples: int, before: str = ":") -> str:
    """Return the Study: ``COMBINATIONS * samples`` tasks that begin with ``before``, one ahead of them and one after."""
    return STUDY.format(name=name, samples=samples, before=before)


def condition(study: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return one condition of a Study."""
    return next(each for each in study["status"]["conditions"] if each["type"] == kind)


def check_complete(study: dict[str, Any], root: Path, *, samples: int, most_doubled: int) -> None:
    """Every task succeeded, each output is there, and at most so many ran twice: as many as were lost with their agent."""
    status, tasks = study["status"], COMBINATIONS * samples
    assert condition(study, "Succeeded")["status"] == "True", status
    assert (status["counts"]["total"], status["counts"]["succeeded"]) == (tasks + 2, tasks + 2)
    assert status.get("doubled", 0) == 0
    steps = {step["name"]: step["succeeded"] for step in status["steps"]}
    assert steps == {"merlin_info": 1, "say": tasks, "count": 1}
    workspace = workspace_of(study, root)
    assert (workspace / "count" / "total.txt").read_text().strip() == str(tasks)
    runs = Counter((workspace / "executions").read_text().splitlines())
    assert len(runs) == tasks
    assert sum(runs.values()) - len(runs) <= most_doubled


def workspace_of(study: dict[str, Any], root: Path) -> Path:
    """Return the one workspace of a study."""
    (workspace,) = root.glob(f"{study['metadata']['name']}_*")
    return workspace


def taking_part(study: dict[str, Any], root: Path) -> int:
    """Return how many agents kept outcomes of it."""
    return len(list((workspace_of(study, root) / "merlin_info" / "outcomes").glob("*.jsonl")))
