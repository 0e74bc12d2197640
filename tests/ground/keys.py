"""Site files for tests that need an agent which could connect, and nobody whom it could connect to."""

import secrets
from pathlib import Path

from merlin_study.seal import Keyring
from merlin_study.sitefile import SiteFile

NOBODY = "nats://127.0.0.1:9"
"""The port of a service (discard) that no machine runs any more."""


def a_site_file(path: Path, *, server: str = NOBODY) -> Path:
    """Write a site file of mode 0600 with keys that nobody else has; return its path."""
    operator = Keyring.generate().signing_key.public_key().public_bytes_raw().hex()
    site = SiteFile(
        server=server,
        namespace="default",
        site="testsite",
        user="agents",
        password=secrets.token_hex(8),
        operator_key=operator,
        seal_key=secrets.token_hex(32),
        signing_key=secrets.token_hex(32),
    )
    path.touch(0o600)
    path.write_text(site.encode())
    return path
