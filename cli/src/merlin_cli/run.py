"""``merlin run``: from a file and the command line to a plan, and from there to this machine or to a cluster."""

import os
import time
import uuid
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from merlin_cli import local, source
from merlin_cli.exits import CliError, Exit
from merlin_study import workspace
from merlin_study.compiler import compile_study
from merlin_study.plan import Plan
from merlin_study.spec import StudySpec


@dataclass(frozen=True)
class Request:
    """What the command line asks for; each field is an option."""

    spec: str
    vars: tuple[str, ...] = ()
    name: str | None = None
    namespace: str | None = None
    slots: int | None = None
    output_path: str | None = None

    @classmethod
    def of(cls, arguments: Namespace) -> "Request":
        """Take the options of ``merlin run``."""
        return cls(
            spec=arguments.spec,
            vars=tuple(arguments.vars),
            name=arguments.name,
            namespace=arguments.namespace,
            slots=arguments.slots,
            output_path=arguments.output_path,
        )


def run_locally(request: Request, console: Console) -> Exit:
    """``merlin run SPEC --local``.

    Raises:
        SpecError: the study was refused.
        CliError: wrong usage, or it could not run.
    """
    local.check_installed()
    if request.namespace or request.name:
        raise CliError(Exit.USAGE, "--namespace and --name are for a cluster; with --local leave them out")
    overrides = source.variables(request.vars)
    found = source.read(request.spec)
    if request.output_path is None:
        output_path = source.home_expanded(found, overrides)
    else:
        output_path = os.path.abspath(os.path.expanduser(request.output_path))  # noqa: PTH100, PTH111 links stay as named
    spec = source.parse(found, overrides, output_path=output_path)
    root = Path.cwd()
    plan = _fresh(spec, found, root)
    job = local.Job(plan=plan, study=str(uuid.uuid4()), root=root, slots=request.slots or local.default_slots())
    return local.run(job, console)


def stamp() -> str:
    """The time of a submission as it ends a workspace's name."""
    return time.strftime("%Y%m%d-%H%M%S")


def _fresh(spec: StudySpec, found: source.Source, root: Path) -> Plan:
    """Compile to a workspace that nobody has; two runs within a second would share one.

    Raises:
        CliError: the study names its own run, and that exists.
    """
    while True:
        plan = compiled(spec, found, samples_directory=str(root))
        directory = workspace.study_root(plan, str(root))
        if not os.path.lexists(directory):
            return plan
        if spec.run_id is not None:
            go_on = f"go on with it: merlin restart {directory} --local, or choose another runId"
            raise CliError(Exit.CANNOT_RUN, f"{directory} exists already; {go_on}")
        time.sleep(0.1)


def compiled(spec: StudySpec, found: source.Source, *, samples_directory: str = "") -> Plan:
    """Compile with all that this machine knows of the file.

    Raises:
        SpecError: the study was refused.
    """
    return compile_study(
        spec,
        stamp=stamp(),
        base=workspace.safe_name(found.path.stem),
        spec_root=found.directory,
        samples_directory=samples_directory,
        original=found.text,
    )
