"""One agent of a kind on a host: who comes first holds a name that the kernel takes back when it dies, however it does.

The name is that of an abstract Unix socket: no file that a dead agent leaves behind, the same for all processes of a host whatever their ``TMPDIR`` is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

_PEER: Final = struct.Struct("3i")
_LOOKS_FOR: Final = 1.0


def claim(*words: str) -> socket.socket | None:
    """Return what holds a name on this host until it is closed; None where another process of this user holds it.

    A process of another user that holds it means nothing, for names can be guessed.

    Raises:
        OSError: there are no such names here.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(_address(words))
        holder.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_ours(words):
            holder.close()
            return None
        if error.errno != errno.EADDRINUSE:
            holder.close()
            raise
    return holder


def _address(words: Iterable[str]) -> bytes:
    return b"\0merlin-" + hashlib.sha256("\0".join((str(os.getuid()), *words)).encode()).hexdigest()[:32].encode()


def _is_ours(words: Iterable[str]) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_LOOKS_FOR)
        try:
            asking.connect(_address(words))
            _, uid, _ = _PEER.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        except OSError:
            return (
                True  # gone meanwhile: the next look finds the name free; or its queue is full, for nobody is answered
            )
    return bool(uid == os.getuid())
