"""The command line itself: what each wrong word is answered with, and by which exit code."""

from pathlib import Path

import pytest

from merlin_cli import upstream
from merlin_cli.__main__ import main
from merlin_cli.exits import Exit

SPEC = """\
description: {name: tiny, description: a test}
study:
  - name: one
    description: says a word
    run: {cmd: echo word}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SPEC)
    return file


def exit_code(*arguments: str) -> int:
    """Run the command; argparse ends by itself."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(str(ended.code))


def test_without_a_command_the_help_is_shown_and_the_code_is_1_as_upstream(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code() == 1
    assert "usage: merlin" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == Exit.OK
    assert capsys.readouterr().out == "merlin 0.1.0\n"


@pytest.mark.parametrize("command", upstream.COMMANDS)
def test_a_command_of_upstream_is_answered_in_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "x.yaml", "--echo") == Exit.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"merlin: '{command}' is not supported yet; ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("flag", upstream.RUN_FLAGS)
def test_a_flag_of_upstream_is_answered_and_not_ignored(
    flag: str, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("run", str(spec), "--local", flag, "value") == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"merlin run: {flag} is not supported yet; ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["nonsense"], "invalid choice: 'nonsense'", id="unknown command"),
        pytest.param(["run"], "the following arguments are required: SPEC", id="no spec"),
        pytest.param(["run", "absent.yaml", "--local"], "there is no file absent.yaml", id="no such file"),
        pytest.param(["run", "{spec}", "--loc"], "unrecognized arguments: --loc", id="no abbreviations"),
        pytest.param(["run", "{spec}", "--local", "--slots", "0"], "from 1 to 4096, found '0'", id="no slots"),
        pytest.param(["run", "{spec}", "--local", "--name", "x"], "are for a cluster", id="name of an object"),
        pytest.param(["run", "{spec}", "--local", "--vars", "A"], "exactly one '='", id="no value"),
        pytest.param(["run", "{spec}", "--local", "--vars", "A=1=2"], "exactly one '='", id="two values"),
        pytest.param(["run", "{spec}", "--local", "--vars", "$(A)=1"], "holds no '$'", id="a token as name"),
        pytest.param(["run", "{spec}", "--local", "--vars", "ABSENT=1"], "nowhere mentions ABSENT", id="unknown name"),
        pytest.param(["run", "{spec}", "-o", "x"], "are for --local", id="output path in a cluster"),
        pytest.param(["restart", ".", "--slots", "1"], "--slots is for --local", id="restart in a cluster"),
        pytest.param(["restart", ".", "--local"], "no workspace of a study", id="restart of no workspace"),
        pytest.param(["status", "."], "no workspace of a study", id="status of no workspace"),
        pytest.param(["status", "absent/"], "no file or directory absent/; give one", id="status of nothing"),
    ],
)
def test_wrong_usage_is_told_with_code_2(
    arguments: list[str],
    expected: str,
    spec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(nowhere, str(Path(__file__).with_name("kubeconfig-absent")))
    assert exit_code(*(argument.format(spec=spec) for argument in arguments)) == Exit.USAGE
    assert expected in capsys.readouterr().err


def test_a_refused_study_shows_every_fault_path_first_with_code_1(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.write_text(SPEC.replace("cmd: echo word", "depends: [two]") + "merlin: {samples: {column_labels: [A]}}\n")
    assert exit_code("run", str(spec), "--local") == Exit.REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "merlin: the study was refused, 3 faults:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "spec.study[0].run.cmd",
        "spec.study[0].run.depends[0]",
        "spec.merlin.samples.file",
    ]


def test_an_unknown_key_is_dropped_with_a_warning(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC + "monitor: {}\n")
    assert exit_code("convert", str(spec)) == Exit.OK
    said = capsys.readouterr()
    assert "monitor" not in said.out
    assert "warning: spec.monitor: unknown key, dropped" in said.err


def test_info_tells_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("info") == Exit.OK
    said = capsys.readouterr().out
    for part in ("Python", "merlin-cli", "merlin-study", "merlin-agent", "nats-server"):
        assert part in said
