"""``merlin-operator bootstrap``: makes a namespace's certificate authority, passwords and keys, once, as Secrets.

The chart runs it as a Job before each install and upgrade. What it makes belongs to nobody: Helm and GitOps tools neither
see it nor remove it. Four Secrets, each with one reader:

    NAME-keys        all that was ever drawn at random. No key in it ever changes: this is the one to back up.
    NAME-broker      for nats-server: certificate and passwords
    NAME-operator    for the operator: the broker's credentials, keys, the agents' public key
    NAME-agents      for agents: ``site.yaml``, the one file that they need

The last three follow from the first, so that a Job that was killed in between, or a Secret that was deleted, is repaired by
the next run. The first only ever grows: what a later version draws and an earlier one did not is added. The server's
certificate is the one thing that is made anew: where a name is missing in it, or less than a third of its time is left.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from merlin_operator import cluster
from merlin_study.sitefile import SiteFile

log = logging.getLogger(__name__)

OPERATOR_USER: Final = "operator"
AGENTS_USER: Final = "agents"
AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 825
RENEW_DAYS: Final = SERVER_DAYS // 3
"""A server's certificate with less than this left is made anew: upgrades come more often than that."""
_PAIR: Final = ("ca.crt", "ca.key")
_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
"""Of a server's certificate: servers of a cluster show it to each other, too."""
_LABELS: Final = {"app.kubernetes.io/part-of": "merlin", "app.kubernetes.io/managed-by": "merlin-bootstrap"}

Data = dict[str, bytes]


class Secrets(Protocol):
    """A namespace's Secrets."""

    def get(self, name: str) -> Data | None:
        """Return a Secret's data, None where there is none."""

    def create(self, name: str, data: Data) -> bool:
        """Make a Secret; False where somebody was faster."""

    def replace(self, name: str, data: Data) -> None:
        """Change the data of a Secret that was got before; fail where somebody changed it since."""


class KeysError(ValueError):
    """What was drawn once is not whole; the message says what to do."""


def bootstrap(
    store: Secrets, *, name: str, namespace: str, server: str, site: str, hosts: Sequence[str], now: datetime
) -> list[str]:
    """Make what is missing; return the names of the Secrets that were made or changed.

    Raises:
        KeysError: only one half of the certificate authority is there.
    """
    changed: list[str] = []
    keys, drawn = store.get(f"{name}-keys"), draw(now)
    if keys is None:
        if store.create(f"{name}-keys", drawn):
            changed.append(f"{name}-keys")
        keys = store.get(f"{name}-keys")
        assert keys is not None, "a Secret that was just made is there"
    if drawn.keys() - keys.keys():
        keys = _grown(keys, drawn, name=f"{name}-keys")
        store.replace(f"{name}-keys", keys)
        changed.append(f"{name}-keys")
    broker = store.get(f"{name}-broker") or {}
    wanted = {
        "broker": for_broker(keys, broker, hosts=hosts, now=now),
        "operator": for_operator(keys),
        "agents": for_agents(keys, namespace=namespace, server=server, site=site),
    }
    for suffix, data in wanted.items():
        found = broker if suffix == "broker" else store.get(f"{name}-{suffix}") or {}
        if found == data:
            continue
        if found or not store.create(f"{name}-{suffix}", data):
            store.replace(f"{name}-{suffix}", data)
        changed.append(f"{name}-{suffix}")
    return changed


def _grown(keys: Data, drawn: Data, *, name: str) -> Data:
    """Return the keys of an earlier version with those that it did not know."""
    there = [half for half in _PAIR if half in keys]
    if len(there) == 1:
        (missing,) = set(_PAIR) - set(there)
        raise KeysError(
            f"Secret {name}: expected {_PAIR[0]} and {_PAIR[1]}, found {there[0]} alone; put {missing} back from your "
            f"backup, or remove {there[0]} as well for a new authority, after which every agent needs a new site file"
        )
    return {**drawn, **keys}


def draw(now: datetime) -> Data:
    """Return everything that is drawn at random."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "merlin broker authority")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return {
        "ca.crt": _pem(certificate),
        "ca.key": _private_pem(key),
        # A letter first: nats-server reads a variable as it reads its configuration, and 1e5 would be a number there.
        "operator-password": b"p" + secrets.token_hex(24).encode(),
        "agents-password": b"p" + secrets.token_hex(24).encode(),
        "routes-password": b"p" + secrets.token_hex(24).encode(),
        "seal.key": secrets.token_hex(32).encode(),
        "operator-signing.key": secrets.token_hex(32).encode(),
        "agents-signing.key": secrets.token_hex(32).encode(),
    }


def for_broker(keys: Data, found: Data, *, hosts: Sequence[str], now: datetime) -> Data:
    """Return what nats-server gets; the certificate that it has stays while it serves."""
    authority = x509.load_pem_x509_certificate(keys["ca.crt"])
    made = {name: keys[name] for name in ("ca.crt", "operator-password", "agents-password", "routes-password")}
    if "tls.crt" in found and "tls.key" in found and _serves(found["tls.crt"], authority, hosts, now):
        return {**made, "tls.crt": found["tls.crt"], "tls.key": found["tls.key"]}
    signing = serialization.load_pem_private_key(keys["ca.key"], password=None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "merlin broker")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(signing.public_key())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now, SERVER_DAYS, most=authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .sign(signing, hashes.SHA256())
    )
    return {**made, "tls.crt": _pem(certificate), "tls.key": _private_pem(key)}


def for_operator(keys: Data) -> Data:
    """Return what the operator gets, as files that its flags name."""
    credentials = {"user": OPERATOR_USER, "password": keys["operator-password"].decode()}
    return {
        "ca.crt": keys["ca.crt"],
        "credentials.json": json.dumps(credentials).encode(),
        "seal.key": keys["seal.key"],
        "signing.key": keys["operator-signing.key"],
        "agents.pub": _public(keys["agents-signing.key"]).encode(),
    }


def for_agents(keys: Data, *, namespace: str, server: str, site: str) -> Data:
    """Return what agents get."""
    file = SiteFile(
        server=server,
        namespace=namespace,
        site=site,
        user=AGENTS_USER,
        password=keys["agents-password"].decode(),
        ca=keys["ca.crt"].decode(),
        seal_key=keys["seal.key"].decode(),
        signing_key=keys["agents-signing.key"].decode(),
        operator_key=_public(keys["operator-signing.key"]),
    )
    return {"site.yaml": file.encode().encode()}


def _serves(pem: bytes, authority: x509.Certificate, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a certificate is this authority's, has every name and purpose, and lasts until somebody upgrades again."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    fresh = certificate.not_valid_after_utc - now > timedelta(days=RENEW_DAYS)
    lasts = fresh or certificate.not_valid_after_utc >= authority.not_valid_after_utc  # no other would last longer
    return lasts and set(purposes) == set(_PURPOSES) and set(names) == {_general_name(host) for host in hosts}


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    *,
    most: datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of agents' hosts may be behind
        .not_valid_after(end if most is None else min(end, most))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(private: bytes) -> str:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private.decode())).public_key().public_bytes_raw().hex()


class ClusterSecrets:
    """`Secrets` of a real namespace."""

    def __init__(self, namespace: str) -> None:
        """Connect.

        Raises:
            cluster.ClusterConfigError: there is no cluster that we know of.
        """
        from kubernetes import client

        untyped: Any = client  # comes without types
        self._client, self._namespace = untyped, namespace
        self._api = untyped.CoreV1Api(untyped.ApiClient(cluster.connect()))
        self._versions: dict[str, str] = {}

    def get(self, name: str) -> Data | None:
        """See `Secrets`."""
        try:
            found = self._api.read_namespaced_secret(name, self._namespace, _request_timeout=cluster.TIMEOUT)
        except self._client.ApiException as error:
            if error.status == 404:
                return None
            raise
        self._versions[name] = found.metadata.resource_version
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    def create(self, name: str, data: Data) -> bool:
        """See `Secrets`."""
        try:
            self._api.create_namespaced_secret(
                self._namespace, self._body(name, data), _request_timeout=cluster.TIMEOUT
            )
        except self._client.ApiException as error:
            if error.status == 409:
                return False
            raise
        return True

    def replace(self, name: str, data: Data) -> None:
        """See `Secrets`. Two Jobs at once cannot mix their keys: the later one fails, and finds the keys when it tries again."""
        body = self._body(name, data)
        body["metadata"]["resourceVersion"] = self._versions.get(name)
        self._api.replace_namespaced_secret(name, self._namespace, body, _request_timeout=cluster.TIMEOUT)

    @staticmethod
    def _body(name: str, data: Mapping[str, bytes]) -> dict[str, Any]:
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        return {"metadata": {"name": name, "labels": _LABELS}, "type": "Opaque", "data": encoded}


def main(arguments: Sequence[str]) -> int:
    """Read the command line and run; the exit code is that of the Job's container."""
    parser = argparse.ArgumentParser(
        prog="merlin-operator bootstrap",
        description="Makes the Secrets of a namespace (certificate authority, passwords, keys) where they are missing.",
    )
    parser.add_argument("--namespace", required=True, help="where they lie")
    parser.add_argument("--name", required=True, help="how their names begin")
    parser.add_argument("--server", required=True, help="the broker's address in the site file of agents")
    parser.add_argument("--site", default="", help="the site's name in that file (default: as the agent finds it)")
    parser.add_argument("--host", required=True, action="append", help="a name or address in the broker's certificate")
    given = parser.parse_args(arguments)
    try:
        changed = bootstrap(
            ClusterSecrets(given.namespace),
            name=given.name,
            namespace=given.namespace,
            server=given.server,
            site=given.site,
            hosts=given.host,
            now=datetime.now(UTC),
        )
    except Exception as error:  # noqa: BLE001 the Job shows it, and tries again
        print(f"merlin-operator bootstrap: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"made or changed: {', '.join(changed) or 'nothing'}")  # noqa: T201 the Job's log
    return 0
