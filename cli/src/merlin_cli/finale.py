"""The end of a study in its workspace, ``merlin_info/outcome.json``: written by a run on this machine, read by ``merlin status``."""

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from merlin_cli import tally
from merlin_cli.progress import Progress
from merlin_study import finale, workspace
from merlin_study.plan import Plan


def write(directory: Path, plan: Plan, study: str, progress: Progress) -> None:
    """Write down what came of a study; where that can't be done, its outcome logs say the same."""
    fields = ("name", "succeeded", "soft_failed", "failed", "timed_out", "cancelled")
    failures = [failed.model_dump() for failed in progress.first_failures[: finale.MAX_FAILURES]]
    made = finale.Finale.model_validate(
        {
            "study": study,
            "plan": plan.hash,
            "succeeded": progress.succeeded,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": [
                {"total": step.total or 0, **{name: getattr(step, name) for name in fields}} for step in progress.steps
            ],
            "first_failures": failures,
        }
    )
    file = directory / workspace.INFO / finale.FILE
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        beside.write_bytes(made.to_file())
        beside.replace(file)


def read(directory: Path) -> Progress | None:
    """Return what came of a study; None where that is not written down, or something ran since."""
    file = directory / workspace.INFO / finale.FILE
    try:
        written = file.stat()
        if written.st_size > finale.MAX_BYTES or any(
            log.stat().st_mtime_ns > written.st_mtime_ns for log in tally.logs(directory)
        ):
            return None
        found = finale.Finale.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return Progress.model_validate(
        {
            "finished": True,
            "workspace": str(directory),
            **found.model_dump(include={"succeeded", "steps", "first_failures"}),
        }
    )
