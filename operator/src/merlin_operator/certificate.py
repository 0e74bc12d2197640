"""When the certificate ends that the broker shows: read off each handshake, so it is the one in use and not one on a disk."""

from __future__ import annotations

import ssl
from collections.abc import Callable


def watch(context: ssl.SSLContext, note: Callable[[float], None]) -> None:
    """Call ``note`` after each handshake of ``context`` with the end of the peer's certificate, in Unix seconds.

    The context has to verify certificates: Python does not parse one that nobody verified.
    """

    class Noted(ssl.SSLObject):
        """A connection that looks at the certificate once it is verified."""

        def do_handshake(self) -> None:
            super().do_handshake()
            shown = self.getpeercert()
            if shown:
                note(float(ssl.cert_time_to_seconds(str(shown["notAfter"]))))

    context.sslobject_class = Noted
