"""One table: whatever is asked of a study says the same under each of the three layouts, and its files come to the same."""

import re
from pathlib import Path

import pytest

from merlin_cli.__main__ import main
from tests.cli.test_cli_lean import counted, files
from tests.cli.test_cli_local import Merlin, outputs, place, spec
from tests.cli.test_cli_packed import OWN_DISK

__all__ = ["place"]

LAYOUTS = ("full", "lean", "packed")
STUDY = """\
description: {{name: table, description: fails in two ways until it is mended}}
outputs: {layout}
study:
  - name: sim
    description: prints, leaves a file, and fails for two samples
    run:
      cmd: |
        echo "hello $(N)"
        echo "care $(N)" >&2
        echo "$(N)" >> left
        echo "$(N)" >> "$(MERLIN_INFO)/runs"
        [ -e "$(MERLIN_WORKSPACE)/mended" ] || [ $(N) -ne 3 ] || exit 3
        [ -e "$(MERLIN_WORKSPACE)/mended" ] || [ $(N) -ne 4 ] || kill -9 $$
  - {{name: after, description: runs after its own sample, run: {{depends: [sim], cmd: 'echo "after $(N)" > left'}}}}
  - {{name: last, description: waits for all and has no samples, run: {{depends: [after_*], cmd: 'echo last | tee left'}}}}
merlin:
  samples:
    generate: {{cmd: 'seq 1 6 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""


def test_status_restart_logs_and_extract_are_the_same_under_each_layout(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> tuple[int, list[str], list[str]]:
        """What a command says, without what a layout may tell otherwise: in which order, and how it knows a task's end."""
        code = main(list(arguments))
        out, err = capfd.readouterr()
        if arguments[0] == "status":
            return code, counted(out.splitlines()), []
        heads = {line.partition(":")[0] for line in out.splitlines() if line.startswith("==> ")}
        return code, sorted((*heads, *re.findall("(?m)^(?!==> ).+", out))), sorted(err.splitlines())

    found = {}
    for layout in LAYOUTS:
        here = place / layout
        here.mkdir()
        code, lines, _ = Merlin(here, "run", spec(here, STUDY.format(layout=layout)), "--local", "--slots", "2").ended()
        directory = outputs(lines)
        asked = [
            (code, counted(lines)),
            said("status", str(directory)),
            said("logs", str(directory), "--steps", "sim", "--failed"),
            said("logs", str(directory), "--steps", "sim", "--task", "1"),
            said("logs", str(directory), "--sample", "2"),
        ]
        (directory / "mended").touch()
        code, lines, _ = Merlin(here, "restart", str(directory), "--local").ended()
        asked += [(code, counted(lines)), said("status", str(directory)), said("logs", str(directory))]
        asked.append(said("logs", str(directory), "--failed"))
        assert sorted((directory / "merlin_info/runs").read_text().split()) == list("12334456"), (
            "only what failed ran again"
        )
        assert main(["extract", str(directory)]) == code == 0
        found[layout] = (asked, {name: OWN_DISK.sub("DIR", text) for name, text in files(directory).items()})
    for layout in LAYOUTS[1:]:
        for mine, full in zip(found[layout][0], found["full"][0], strict=True):
            assert mine == full, layout
        assert found[layout][1] == found["full"][1], layout
    marks = [name for name in found["full"][1] if name.endswith("MERLIN_FINISHED")]
    assert len(marks) == 6 + 6 + 1, "and the files were looked at"
