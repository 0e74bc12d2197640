"""``merlin run``: from a file and the command line to a plan, and from there to this machine or to a cluster."""

import functools
import os
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from merlin_cli import dry, inputs, local, needs, pgen, source
from merlin_cli.exits import CliError, Exit
from merlin_cli.place import Place, stamp, taken
from merlin_study import environment, packed, workspace
from merlin_study import table as tables
from merlin_study.compiler import compile_study
from merlin_study.errors import Fault, SpecError
from merlin_study.plan import Plan
from merlin_study.spec import StudySpec
from merlin_study.table import Table
from merlin_study.variables import Variables
from merlin_study.writer import to_document


@dataclass(frozen=True)
class Request:
    """What the command line asks for; each field is an option."""

    spec: str
    vars: tuple[str, ...] = ()
    name: str | None = None
    namespace: str | None = None
    slots: int | None = None
    output_path: str | None = None
    samples_file: str | None = None
    pgen: str | None = None
    pargs: tuple[str, ...] = ()
    dry: bool = False
    bundle: bool = True
    clone: bool = False
    maestro: bool = False
    rehearse: float | None = None

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
            samples_file=arguments.samplesfile,
            pgen=arguments.pgen,
            pargs=tuple(arguments.pargs),
            dry=arguments.dry,
            bundle=not arguments.no_bundle,
            clone=arguments.clone,
            maestro=arguments.maestro,
            rehearse=arguments.rehearse,
        )


def run_locally(request: Request, console: Console) -> Exit:
    """``merlin run SPEC --local``, and ``--dry``, which is always written here.

    Raises:
        SpecError: the study was refused.
        CliError: wrong usage, or it could not run.
    """
    local.check_installed()
    if request.namespace or request.name:
        raise CliError(Exit.USAGE, "--namespace and --name are for a cluster; with --local or --dry leave them out")
    if request.clone:
        raise CliError(Exit.USAGE, "--clone is for a cluster; a local run clones by itself")
    overrides = source.variables(request.vars)
    found = source.read(request.spec)
    samples = inputs.samples_file(request.samples_file) if request.samples_file else None
    if samples is not None:
        found = inputs.with_samples(found, f"$(MERLIN_INFO)/{samples.name}")
    root = Path.cwd()
    place = Place(root)
    with place.kept():
        spec, table = parsed(request, found, overrides, output_path=wished_path(request), place=place)
        missing: list[Fault] | None = [] if request.dry or spec.batch.dry_run is True else None
        plan = needs.met(_fresh(spec, found, place, table, missing), root)
    say_readings(plan)
    job = local.Job(
        plan=plan,
        study=str(uuid.uuid4()),
        root=root,
        slots=request.slots or local.default_slots(),
        rehearse=spec.rehearse,
        furnish=functools.partial(
            inputs.furnish,
            samples=samples,
            document=to_document(spec),
            folder=found.path.parent if request.bundle else None,
        ),
    )
    if missing is not None:
        return dry.write(job, console, missing=[fault for fault in missing if fault.path != "spec.batch.dry_run"])
    return local.run(job, console)


def say_readings(plan: Plan) -> None:
    """Say which steps are not packed although the study asks for it, and why."""
    for note in packed.readings(plan):
        print(f"note: {note}", file=sys.stderr)


def wished_path(request: Request) -> str | None:
    """Return where the command line wants the workspace to lie, absolute; None where it does not say."""
    wish = request.output_path
    return None if wish is None else os.path.abspath(os.path.expanduser(wish))  # noqa: PTH100, PTH111 links stay as named


def parsed(
    request: Request,
    found: source.Source,
    overrides: Mapping[str, str | int],
    *,
    place: Place,
    output_path: str | None = None,
    elsewhere: bool = False,
) -> tuple[StudySpec, Table | None]:
    """Parse a file; the table of its parameters comes beside it where a generator made it, or where it is too large for a manifest.

    ``place`` is asked where a generator of Maestro's has to know it.

    Raises:
        SpecError: the study was refused.
        CliError: wrong usage, or the generator failed.
    """
    if request.maestro:
        found = source.replaced(found, "dialect", "Maestro")
    if request.rehearse is not None:
        found = source.replaced(found, "rehearse", request.rehearse)
    if request.pgen is None:
        if request.pargs:
            raise CliError(Exit.USAGE, "--pargs are the arguments of --pgen; name its file too")
        table = tables.too_large(source.here(found.raw, elsewhere=elsewhere).get("global.parameters"))
        if table is None:
            return source.parse(found, overrides, output_path=output_path, elsewhere=elsewhere), None
    plain = source.replaced(found, "global.parameters", {})
    spec = source.parse(plain, overrides, output_path=output_path, elsewhere=elsewhere)
    if request.pgen is not None:
        table = pgen.generate(request.pgen, request.pargs, _environment(spec, found, place))
    assert table is not None
    if faults := tables.faults(table, "global.parameters"):
        raise SpecError(faults)
    if not tables.fits_manifest(table):
        return spec, table
    whole = source.replaced(found, "global.parameters", tables.block(table))
    return source.parse(whole, overrides, output_path=output_path, quiet=True, elsewhere=elsewhere), None


def _environment(spec: StudySpec, found: source.Source, place: Place) -> pgen.Environment:
    """The study as a generator sees it: its variables expanded, numbers as numbers, and the two paths that Maestro adds."""
    maestro = spec.dialect == "Maestro"
    variables = Variables(spec, stamp=stamp(), base=workspace.safe_name(found.path.stem), spec_root=found.directory)
    given = {**spec.env.variables, **spec.env.labels, **spec.vars}
    named = {name: variables.expand(f"$({name})") if isinstance(value, str) else value for name, value in given.items()}
    if maestro:
        paths = {"OUTPUT_PATH": place.tell(spec, found), "SPECROOT": found.directory}
    else:
        paths = {"OUTPUT_PATH": variables.output_path or str(Path.cwd()), "SPECROOT": found.directory}
    needed = spec.env.dependencies
    names = [*(each.name for each in needed.paths), *(each.name for each in needed.git)]
    there = {name: variables.expand(f"$({name})") for name in names}
    return pgen.Environment({**named, **paths}, there, maestro=maestro)


def _fresh(
    spec: StudySpec, found: source.Source, place: Place, table: Table | None, missing: list[Fault] | None
) -> Plan:
    """Compile to a workspace that nobody has; two runs within a second would share one.

    Raises:
        SpecError: nobody knows where its workspace should lie.
        CliError: the study names its own run, and that exists.
    """
    root = str(Path.cwd())
    while True:
        if missing is not None:
            missing.clear()
        plan = compiled(spec, found, samples_directory=root, table=table, missing=missing, at=place.stamp)
        if environment.refers(plan.output_path):
            unset = f"{plan.output_path!r} holds a variable that is not set here; set it, or write the path out"
            raise SpecError([Fault("env.variables.OUTPUT_PATH", unset)])
        directory = workspace.study_root(plan, root)
        if place.directory is not None or not os.path.lexists(directory):
            return plan
        if spec.run_id is not None:
            raise taken(directory)
        time.sleep(0.1)


def compiled(
    spec: StudySpec,
    found: source.Source,
    *,
    samples_directory: str = "",
    table: Table | None = None,
    missing: list[Fault] | None = None,
    at: str = "",
) -> Plan:
    """Compile with all that this machine knows of the file; `compile_study` says what ``missing`` is, ``at`` is its stamp.

    Raises:
        SpecError: the study was refused.
    """
    return compile_study(
        spec,
        stamp=at or stamp(),
        base=workspace.safe_name(found.path.stem),
        spec_root=found.directory,
        samples_directory=samples_directory,
        original=found.text,
        table=table,
        missing=missing,
    )
