"""Where settings come from, and what is said where they make no sense."""

import json
import os
from pathlib import Path

import pytest

from merlin_agent import allocation, config
from merlin_agent.__main__ import main
from merlin_agent.config import ConfigError, Credentials
from merlin_agent.schedulers import Found
from merlin_study.seal import Keyring
from merlin_study.wire import AllocationFacts


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("MERLIN_AGENT_", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def load(*flags: str) -> config.Settings:
    """Load with the real environment."""
    return config.load(flags, os.environ)


def test_flags_count_before_variables_before_the_file_before_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each source is asked for each setting by itself."""
    file = tmp_path / "home" / ".merlin" / "agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("server: nats://file\nsite: file\nslots: 3\ndrain-grace: 7\nqueues: [a, b]\n")
    monkeypatch.setenv("MERLIN_AGENT_SITE", "variable")
    monkeypatch.setenv("MERLIN_AGENT_SLOTS", "4")
    found = load("--slots", "5")
    assert (found.server, found.site, found.slots, found.drain_grace) == ("nats://file", "variable", 5, 7.0)
    assert (found.queues, found.namespace) == (("a", "b"), "default")
    assert found.workspace == tmp_path
    assert found.keys == tmp_path / "home" / ".merlin" / "keys"


def test_a_machine_s_file_counts_where_the_user_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that its administrators keep for all users: /etc/merlin/agent.yaml, or where a modulefile says."""
    machine = tmp_path / "machine.yaml"
    machine.write_text("server: tls://nats.example.org\nsite: quartz\nidle-exit: 600\n")
    monkeypatch.setenv("MERLIN_AGENT_MACHINE_CONFIG", str(machine))
    (tmp_path / "mine.yaml").write_text("site: quartz-two\n")
    found = load("--config", "mine.yaml")
    assert (found.server, found.site, found.idle_exit) == ("tls://nats.example.org", "quartz-two", 600.0)
    machine.write_text("slotz: 3\n")
    with pytest.raises(ConfigError, match=rf"^{machine}: slotz: expected one of"):
        load("--config", "mine.yaml")
    machine.unlink()
    with pytest.raises(ConfigError, match=r"machine\.yaml: expected readable YAML or JSON, found: No such file"):
        load()


def test_queues_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks around them don't count."""
    assert load("--queues", "a, b,").queues == ("a", "b")
    monkeypatch.setenv("MERLIN_AGENT_QUEUES", "c,d")
    assert load().queues == ("c", "d")
    assert load("--queues", "").queues == ()


def test_another_file_may_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By flag or variable; then it has to be there."""
    (tmp_path / "mine.yaml").write_text("slots: 9\n")
    assert load("--config", "mine.yaml").slots == 9
    monkeypatch.setenv("MERLIN_AGENT_CONFIG", str(tmp_path / "mine.yaml"))
    assert load().slots == 9
    with pytest.raises(ConfigError, match=r"^none\.yaml: expected readable YAML or JSON, found: No such file"):
        load("--config", "none.yaml")


@pytest.mark.parametrize(
    ("flags", "variables", "text", "says"),
    [
        (("--slots", "0"), {}, "", "--slots: Input should be greater than or equal to 1, found 0"),
        ((), {"MERLIN_AGENT_SLOTS": "many"}, "", "MERLIN_AGENT_SLOTS: Input should be a valid integer"),
        ((), {}, "slotz: 3\n", "slotz: expected one of server, credentials, "),
        ((), {}, "slots: many\n", "slots: Input should be a valid integer"),
        ((), {}, "[1]\n", "expected keys with values, found list"),
        ((), {}, "a: [\n", "expected readable YAML or JSON, found: no YAML or JSON"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: tuple[str, ...],
    variables: dict[str, str],
    text: str,
    says: str,
) -> None:
    """The place first, then what was expected and found; exit code 2."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if text:
        file = tmp_path / "home" / ".merlin" / "agent.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(*flags)
    assert says in str(caught.value)
    assert caught.value.code == 2


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    """A file for its owner."""
    path.write_text(text)
    path.chmod(mode)
    return path


def test_credentials_are_a_token_or_a_user_with_a_password(tmp_path: Path) -> None:
    """As YAML or JSON."""
    assert config.load_credentials(None).as_options() == {}
    assert config.load_credentials(private(tmp_path / "a.json", '{"token": "t"}')) == Credentials(token="t")
    found = config.load_credentials(private(tmp_path / "b.yaml", "user: u\npassword: p\n"))
    assert found.as_options() == {"user": "u", "password": "p"}
    assert "p" not in repr(found).replace("repr", "").removeprefix("<merlin_agent.config.Credentials object at ")


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("token: t", 0o640, "expected mode 0600, found 0640; run: chmod 600 "),
        ("token: 12", 0o600, "expected token:, or user: and password:, as text, found token"),
        ("user: u", 0o600, "expected token:, or user: and password:, as text, found user"),
        ("", 0o600, "as text, found nothing"),
        ("secret: [", 0o600, "found: no YAML or JSON"),
    ],
)
def test_bad_credentials_are_named_without_being_quoted(tmp_path: Path, text: str, mode: int, says: str) -> None:
    """Exit code 3; the secret itself is in no message."""
    with pytest.raises(ConfigError) as caught:
        config.load_credentials(private(tmp_path / "c.yaml", text, mode))
    assert str(caught.value).startswith(str(tmp_path / "c.yaml"))
    assert says in str(caught.value)
    assert caught.value.code == 3


def test_each_kind_of_fault_has_its_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """2 usage, 3 keys and credentials, 4 workspace."""
    assert main(["--config", "none.yaml"]) == 2
    assert main(["--keys", "none"]) == 3
    Keyring.generate().save(tmp_path / "keys")
    assert main(["--keys", "keys", "--credentials", "none"]) == 3
    (tmp_path / "file").touch()
    assert main(["--keys", "keys", "--workspace", "file/below"]) == 4
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[1].startswith(f"merlin-agent: {tmp_path}/none/seal.key: ")
    assert said[1].endswith("copy the operator's keys there, or give --keys")
    with pytest.raises(SystemExit) as caught:
        main(["--slot", "3"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("found", "facts"),
    [
        (Found(), AllocationFacts()),
        (Found("slurm", "77"), AllocationFacts(scheduler="slurm", job_id="77")),
        (
            Found("slurm", "77", hosts=("n1", "n2"), seconds_left=600.0),
            AllocationFacts(scheduler="slurm", job_id="77", nodes=2, ends_at=1600.0),
        ),
    ],
)
def test_the_operator_is_told_what_was_found(found: Found, facts: AllocationFacts) -> None:
    assert allocation.facts(found, 1000.0) == facts


def test_what_the_allocation_decides() -> None:
    """Slots, site and the time that is left."""
    assert allocation.slots(Found("slurm", "77", cores=36), 64) == 36
    assert allocation.slots(Found("slurm", "77", cores=36), 2) == 2
    assert allocation.slots(Found(), 5) == 5
    assert allocation.site({"SLURM_CLUSTER_NAME": "quartz"}, "login1") == "quartz"
    assert allocation.site({}, "quartz-1188.site.example") == "quartz"
    assert allocation.site({}, "123") == "123"


def test_the_end_of_an_allocation_leaves_steps_time_to_end_and_the_agent_time_to_tell() -> None:
    clock = allocation.Clock(3600.0, 10_000.0)
    assert (clock.leaves_at(60.0), clock.steps_end, clock.seconds_left(9000.0)) == (9940.0, 9990.0, 990.0)
    assert clock.variables(9000.5) == {b"MERLIN_TIME_LEFT": b"989"}
    assert clock.variables(11_000.0) == {b"MERLIN_TIME_LEFT": b"0"}
    assert clock.leaves_at(0.0) == clock.steps_end, "what runs is never cut off untold"
    short = allocation.Clock(20.0, 10_000.0)
    assert (short.leaves_at(60.0), short.steps_end) == (9996.0, 9996.0)
    endless = allocation.Clock(allocation.FOREVER, allocation.FOREVER)
    assert (endless.leaves_at(60.0), endless.seconds_left(5.0), endless.variables(5.0)) == (
        float("inf"),
        float("inf"),
        {},
    )


SITE = {
    "merlin_site": 1, "server": "tls://nats.example.org:4222", "namespace": "team", "site": "quartz", "user": "agents",
    "password": "SECRET", "ca": "", "seal_key": "5e" * 32, "signing_key": "51" * 32,
    "operator_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
}  # fmt: skip


def test_a_site_file_says_everything(tmp_path: Path) -> None:
    """Server, namespace, site, who we are and the keys; any flag counts before it, and so does a directory of keys."""
    path = private(tmp_path / "site.yaml", json.dumps(SITE))
    found = load("--credentials", str(path))
    assert (found.server, found.namespace, found.site) == ("tls://nats.example.org:4222", "team", "quartz")
    credentials = config.load_credentials(found.credentials)
    assert credentials.as_options() == {"user": "agents", "password": "SECRET"}
    assert config.load_keys(found, credentials) is credentials.keys
    config.check_transport(found, credentials)
    other = load("--credentials", str(path), "--server", "tls://other:1", "--site", "mine", "--keys", "keys")
    assert (other.server, other.namespace, other.site) == ("tls://other:1", "team", "mine")
    Keyring.generate().save(tmp_path / "keys")
    assert config.load_keys(other, credentials) is not credentials.keys


def test_a_site_file_by_variable_or_from_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``credentials`` may be said wherever a setting may; an empty site stays the allocation's."""
    path = private(tmp_path / "site.yaml", json.dumps(SITE | {"site": ""}))
    file = tmp_path / "home" / ".merlin" / "agent.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"credentials: {path}\nnamespace: mine\n")
    assert (load().server, load().namespace) == (SITE["server"], "mine")
    file.unlink()
    monkeypatch.setenv("MERLIN_AGENT_CREDENTIALS", str(path))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ruby")
    assert (load().namespace, load().site) == ("team", "ruby")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"password": 5}, "password: Input should be a valid string"),
        ({"signing_key": "SECRET"}, "a key: expected 32 bytes"),
    ],
)
def test_a_bad_site_file_is_named_without_being_quoted(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = private(tmp_path / "site.yaml", json.dumps(SITE | changes))
    with pytest.raises(ConfigError, match="expected a site file") as caught:
        config.load_credentials(path)
    assert (says in str(caught.value), "SECRET" in str(caught.value), caught.value.code) == (True, False, 3)


def test_a_password_would_not_travel_in_the_clear(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An address that is neither TLS nor this host ends with 2, unless --insecure accepts it."""
    Keyring.generate().save(tmp_path / "keys")
    assert main(["--keys", "keys", "--server", "nats://nats.example.org:4222"]) == 2
    assert "--server nats://nats.example.org:4222: expected tls://" in capsys.readouterr().err
    config.check_transport(load("--server", "nats://nats.example.org:4222", "--insecure"), Credentials())
    assert main(["--keys", "keys", "--server", "tls://x:1", "--ca", "none"]) == 3
    private(tmp_path / "ca.pem", "rubbish")
    assert main(["--keys", "keys", "--server", "tls://x:1", "--ca", "ca.pem"]) == 2
    assert "expected a certificate authority in PEM" in capsys.readouterr().err


def test_a_setting_whose_value_is_doctor_asks_no_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--name", "doctor", "--keys", str(tmp_path / "none"), "--workspace", str(tmp_path / "doctor")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("merlin-agent: ")
