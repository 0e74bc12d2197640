"""What an operator is told, in which order, and what it says where that cannot be used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from merlin_operator import __main__, config
from merlin_operator.engine import Engine
from merlin_study.seal import Keyring


def needed(tmp_path: Path) -> list[str]:
    return ["--namespace", "team", "--keys", str(tmp_path / "keys")]


def test_a_flag_beats_a_variable_and_a_variable_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERLIN_OPERATOR_LOST_AFTER", "40")
    monkeypatch.setenv("MERLIN_OPERATOR_HEARTBEAT", "4")
    found = config.parse([*needed(tmp_path), "--lost-after", "30"])
    assert (found.lost_after, found.heartbeat, found.presence) == (30, 4, 30)
    assert (found.timing.lost_after, found.timing.presence_stale) == (30, 90)


@pytest.mark.parametrize(
    ("http", "address"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), (":9090", ("0.0.0.0", 9090)), ("[::]:1", ("::", 1))],
)
def test_where_to_serve(tmp_path: Path, http: str, address: tuple[str, int]) -> None:
    assert config.parse([*needed(tmp_path), "--http", http]).address == address


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keys", "k"], "--namespace (or MERLIN_OPERATOR_NAMESPACE) is required"),
        (["--namespace", "n", "--keys", "k", "--heartbeat", "0"], "--heartbeat: Input should be greater than 0"),
        (["--namespace", "n", "--keys", "k", "--http", "8080"], "--http: String should match"),
        (["--namespace", "n", "--keys", "k", "--lost-after", "5"], "lost-after must exceed two heartbeats"),
        (["--namespace", "n", "--keys", "k", "--presence", "60"], "presence-stale must exceed two presences"),
        (["--namespace", "n", "--keys", "k", "--log-level", "loud"], "--log-level: Input should be"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_flag_ends_with_2() -> None:
    with pytest.raises(SystemExit, match="2"):
        config.parse(["--colour", "blue"])


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_credentials_are_a_token_or_a_user_with_a_password(tmp_path: Path) -> None:
    assert config.broker_options(None) == {}
    token = secret(tmp_path / "token", '{"token": "t"}')
    assert config.broker_options(token) == {"token": "t"}
    user = secret(tmp_path / "user", '{"user": "u", "password": "p"}')
    assert config.broker_options(user) == {"user": "u", "password": "p"}


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ('{"token": "t"}', 0o640, "is open to others (mode 0640); run: chmod 600"),
        ('{"token": "SECRET", "user": "u", "password": "SECRET"}', 0o600, 'expected {"token"'),
        ('{"user": "SECRET"}', 0o600, 'expected {"token"'),
        ("SECRET", 0o600, 'expected {"token"'),
        (None, 0o600, "can't read the credentials"),
    ],
)
def test_credentials_that_cannot_be_used_are_explained_and_never_quoted(
    tmp_path: Path, text: str | None, mode: int, message: str
) -> None:
    path = tmp_path / "credentials"
    if text is not None:
        secret(path, text, mode)
    with pytest.raises(config.CredentialsError) as raised:
        config.broker_options(path)
    assert message in str(raised.value)
    assert "SECRET" not in f"{raised.value}{raised.value.__cause__ or ''}"


def test_missing_keys_end_with_3_and_a_missing_cluster_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(needed(tmp_path)) == 3
    assert "seal.key" in capsys.readouterr().err
    Keyring.generate().save(tmp_path / "keys")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert __main__.main(needed(tmp_path)) == 4
    assert "no usable service account or kubeconfig" in capsys.readouterr().err


def test_help_names_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "merlin_operator", "--help"], capture_output=True, text=True, check=True
    )
    for name in config.Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_a_connection_is_tls_or_on_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The address is refused with 2 before anything is tried; the authority's file has to be there."""
    plain = [*needed(tmp_path), "--server", "nats://nats.example.org:4222"]
    Keyring.generate().save(tmp_path / "keys")
    assert __main__.main(plain) == 2
    assert "expected tls://" in capsys.readouterr().err
    assert config.connection(config.parse([*plain, "--insecure", "true"])) == {"inbox_prefix": "_INBOX"}
    user = secret(tmp_path / "user", '{"user": "operator", "password": "p"}')
    tls = [*needed(tmp_path), "--server", "tls://nats.example.org:4222", "--credentials", str(user)]
    found = config.connection(config.parse(tls))
    assert (found["user"], found["inbox_prefix"], found["tls_handshake_first"]) == ("operator", "_INBOX_operator", True)
    assert __main__.main([*tls, "--ca", str(tmp_path / "none")]) == 3
    assert "can't read the certificate authority" in capsys.readouterr().err


def test_every_setting_of_the_engine_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flag says and nothing reads would be a promise that is not kept."""
    Keyring.generate().save(tmp_path / "keys")
    nowhere = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(nowhere))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    said = {"window_seconds": 7.0, "quarantine_chunks": 9, "quarantine_seconds": 11.0}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]
    engine = __main__.assemble(config.parse([*needed(tmp_path), *flags])).engine
    assert isinstance(engine, Engine)
    assert {name: getattr(engine.config, name) for name in said} == said
