"""``merlin restart DIR --local``: go on with a study, from its workspace alone.

``merlin_info`` holds the plan, the mark (which study the workspace belongs to) and the outcome logs; the engine folds the
logs, what succeeded stays, and everything else runs again. Nothing is compiled anew, so a changed specification changes
nothing.

Where the workspace lies: a plan says ``<root>/<output path>/<name>_<stamp>``, and the root is no part of it. As long as
DIR ends in what the plan says, the root is what stands before that, and the plan stays the same to the byte: so a study
may be moved together with what lies above it. Where DIR was renamed, or its OUTPUT_PATH was absolute and DIR lies
elsewhere now, the plan is given the new place. Its hash changes with that, which harms nothing: scripts name the
workspace by tokens that agents fill in, and the mark is checked against the study's uid.
"""

import json
import os
import uuid
from pathlib import Path

from rich.console import Console

from merlin_cli import local, tally
from merlin_cli.exits import CliError, Exit
from merlin_cli.steer import Which
from merlin_cli.target import Mark
from merlin_study import workspace
from merlin_study.plan import Plan


def restart_locally(directory: str, which: Which, *, slots: int | None, console: Console) -> Exit:
    """Run what has not succeeded yet; where ``which`` says so, also what succeeded and has no mark any more.

    Raises:
        CliError: the directory is no workspace, or it could not run.
    """
    local.check_installed()
    there = Path(os.path.abspath(directory))  # noqa: PTH100 symbolic links stay: a workspace may be named through one
    plan, root = placed(tally.read_plan(there), there)
    again = json.dumps(which.request()) if which.scan else ""
    slots = slots or local.default_slots()
    job = local.Job(plan=plan, study=_study(there), root=root, slots=slots, resume=True, again=again)
    return local.run(job, console)


def placed(plan: Plan, directory: Path) -> tuple[Plan, Path]:
    """Return the plan and the workspace root that lead to ``directory``; see the module."""
    below = os.path.normpath(os.path.join(plan.output_path, plan.workspace))  # noqa: PTH118 as `workspace.study_root` does
    if os.path.isabs(below):  # noqa: PTH117 text, not a path of this machine's yet
        if below == str(directory):
            return plan, directory.parent
    elif directory.parts[-len(parts := Path(below).parts) :] == parts:
        return plan, Path(*directory.parts[: -len(parts)])
    moved = {"output_path": str(directory.parent), "workspace": directory.name}
    return plan.model_copy(update=moved), directory.parent


def _study(directory: Path) -> str:
    """The uid of the study; a workspace without a mark never ran anything and gets a new one."""
    file = directory / workspace.INFO / workspace.MARK
    try:
        return Mark.model_validate(json.loads(file.read_bytes())).study
    except FileNotFoundError:
        return str(uuid.uuid4())
    except (OSError, ValueError) as error:
        raise CliError(
            Exit.CANNOT_RUN, f"{file}: expected the mark that an agent writes, found something else"
        ) from error
