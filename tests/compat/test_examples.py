"""Every example of upstream's wheel is accounted for: compared, or refused by both; and the docs say so of each."""

import json
import subprocess
from pathlib import Path

from merlin_cli import source
from merlin_study.compiler import compile_study
from merlin_study.errors import SpecError
from tests.compat import running
from tests.compat.cases import ALLOWED, BLANK, DRY, RUN
from tests.compat.running import Case
from tests.ground.needs import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
LOADS = """\
import json, sys
from merlin.spec.specification import MerlinSpec

found = {}
for path in sys.argv[1:]:
    try:
        MerlinSpec.load_specification(path)
        found[path] = True
    except BaseException:
        found[path] = False
print(json.dumps(found))
"""


def names(cases: tuple[Case, ...]) -> set[str]:
    return {
        case.spec.removeprefix("workflows/").removesuffix(".yaml")
        for case in cases
        if case.spec.startswith("workflows/")
    }


def there(folder: str) -> list[Path]:
    found = sorted((running.environment() / "examples" / folder).glob("**/*.yaml"))
    assert found, folder
    return found


def test_every_example_is_compared_or_refused_by_both() -> None:
    """A release of upstream's that has more of them, or fewer, fails here."""
    workflows = running.environment() / "examples" / "workflows"
    every = {str(path.relative_to(workflows)).removesuffix(".yaml") for path in there("workflows")}
    assert names(DRY) | names(BLANK) == every
    assert not names(DRY) & names(BLANK)
    assert names(RUN) <= names(DRY)


def test_the_docs_say_of_each_example_what_is_compared() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    told = {row[0].strip("`"): row[1] for row in rows if len(row) == 3 and row[0].startswith("`")}
    expected = dict.fromkeys(names(BLANK), "refused by both")
    expected |= dict.fromkeys(names(DRY), "dry") | dict.fromkeys(names(RUN), "run and dry")
    assert told == expected


def test_the_docs_give_each_difference_its_reason() -> None:
    page = " ".join(PAGE.read_text().split())
    assert [row.reason for row in ALLOWED if row.reason not in page] == []


def test_what_upstreams_own_tests_load_or_not_is_taken_or_refused_here() -> None:
    """Its specifications in bad format, of which it takes some: unknown keys are no reason to refuse."""
    files = there("dev_workflows")
    command = [str(running.environment() / "bin" / "python"), "-c", LOADS, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=running.STARTED)
    theirs: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    assert {True, False} == set(theirs.values())
    ours = {str(path): taken(path) for path in files}
    differ = {Path(path).stem for path, loaded in theirs.items() if ours[path] != loaded}
    assert differ == {"bad_format9"}, "samples without a file: upstream loads them, and fails when it runs them"


def taken(path: Path) -> bool:
    """Whether a specification is read and planned."""
    try:
        spec = source.parse(source.read(str(path)), {}, quiet=True)
        compile_study(spec, stamp="20260101-000000")
    except SpecError:
        return False
    return True
