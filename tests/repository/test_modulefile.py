"""The modulefile, read by a Tcl that knows only the words of both Environment Modules and Lmod that it may use."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "agent" / "modulefiles" / "merlin-agent"
VERSION = (ROOT / "agent" / "pyproject.toml").read_text().split('version = "')[1].split('"')[0]
READER = """\
foreach word {conflict prepend-path setenv module-whatis} {
    proc $word {args} [string map [list WORD $word] {puts "WORD [join $args { }]"}]
}
source [lindex $argv 0]
ModulesHelp
"""


def loaded(tmp_path: Path, **environ: str) -> list[str]:
    """What the modulefile has set, in its order."""
    (tmp_path / "reader.tcl").write_text(READER)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MERLIN_")}
    done = subprocess.run(
        ["tclsh", str(tmp_path / "reader.tcl"), str(MODULES / VERSION)],
        env={**kept, **environ}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "merlin-agent doctor" in done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("module-whatis ")]


def test_the_modulefile_puts_the_command_alone_on_path(tmp_path: Path) -> None:
    assert loaded(tmp_path) == ["conflict merlin-agent", f"prepend-path PATH /opt/merlin-agent/{VERSION}/command"]


def test_another_prefix_and_the_settings_there_count(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("site: here\n")
    assert loaded(tmp_path, MERLIN_AGENT_PREFIX=str(tmp_path)) == [
        "conflict merlin-agent",
        f"prepend-path PATH {tmp_path}/{VERSION}/command",
        f"setenv MERLIN_AGENT_MACHINE_CONFIG {tmp_path}/agent.yaml",
    ]


def test_each_modulefile_begins_with_its_mark_and_there_is_one_of_this_version() -> None:
    assert [path.name for path in MODULES.iterdir()] == [VERSION]
    assert (MODULES / VERSION).read_text().startswith("#%Module1.0\n")


def test_the_command_works_through_the_link_that_the_modulefile_expects(tmp_path: Path) -> None:
    (tmp_path / "command").mkdir()
    (tmp_path / "command" / "merlin-agent").symlink_to(Path(sys.executable).with_name("merlin-agent"))
    done = subprocess.run(
        [str(tmp_path / "command" / "merlin-agent"), "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"merlin-agent {VERSION}\n"
