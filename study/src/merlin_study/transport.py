"""How a connection to the broker is protected: TLS everywhere but on loopback, from its first byte.

The handshake comes before anything else is said (``handshake_first`` in nats-server's configuration). NATS's usual way is to
greet in the clear and to agree on TLS then, and a client that believes a forged greeting sends its password without any.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from merlin_study import subjects

TLS: Final = "tls"


class TransportError(ValueError):
    """An address that would carry secrets in the clear, or a certificate authority that is none."""


def check(server: str, *, insecure: bool = False) -> None:
    """Refuse addresses (several with commas between them) that are neither ``tls://`` nor on this host.

    Raises:
        TransportError: one is; the message says what to do.
    """
    for each in server.split(","):
        if not insecure and urlsplit(each).scheme not in (TLS, "wss") and not _on_loopback(each):
            raise TransportError(
                f"{each}: expected tls://, since the password would travel in the clear; use TLS (docs/chart.md), "
                "or accept that with --insecure"
            )


def options(server: str, *, user: str = "", ca: str = "") -> dict[str, Any]:
    """Return what `nats.connect` takes for an address: TLS, and the inboxes that are the user's own.

    Args:
        server: the address.
        user: the broker's user; empty where there is none.
        ca: the certificate authority in PEM; empty for those of the host.

    Raises:
        TransportError: ``ca`` is none.
    """
    found: dict[str, Any] = {"inbox_prefix": subjects.inbox(user)}
    if urlsplit(server.split(",", 1)[0]).scheme != TLS:
        return found
    return {**found, "tls": _context(ca), "tls_handshake_first": True}


def _context(ca: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca or None)
    except (ssl.SSLError, ValueError) as error:
        raise TransportError(f"expected a certificate authority in PEM, found something else: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _on_loopback(server: str) -> bool:
    host = urlsplit(server if "://" in server else f"nats://{server}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
