"""Which addresses are taken, and the one file that says everything to an agent."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from merlin_study import seal, sitefile, transport

KEYS = seal.Keyring.generate()


def a_site_file(**changes: Any) -> dict[str, Any]:
    """The content of one."""
    fields = {
        "merlin_site": 1, "server": "tls://nats.example.org:4222", "namespace": "team", "site": "quartz", "user": "agents",
        "password": "SECRET", "ca": "", "seal_key": "5e" * 32, "signing_key": "51" * 32,
        "operator_key": KEYS.signing_key.public_key().public_bytes_raw().hex(),
    }  # fmt: skip
    return {name: value for name, value in (fields | changes).items() if value is not None}


@pytest.mark.parametrize(
    "server", ["tls://example.org:4222", "nats://127.0.0.1:1", "nats://localhost:1", "nats://[::1]:1", "127.0.0.2:4222"]
)
def test_tls_or_this_host(server: str) -> None:
    transport.check(server)


@pytest.mark.parametrize(
    "server",
    ["nats://example.org:4222", "example.org", "nats://192.0.2.1:1", "ws://example.org", "tls://a:1,nats://b:1"],
)
def test_a_password_in_the_clear_is_refused_with_the_cure(server: str) -> None:
    with pytest.raises(transport.TransportError, match="use TLS"):
        transport.check(server)
    transport.check(server, insecure=True)


def test_tls_checks_names_and_is_new_enough() -> None:
    options = transport.options("tls://example.org:4222", user="agents")
    context = options["tls"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert options["tls_handshake_first"] is True
    assert options["inbox_prefix"] == "_INBOX_agents"
    assert transport.options("nats://127.0.0.1:4222") == {"inbox_prefix": "_INBOX"}


def test_what_is_no_authority_is_refused() -> None:
    with pytest.raises(transport.TransportError, match="expected a certificate authority in PEM"):
        transport.options("tls://x:1", ca="rubbish")


def test_a_site_file_comes_back_and_shows_no_secret() -> None:
    found = sitefile.parse(a_site_file())
    assert sitefile.parse(json.loads(found.encode())) == found
    assert "SECRET" not in repr(found)
    assert "5e" * 32 not in repr(found)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"password": None}, "password: Field required"),
        ({"password": 5}, "password: Input should be a valid string"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        ({"merlin_site": 2}, "merlin_site: Input should be 1"),
        ({"seal_key": "5eSECRET"}, "a key: expected 32 bytes in hexadecimal"),
        ({"operator_key": "51"}, "a key: expected 32 bytes in hexadecimal, found 1"),
    ],
)
def test_a_site_file_with_a_fault_is_explained_and_never_quoted(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(sitefile.SiteFileError) as raised:
        sitefile.parse(a_site_file(**changes)).keyring()
    assert says in str(raised.value)
    assert "SECRET" not in f"{raised.value}{raised.value.__cause__ or ''}"


def test_a_mounted_secret_is_private_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's file that the pod's group may read, read by somebody else than root: as Kubernetes mounts a Secret."""
    path = tmp_path / "key"
    path.touch()

    def judged(mode: int, *, owner: int, reader: int) -> bool:
        path.chmod(mode)
        monkeypatch.setattr(os, "geteuid", lambda: reader)
        fields = list(path.stat())
        fields[4] = owner
        return seal.open_to_others(os.stat_result(fields))

    assert not judged(0o600, owner=1, reader=1)
    assert not judged(0o440, owner=0, reader=65532)
    assert judged(0o440, owner=1, reader=1)
    assert judged(0o440, owner=0, reader=0)
    assert judged(0o460, owner=0, reader=65532)
    assert judged(0o444, owner=0, reader=65532)
