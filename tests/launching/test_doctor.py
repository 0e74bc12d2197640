"""What the doctor finds, on this machine and on made-up ones: a line for each thing, a cure for each fault."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from merlin_agent import doctor
from merlin_agent.__main__ import main
from merlin_agent.doctor import Finding, State
from merlin_agent.schedulers import Found
from merlin_study.seal import Keyring


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("MERLIN_AGENT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def nothing(command: Sequence[str]) -> None:
    """No command is there."""
    del command


def of(found: Found, *, usable: int, path: str = "/nowhere") -> dict[str, Finding]:
    findings = doctor.allocation_findings(found, usable=usable, environ={"PATH": path}, ask=nothing)
    return {finding.name: finding for finding in findings}


def test_a_healthy_job_gets_no_cures(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    job = Found("slurm", "7", ("n1", "n2"), 4, 8 << 30, ("0", "1"), 1800.0, host="n1")
    found = of(job, usable=4, path=str(tmp_path))
    assert {finding.state for finding in found.values()} == {State.GOOD}
    assert found["allocation"].found == "slurm 7, 2 hosts, 30 min left"
    assert found["memory"].found == "8.0 GiB of this host are the job's"
    assert found["launcher"].found == f"srun at {srun}, which does not say its version"


def test_an_agent_outside_of_any_job_is_told_so() -> None:
    assert of(Found(), usable=4)["allocation"].state is State.ODD


def test_an_agent_that_is_bound_to_a_part_of_the_host_is_told_so() -> None:
    """``srun -n1 merlin-agent`` gets one core, and the job's others would idle."""
    cores = of(Found("slurm", "7", cores=56), usable=1)["cores"]
    assert (cores.state, cores.found) == (State.ODD, "1 usable of the job's 56 here")
    assert "srun --overlap" in cores.cure


@pytest.mark.parametrize(
    ("scheduler", "cure"),
    [("slurm", "srun --overlap"), ("flux", "flux exec"), ("lsf", "jsrun -n 2"), ("pbs", "aprun -n 2")],
)
def test_a_host_that_is_none_of_the_job_s_is_wrong_with_the_cure(scheduler: str, cure: str) -> None:
    """The prompt of ``salloc``, and hosts that only launch: their cores are everybody's."""
    host = of(Found(scheduler, "7", ("n1", "n2")), usable=64)["host"]
    assert host.state is State.WRONG
    assert cure in host.cure
    assert "host" not in of(Found(scheduler, "7", ("n1", "n2"), host="n1"), usable=64)
    assert "host" not in of(Found(scheduler, "7"), usable=64), "nothing is known of its hosts"
    assert "host" not in of(Found(scheduler, "7", ("n1", "n2"), together=True), usable=64), "a launcher chose it"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BASH_ENV", "echo here", "what it reads as it starts prints"),
        ("BASH_ENV", "export AT=$$", "holds '$$'"),
        ("SHELLOPTS", "braceexpand:errexit", "SHELLOPTS=braceexpand:errexit"),
        ("BASH_FUNC_trap%%", "() { :; }", "a function is exported under the name of a builtin"),
        ("BASH_FUNC_ml%%", "() { :; }", ""),
    ],
)
def test_an_environment_in_which_no_bash_can_be_kept_warm_is_told(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    environ = {b"PATH": os.environb[b"PATH"], name.encode(): value.encode()}
    if name == "BASH_ENV":
        (tmp_path / "env.sh").write_text(f"{value}\n")
        environ[b"BASH_ENV"] = os.fsencode(tmp_path / "env.sh")
    found = doctor.warm_finding(environ)
    assert found.state is (State.ODD if said else State.GOOD)
    assert said in found.found


def test_a_launcher_that_is_not_there_is_wrong() -> None:
    launcher = of(Found("lsf", "7"), usable=4)["launcher"]
    assert launcher.state is State.WRONG
    assert "found no jsrun on PATH" in launcher.found


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = main(["doctor", *flags])
    return code, capsys.readouterr().out


def test_this_machine_with_a_broker_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Keyring.generate().save(tmp_path / ".merlin" / "keys")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"nats://127.0.0.1:{server.getsockname()[1]}"
        code, said = run(capsys, "--server", address, "--workspace", str(tmp_path))
    assert code == 0, said
    assert f"{address}: reached" in said
    assert f"{tmp_path}: writable" in said
    assert "bash steps share one a slot" in said


def test_every_fault_is_told_at_once_with_its_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Keyring.generate().save(tmp_path / ".merlin" / "keys")
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    flags = ("--server", f"nats://127.0.0.1:{port}", "--workspace", str(tmp_path / "file" / "below"))
    code, said = run(capsys, *flags)
    assert code == doctor.FAULTY
    assert "give --workspace a directory that this user may write" in said
    assert "check the address, and that compute nodes may reach it" in said
    assert said.splitlines()[-1].startswith("2 wrong, ")


def test_keys_that_are_not_there_name_whom_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "--workspace", str(tmp_path))
    assert code == doctor.FAULTY
    assert "ask who runs the cluster for `merlin site credentials`" in said
