"""``env.dependencies`` before ``merlin run --local``: paths are looked for and repositories cloned, as upstream does.

In a cluster the study's first step does it, with the same script, where the tasks run.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from merlin_cli.exits import CliError, Exit
from merlin_study import dependencies, environment, workspace
from merlin_study.geometry import Geometry
from merlin_study.plan import DEPENDENCIES_STEP, Plan
from merlin_study.workspace import Layout, TaskTokens


def met(plan: Plan, root: Path) -> Plan:
    """See to what a study needs; return its plan without the step that would.

    Raises:
        CliError: a path is not there, or a repository can't be cloned; nothing of the study exists then.
    """
    if plan.steps[0].name != DEPENDENCIES_STEP:
        return plan
    layout = Layout(workspace.study_root(plan, str(root)), Geometry(plan, 0))
    tokens = TaskTokens(layout, 0, lambda text: environment.expand(text, os.environ, os.path.expanduser))
    script = tokens.render(tokens.cmd, combination=0, sample=0, values=())
    done = subprocess.run(["/bin/bash", "-c", script], cwd=root, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise CliError(Exit.CANNOT_RUN, done.stderr.strip() or f"env.dependencies: ended with {done.returncode}")
    return dependencies.without_step(plan)


def rooted(raw: Any, directory: Path) -> Any:
    """Return a specification's data with relative paths of dependencies below ``directory``, as upstream takes them."""
    match raw:
        case {"env": {"dependencies": {**needed}, **env}, **rest}:
            placed = {
                kind: [_rooted(each, directory) for each in block] if isinstance(block, list) else block
                for kind, block in needed.items()
            }
            return {**rest, "env": {**env, "dependencies": placed}}
        case _:
            return raw


def _rooted(block: Any, directory: Path) -> Any:
    match block:
        case {"path": str(path), **rest} if path and not path.startswith(("/", "~", "$")):
            return {**rest, "path": os.path.normpath(directory / path)}
        case _:
            return block
