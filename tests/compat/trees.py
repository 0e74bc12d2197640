"""A study's directory as data that two runs have in common, and what differs between two of them."""

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from merlin_cli import tally
from merlin_study import loader, scalars
from merlin_study.geometry import Geometry
from merlin_study.outcome import Outcome
from merlin_study.plan import INFO_STEP
from merlin_study.workspace import Layout
from tests.compat.running import Run

_STAMP: Final = re.compile(r"_(\d{8}-\d{6})$")
_PROVENANCE: Final = (".partial.yaml", ".expanded.yaml")
STATUS: Final = "MERLIN_STATUS.json"


@dataclass(frozen=True)
class Difference:
    """One place where two trees differ: a path below the study, and what each side has (None: nothing)."""

    path: str
    theirs: str | None
    ours: str | None

    def __str__(self) -> str:
        """Both sides under each other."""
        return f"{self.path}\n    upstream: {self.theirs!r}\n    ours:     {self.ours!r}"


def read(run: Run) -> dict[str, str]:
    """Every path below the study, directories with a slash at their end, with its text.

    What necessarily differs between two runs is named instead: the study's own directory, where the command was given, the
    home directory and the time.
    """
    study = run.study
    if study is None:
        return {}
    stamp = _STAMP.search(study.name)
    assert stamp, study
    names = {str(study): "/STUDY", str(run.here): "/HERE", str(run.home): "/HOME", stamp[1]: "STAMP"}
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(study):
        for name in folders:
            found[f"{(Path(folder) / name).relative_to(study)}/"] = ""
        for name in files:
            file = Path(folder) / name
            text = file.read_bytes().decode("utf-8", "surrogateescape")
            for before, after in names.items():
                text = text.replace(before, after)
            found[str(file.relative_to(study))] = text
    found["(name)"] = study.name.removesuffix(stamp[0])
    found["(place)"] = str(study.parent).replace(str(run.here), "/HERE").replace(str(run.home), "/HOME")
    return found


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Iterator[Difference]:
    """What differs, line by line where both have as many lines, value by value in provenance files."""
    for path in sorted({*theirs, *ours}):
        one, other = theirs.get(path), ours.get(path)
        if one is None or other is None:
            yield Difference(path, one, other)
        elif one != other:
            yield from _texts(path, one, other)


def _texts(path: str, one: str, other: str) -> Iterator[Difference]:
    if path.endswith(_PROVENANCE):
        yield from _values(
            path, _plain(loader.load_yaml(one, source=path)), _plain(loader.load_yaml(other, source=path))
        )
        return
    lines, others = one.splitlines(), other.splitlines()
    if len(lines) != len(others) or lines == others:
        yield Difference(path, one, other)
    else:
        yield from (Difference(path, a, b) for a, b in zip(lines, others, strict=True) if a != b)


def _values(path: str, one: Any, other: Any) -> Iterator[Difference]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            yield from _values(f"{path}:{key}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        if path.endswith(":default_worker:steps"):  # upstream makes it from a set
            one, other = sorted(one), sorted(other)
        for at, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _values(f"{path}[{at}]", a, b)
    elif _spelled(one) != _spelled(other):
        yield Difference(path, _shown(one), _shown(other))


def _spelled(value: Any) -> str | None:
    """A scalar's text: that is all that becomes of it, and upstream's dumper leaves out the quotes of a string like 010."""
    return value if value is None else scalars.spell(value)


def _shown(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _plain(value: Any) -> Any:
    """What is empty is not there, and blanks at a text's end are the dumper's."""
    match value:
        case dict():
            kept = {key: _plain(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item is not None} or None
        case list():
            return [_plain(item) for item in value] or None
        case str():
            return "\n".join(line.rstrip() for line in value.rstrip().splitlines()) or None
        case _:
            return value


def their_outcomes(run: Run) -> dict[str, str]:
    """Each task's directory, with the code that upstream's status files have for it."""
    assert run.study is not None
    found: dict[str, str] = {}
    for file in run.study.rglob(STATUS):
        for step in json.loads(file.read_text()).values():
            for name, entry in step.items():
                if isinstance(entry, dict) and "return_code" in entry:
                    found[name.rstrip("/")] = str(entry["return_code"])
    return found


def our_outcomes(run: Run) -> dict[str, Outcome]:
    """Each task's directory, with its outcome."""
    assert run.study is not None
    plan = tally.read_plan(run.study)
    folded = tally.of_workspace(plan, run.study)
    layout = Layout("", Geometry(plan, folded.samples.count if folded.samples else 0))
    found: dict[str, Outcome] = {}
    for at, step in enumerate(plan.steps):
        if step.name == INFO_STEP:
            continue
        for (outcome, _), bits in folded.steps[at].over.items():
            for task in range(layout.geometry.total(at)):
                if task in bits:
                    found[layout.task_dir(at, task).lstrip("/")] = outcome
    return found


def matches(path: str, pattern: str) -> bool:
    """Whether a path fits a pattern of the shell's; brackets stand for themselves."""
    return fnmatch.fnmatchcase(path, pattern.replace("[", "[[]"))
