"""Whether a Study can run: its specification compiled, or the faults that its author has to cure.

Pure. A Study that was accepted once stays accepted: its science is immutable, so only an operational switch (``suspend``,
``priority`` …) can have changed. A switch that is not built yet is then told as a warning, since neither stopping the
study nor ignoring the switch would be what its user wants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from merlin_operator.board import Submission
from merlin_operator.control import Switches, faults, switches_of
from merlin_study import packed, workers
from merlin_study import table as tables
from merlin_study.compiler import compile_study
from merlin_study.errors import Fault, SpecError
from merlin_study.notyet import not_yet
from merlin_study.parse import parse_spec
from merlin_study.plan import Plan

SWITCHES: Final = frozenset(
    {
        *("suspend", "cancel", "priority", "maxInFlight", "purge", "restart"),
        *("ttlSecondsAfterFinished", "deletionPolicy", "rehearse"),
    }
)
"""What may change in an accepted Study. No plan depends on it, or the study could not be compiled to the same one again."""

Directory = tuple[str, str]
"""The ``output_path`` and ``workspace`` of a plan."""
_STAMPED: Final = re.compile(r"[0-9]{8}-[0-9]{6}(-[0-9]+)?$")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A plan, or faults; ``warnings`` tells switches that ask for what is not there, ``notes`` what its author should know."""

    plan: Plan | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    site: str = ""
    switches: Switches = field(default_factory=Switches)


def accepted(status: Mapping[str, Any]) -> bool:
    """Whether a Study's status says that it was accepted."""
    conditions = status.get("conditions") or ()
    return any(each.get("type") == "Accepted" and each.get("status") == "True" for each in conditions)


def judge(submission: Submission, table: bytes | None = None, *, taken: Collection[Directory] = ()) -> Verdict:
    """Return what becomes of a Study as it was handed in.

    Args:
        submission: the Study.
        table: the file that it names as ``parametersFrom``.
        taken: directories of other studies, which a new one does not get.
    """
    missing: tuple[Fault, ...] = ()
    switches = Switches()
    try:
        whole, _ = parse_spec(submission.spec)
        missing = tuple(not_yet(whole))
        if missing and not accepted(submission.status):
            return Verdict(faults=missing)
        switches = switches_of(submission.spec)
        science, _ = parse_spec({key: value for key, value in submission.spec.items() if key not in SWITCHES})
        notes = workers.of_spec(science).warnings if science.merlin.resources.workers else ()
        if switches.rehearse is not None:
            notes = (*notes, f"a rehearsal: each task is reported as done after {switches.rehearse:g} s, none is run")
        parameters = None if table is None else tables.decode(table)
        plan = _compiled(
            lambda stamp: compile_study(science, stamp=stamp, table=parameters),
            "" if science.run_id else str(submission.status.get("workspace", "")),
            submission.created,
            taken=() if science.run_id or accepted(submission.status) else taken,
        )
        notes = (*notes, *map(str, packed.readings(plan)))
        warnings = (*missing, *faults(switches, plan))
        return Verdict(plan, warnings=warnings, notes=notes, site=science.site or "", switches=switches)
    except SpecError as error:
        return Verdict(faults=error.faults, warnings=missing, switches=switches)
    except tables.TableError as error:
        return Verdict(faults=(Fault("spec.parametersFrom", str(error)),), warnings=missing, switches=switches)


def directory(plan: Plan) -> Directory:
    """Return where a study lies, as far as its plan tells."""
    return plan.output_path, plan.workspace


def _compiled(
    compile_with: Callable[[str], Plan], workspace: str, created: float, *, taken: Collection[Directory]
) -> Plan:
    """Compile with the stamp that the study's ``workspace`` has, else with its creation; where that is taken, and a number behind it.

    Studies of one specification that are created together would share a directory otherwise; a local run waits for the next second.
    """
    if (known := _STAMPED.search(workspace)) is not None:
        return compile_with(known[0])
    stamp = _stamp(created)
    plan = compile_with(stamp)
    if directory(plan) not in taken:
        return plan
    numbered = re.compile(re.escape(plan.workspace) + r"-([0-9]+)")
    others = (numbered.fullmatch(below) for at, below in taken if at == plan.output_path)
    return compile_with(f"{stamp}-{max((int(each[1]) for each in others if each), default=1) + 1}")


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d-%H%M%S")


def redirect(submission: Submission, plan: Plan) -> Verdict:
    """Return what the switches of a Study ask for that runs by ``plan``; its science, and the table it names, stay unread."""
    try:
        spec, _ = parse_spec(submission.spec)
    except SpecError as error:
        return Verdict(faults=error.faults)
    switches = switches_of(submission.spec)
    return Verdict(plan, warnings=(*not_yet(spec), *faults(switches, plan)), switches=switches)
