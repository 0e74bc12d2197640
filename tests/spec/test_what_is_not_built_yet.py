"""`not_yet`: what the language has and this version refuses, and what asks for nothing and passes."""

from typing import Any

import pytest

from merlin_study.notyet import TABLE, not_yet
from merlin_study.parse import parse_spec
from merlin_study.spec import StudySpec


def faults(run: dict[str, Any] | None = None, **top: Any) -> list[str]:
    raw = {
        "description": {"name": "a", "description": "b"},
        "study": [{"name": "s", "description": "b", "run": {"cmd": "true", **(run or {})}}],
        **top,
    }
    spec, _ = parse_spec(raw)
    found = not_yet(spec)
    assert {fault.reason for fault in found} <= {"NotYetSupported"}
    return [str(fault) for fault in found]


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"batch": {"dry_run": True}}, "batch.dry_run: true is not supported yet; remove it"),
    ],
)  # fmt: skip
def test_a_study_that_asks_for_what_is_missing_is_refused(top: dict[str, Any], message: str) -> None:
    assert faults(**top) == [f"spec.{message}"]


def test_what_asks_for_nothing_and_what_is_built_passes() -> None:
    run = {
        "nodes": 2,
        "procs": "$(N)",
        "cores per task": 4,
        "gpus": 2,
        "slurm": "--overlap",
        "walltime": 60,
        "exclusive": True,
        "reservation": "r",
        "qos": "q",
        "batch": {"type": "flux"},
        "warm": True,
        "preload": ["numpy"],
        "priority": "high",
        "task_queue": "q",
        "max_retries": 2,
        "retry_delay": 3,
        "restart": "exit $(MERLIN_RETRY)",
        "shell": "/bin/sh",
    }
    batch = {
        "type": "slurm",
        "bank": "b",
        "queue": "q",
        "nodes": 9,
        "walltime": 1,
        "flux_path": "p",
        "launch_args": "-x",
    }
    top: dict[str, Any] = {
        "suspend": True,
        "cancel": True,
        "priority": 7,
        "maxInFlight": 1,
        "purge": "1",
        "restart": {"id": "1", "steps": ["s"], "scan": True},
        "failurePolicy": "FailFast",
        "files": [],
        "dialect": "Merlin",
        "outputs": "packed",
        "deletionPolicy": "Retain",
        "ttlSecondsAfterFinished": 0,
        "site": "here",
        "runId": "1",
        "batch": {**batch, "dry_run": False, "worker_launch": "w"},
        "env": {
            "variables": {"N": 2},
            "labels": {"L": True},
            "sources": ["s"],
            "dependencies": {"paths": [{"name": "A", "path": "/a"}]},
        },
        "merlin": {
            "samples": {"file": "f.csv"},
            "resources": {"workers": {"w": {"batch": {"type": "flux"}, "nodes": 3}}},
        },
        "vars": {"N": 3},
        "user": {"x": "$(LAUNCHER)"},
    }
    assert faults(run, **top) == []


def test_every_key_of_the_table_is_a_key_of_the_language() -> None:
    """A line of the table that nothing can match would let through what it means to refuse."""
    schema = StudySpec.model_json_schema(by_alias=True)

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        options = [option for option in node.get("anyOf", [node]) if option != {"type": "null"}]
        found: dict[str, Any] = (
            schema["$defs"][options[0]["$ref"].split("/")[-1]] if "$ref" in options[0] else options[0]
        )
        return found

    for entry in TABLE:
        node = schema
        for part in entry.key:
            node = resolve(node["items"] if part == "[]" else node["properties"][part])
