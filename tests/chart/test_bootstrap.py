"""The bootstrap Job: once, whole, and never again; what follows from its keys is repaired."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from merlin_operator import bootstrap
from merlin_study import sitefile
from merlin_study.seal import SealError, Signer
from tests.ground import ControlPlane

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOSTS = ["localhost", "127.0.0.1", "merlin-nats.team.svc"]
NAMES = ["merlin-keys", "merlin-broker", "merlin-operator", "merlin-agents"]


@dataclass
class Memory:
    """Secrets that fail after so many writes, as a Job does that is killed."""

    held: dict[str, bootstrap.Data] = field(default_factory=dict)
    writes_left: int = 1000

    def get(self, name: str) -> bootstrap.Data | None:
        """Return a copy."""
        found = self.held.get(name)
        return None if found is None else dict(found)

    def create(self, name: str, data: bootstrap.Data) -> bool:
        """Make it, unless it is there."""
        self._write()
        if name in self.held:
            return False
        self.held[name] = dict(data)
        return True

    def replace(self, name: str, data: bootstrap.Data) -> None:
        """Change it."""
        self._write()
        assert name in self.held
        self.held[name] = dict(data)

    def _write(self) -> None:
        if not self.writes_left:
            raise ConnectionError("killed")
        self.writes_left -= 1


def run(store: bootstrap.Secrets, **changes: Any) -> list[str]:
    """Run the Job."""
    given: dict[str, Any] = {
        "name": "merlin", "namespace": "team", "server": "tls://x:4222", "site": "", "hosts": HOSTS, "now": NOW,
    }  # fmt: skip
    return bootstrap.bootstrap(store, **(given | changes))


def test_it_makes_everything_once() -> None:
    store = Memory()
    assert run(store) == NAMES
    before = {name: dict(data) for name, data in store.held.items()}
    assert run(store) == []
    assert run(store, now=NOW + timedelta(days=300)) == []
    assert store.held == before


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_job_that_was_killed_is_finished_by_the_next(writes: int) -> None:
    """Whatever was written before stays; what follows belongs to it."""
    store = Memory(writes_left=writes)
    with pytest.raises(ConnectionError):
        run(store)
    before = {name: dict(data) for name, data in store.held.items()}
    store.writes_left = 1000
    run(store)
    assert sorted(store.held) == sorted(NAMES)
    assert before.items() <= store.held.items()


@pytest.mark.parametrize("gone", NAMES[1:])
def test_a_secret_that_was_deleted_comes_back_as_it_was(gone: str) -> None:
    """But for the server's certificate, which is made anew by the same authority."""
    store = Memory()
    run(store)
    before = store.held.pop(gone)
    assert run(store) == [gone]
    same = {key for key, value in before.items() if store.held[gone][key] == value}
    assert set(before) - same == ({"tls.crt", "tls.key"} if gone == "merlin-broker" else set())


def test_new_names_and_little_time_make_a_new_certificate() -> None:
    """And change nothing else."""
    store = Memory()
    run(store)
    before = store.held["merlin-broker"]
    assert run(store, hosts=[*HOSTS, "nats.example.org"]) == ["merlin-broker"]
    after = store.held["merlin-broker"]
    assert {key for key in before if before[key] != after[key]} == {"tls.crt", "tls.key"}
    names = x509.load_pem_x509_certificate(after["tls.crt"]).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "merlin-nats.team.svc", "nats.example.org"]
    late = NOW + timedelta(days=bootstrap.SERVER_DAYS - bootstrap.RENEW_DAYS + 1)
    assert run(store, hosts=[*HOSTS, "nats.example.org"], now=late) == ["merlin-broker"]


def ends(store: Memory) -> datetime:
    """When the server's certificate ends."""
    return x509.load_pem_x509_certificate(store.held["merlin-broker"]["tls.crt"]).not_valid_after_utc


def test_a_certificate_is_renewed_in_the_last_third_of_its_life() -> None:
    """By the same authority, so that site files stay valid; once, and then not again."""
    store = Memory()
    run(store)
    agents, first = dict(store.held["merlin-agents"]), ends(store)
    life = first - NOW
    assert run(store, now=NOW + life * 2 / 3 - timedelta(days=1)) == []
    late = NOW + life * 2 / 3 + timedelta(days=1)
    assert run(store, now=late) == ["merlin-broker"]
    assert ends(store) == late + life
    assert store.held["merlin-agents"] == agents
    assert run(store, now=late) == []


def test_no_certificate_outlives_its_authority() -> None:
    """In its last years a certificate ends with it, and is not made anew again and again."""
    store = Memory()
    run(store)
    end = NOW + timedelta(days=bootstrap.AUTHORITY_DAYS)
    late = end - timedelta(days=100)
    assert run(store, now=late) == ["merlin-broker"]
    assert ends(store) == end
    assert run(store, now=late) == []


@pytest.mark.parametrize("absent", [{"seal.key"}, {"agents-password", "agents-signing.key"}, {"ca.crt", "ca.key"}])
def test_a_key_that_an_earlier_version_did_not_draw_is_added(absent: set[str]) -> None:
    """The others stay, what follows from it is made, and the next run changes nothing."""
    store, whole = Memory(), Memory()
    run(whole)
    kept = {name: value for name, value in whole.held["merlin-keys"].items() if name not in absent}
    store.held["merlin-keys"] = dict(kept)
    run(store)
    keys = store.held["merlin-keys"]
    assert keys.keys() == whole.held["merlin-keys"].keys()
    assert kept.items() <= keys.items()
    assert store.held["merlin-agents"] == bootstrap.for_agents(keys, namespace="team", server="tls://x:4222", site="")
    assert run(store) == []


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_secret_of_an_earlier_version_gets_what_it_lacks(name: str) -> None:
    """Each of the three that pods read, without any one of its keys."""
    whole = Memory()
    run(whole)
    for absent in whole.held[name]:
        store = Memory({each: dict(data) for each, data in whole.held.items()})
        del store.held[name][absent]
        assert run(store) == [name]
        assert store.held[name].keys() == whole.held[name].keys()
        assert run(store) == []


@pytest.mark.parametrize(("lost", "left"), [("ca.key", "ca.crt"), ("ca.crt", "ca.key")])
def test_half_an_authority_is_refused_with_the_cure(lost: str, left: str) -> None:
    """A new half would belong to nothing, a new whole would shut out every agent unasked."""
    store = Memory()
    run(store)
    del store.held["merlin-keys"][lost]
    before = {name: dict(data) for name, data in store.held.items()}
    with pytest.raises(bootstrap.KeysError, match=f"found {left} alone; put {lost} back"):
        run(store)
    assert store.held == before


def test_a_secret_that_a_later_version_wrote_more_into_is_left_whole() -> None:
    """A release that was rolled back throws no key away."""
    store = Memory()
    run(store)
    store.held["merlin-keys"]["later.key"] = b"x"
    assert run(store) == []
    assert store.held["merlin-keys"]["later.key"] == b"x"


def test_what_is_no_certificate_is_replaced() -> None:
    store = Memory()
    run(store)
    store.held["merlin-broker"]["tls.crt"] = b"rubbish"
    assert run(store) == ["merlin-broker"]
    assert store.held["merlin-broker"]["tls.crt"].startswith(b"-----BEGIN CERTIFICATE-----")


def test_the_operator_and_an_agent_understand_each_other_and_only_so() -> None:
    """Each opens what the other signs in its role; nobody opens it as signed in another one."""
    store = Memory()
    run(store)
    agent = sitefile.parse(json.loads(store.held["merlin-agents"]["site.yaml"])).keyring()
    held = {name: value.decode() for name, value in store.held["merlin-operator"].items()}
    operator = type(agent).from_hex(seal=held["seal.key"], signing=held["signing.key"], agents=held["agents.pub"])
    for writer, role, other in ((operator, Signer.OPERATOR, Signer.AGENT), (agent, Signer.AGENT, Signer.OPERATOR)):
        envelope = writer.seal(b"x", scope="s", context="c")
        for reader in (operator, agent):
            assert reader.open(envelope, scope="s", context="c", signer=role) == b"x"
            with pytest.raises(SealError, match="not trusted as"):
                reader.open(envelope, scope="s", context="c", signer=other)


def test_agents_get_no_secret_of_the_operator_s() -> None:
    """Of all that was drawn, the site file holds the agents' own and the seal key."""
    store = Memory()
    run(store)
    text = store.held["merlin-agents"]["site.yaml"]
    held = {name for name, value in store.held["merlin-keys"].items() if name != "ca.crt" and value in text}
    assert held == {"agents-password", "seal.key", "agents-signing.key"}


def test_the_rights_of_its_role_are_enough(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a real API server, as the Job's ServiceAccount would be: made, found again, and repaired."""
    role = f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: bootstrap}}
rules:
- {{apiGroups: [""], resources: [secrets], verbs: [create]}}
- {{apiGroups: [""], resources: [secrets], resourceNames: {json.dumps(NAMES)}, verbs: [get, update]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: bootstrap}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: bootstrap}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}}]
"""
    tenant = control_plane.granted("tenant", role, may="create secrets", namespace=namespace)
    monkeypatch.setenv("KUBECONFIG", str(tenant))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    arguments = ["--namespace", namespace, "--name", "merlin", "--server", "tls://x:4222", "--host", "localhost"]
    assert bootstrap.main(arguments) == 0
    assert capsys.readouterr().out == f"made or changed: {', '.join(NAMES)}\n"
    assert bootstrap.main([*arguments, "--host", "other"]) == 0
    assert capsys.readouterr().out == "made or changed: merlin-broker\n"
    control_plane.kubectl("delete", "secret", "merlin-agents", "--namespace", namespace)
    assert bootstrap.main([*arguments, "--host", "other"]) == 0
    assert capsys.readouterr().out == "made or changed: merlin-agents\n"
    first, second = bootstrap.ClusterSecrets(namespace), bootstrap.ClusterSecrets(namespace)
    ours, theirs = first.get("merlin-keys"), second.get("merlin-keys")
    assert ours is not None
    assert theirs is not None
    first.replace("merlin-keys", ours | {"later.key": b"1"})
    with pytest.raises(Exception, match="409"):
        second.replace("merlin-keys", theirs | {"later.key": b"2"})
    assert first.get("merlin-keys") == ours | {"later.key": b"1"}
    assert bootstrap.main(["--namespace", "default", *arguments[2:]]) == 1
    assert "403" in capsys.readouterr().err
