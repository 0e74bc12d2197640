"""``merlin run --clone``: repositories that the site can't reach travel with the study."""

import base64
import io
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from merlin_cli import run, submit
from merlin_cli.exits import CliError, Exit
from merlin_study.bundle import unpack
from merlin_study.errors import SpecError
from tests.cli.test_cli_submit import Recorder

SPEC = """
description: {name: needy, description: d}
env:
  variables: {HUB: %s}
  dependencies: {paths: [{name: DATA, path: data}], git: [{name: LIB, path: libs, url: $(HUB)/lib, tag: v1}]}
study: [{name: a, description: d, run: {cmd: "sh $(LIB)/bin/tool.sh $(DATA)"}}]
"""


def _git(*words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *words], check=True, timeout=180)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Where a repository of two commits is, the first with the tag v1."""
    library = tmp_path / "hub" / "lib"
    (library / "bin").mkdir(parents=True)
    tool = library / "bin" / "tool.sh"
    tool.write_text("echo one\n")
    tool.chmod(0o755)
    _git("init", "-q", str(library))
    _git("-C", str(library), "add", ".")
    _git("-C", str(library), "commit", "-qm", "one")
    _git("-C", str(library), "tag", "v1")
    tool.write_text("echo two\n")
    _git("-C", str(library), "commit", "-qam", "two")
    return library.parent


def submitted(folder: Path, text: str, *, bundle: bool = True) -> Recorder:
    file, cluster = folder / "needy.yaml", Recorder()
    file.write_text(text)
    submit.submit(run.Request(str(file), clone=True, bundle=bundle), Console(file=io.StringIO()), cluster)
    return cluster


def test_what_is_checked_out_travels_without_its_history(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its tag, and executable; paths are still looked for on the site, and no step clones."""
    monkeypatch.chdir(tmp_path)
    cluster = submitted(tmp_path, SPEC % hub)
    [(_, body)] = cluster.created
    spec = body["spec"]
    assert spec["env"]["variables"]["LIB"] == "$(SPECROOT)/merlin-clones/LIB"
    assert spec["env"]["dependencies"] == {"paths": [{"name": "DATA", "path": f"{tmp_path}/data"}]}
    [archive] = [each for each in spec["files"] if each.get("archive")]
    packed = b"".join(base64.b64decode(cluster.parts[name]["binaryData"]["part"]) for name in archive["configMaps"])
    assert [(each.path, each.executable, each.data) for each in unpack(packed)] == [
        ("merlin-clones/LIB/bin/tool.sh", True, b"echo one\n")
    ]
    assert "is not there now" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("tag: v1", "tag: v9", "env.dependencies.git[0]: can't check out tags/v9 of"),
        ("/lib,", "/none,", "env.dependencies.git[0]: can't clone"),
    ],
)
def test_what_can_not_be_cloned_is_told_and_nothing_is_submitted(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CliError) as caught:
        submitted(tmp_path, (SPEC % hub).replace(old, new))
    assert (caught.value.code, says in str(caught.value)) == (Exit.CANNOT_RUN, True)


def test_an_address_that_nothing_defines_is_refused_before_git_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"git\[0\]\.url: .* holds a token that no variable defines"):
        submitted(tmp_path, (SPEC % "/x").replace("$(HUB)", "$(HUBB)"))


def test_bringing_files_and_bringing_none_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(CliError) as caught:
        submitted(tmp_path, SPEC % "/x", bundle=False)
    assert caught.value.code is Exit.USAGE
