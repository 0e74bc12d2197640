"""How the agents of one allocation find each other, and the lines that they exchange.

    leader ─► rendezvous file in the workspace (mode 0600: addresses, a random key) ◄─ members, which connect

Nothing secret travels; what has to be sure is who says it. So each line carries a HMAC under the key of the file, over both sides' nonces, its
direction and its number: whoever can't read a file of this user's can neither say anything nor repeat it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

FOLDER: Final = ".merlin-allocations"
LONGEST_LINE: Final = 64 * 1024
_NONCE: Final = 32
_VERSION: Final = "4"


class PairingError(Exception):
    """The other side can't be believed, or speaks otherwise."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hello(_Line):
    """A member's first line: who it is, what it has, and which keys it keeps from an earlier connection."""

    kind: Literal["hello"] = "hello"
    host: str = Field(min_length=1, max_length=255)
    agent: str
    cores: int = Field(ge=1)
    gpus: int = Field(ge=0)
    keys: tuple[str, ...] = ()


class Keep(_Line):
    """The leader's wish: keep so much under this key as it becomes free."""

    kind: Literal["keep"] = "keep"
    key: str
    cores: int = Field(ge=1)
    gpus: int = Field(ge=0)


class Expect(_Line):
    """A member will keep it in so many seconds, as far as one can tell."""

    kind: Literal["expect"] = "expect"
    key: str
    seconds: float = Field(ge=0)


class Kept(_Line):
    """A member keeps it, on these processors; ``turn`` is that of the last `Lend` that it knows."""

    kind: Literal["kept"] = "kept"
    key: str
    turn: int = 0
    cpus: tuple[int, ...] = ()


class Lend(_Line):
    """The leader's wish: use it for so many seconds, then keep it again; 0: no longer."""

    kind: Literal["lend"] = "lend"
    key: str
    turn: int
    seconds: float = Field(ge=0)


class Release(_Line):
    """The leader needs it no more."""

    kind: Literal["release"] = "release"
    key: str


class Idle(_Line):
    """A member's sign of life: for how many seconds it has had nothing to do."""

    kind: Literal["idle"] = "idle"
    seconds: float = Field(ge=0)


class Leave(_Line):
    """The leader's word that the allocation is given up, or a member's that it leaves.

    With ``finish`` once what runs has ended; with ``late`` what runs may go on until the allocation's end.
    """

    kind: Literal["leave"] = "leave"
    finish: bool = False
    late: bool = False


class Refused(_Line):
    """The leader's word that it does not take this member, and why."""

    kind: Literal["refused"] = "refused"
    why: str


Line = Hello | Keep | Expect | Kept | Lend | Release | Idle | Leave | Refused
_LINES: Final[TypeAdapter[Line]] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the leader listens, and the key of its lines."""

    addresses: tuple[str, ...]
    port: int
    key: bytes


def path_of(workspace: str, *, job: Iterable[str], group: Iterable[str]) -> str:
    """Return the rendezvous file's path.

    Args:
        workspace: The directory that all agents of the site see.
        job: What tells this run of this job from all others.
        group: What agents must have in common to be one group: namespace, site, queues, study.
    """
    digest = hashlib.sha256("\0".join((*job, "", *group)).encode()).hexdigest()[:24]
    return f"{workspace}/{FOLDER}/{digest}.json"


def publish(path: str, place: Rendezvous) -> None:
    """Write the rendezvous file, in place of an older one.

    Raises:
        OSError: it can't be written.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    beside = f"{path}.{secrets.token_hex(6)}"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"addresses": place.addresses, "port": place.port, "key": place.key.hex()}, file)
    os.replace(beside, path)


def read(path: str) -> Rendezvous | None:
    """Return what the leader wrote; None where nothing is there yet.

    Raises:
        PairingError: it is not ours alone, or no rendezvous.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PairingError(f"{path}: can't be read: {error.strerror}") from error
    with os.fdopen(handle, encoding="utf-8") as file:
        state = os.fstat(file.fileno())
        if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o077:
            raise PairingError(f"{path}: expected a file of this user's with mode 0600; remove it")
        try:
            values = json.loads(file.read(LONGEST_LINE))
            return Rendezvous(tuple(map(str, values["addresses"])), int(values["port"]), bytes.fromhex(values["key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PairingError(f"{path}: expected addresses, port and key; remove it") from error


def addresses(toward: str) -> tuple[str, ...]:
    """Return names and addresses by which other hosts may reach this one, the likeliest first.

    Args:
        toward: A host that this one reaches; the address of the way there is an address of ours.
    """
    name = socket.gethostname()
    found = []
    try:
        for family, *_, to in socket.getaddrinfo(toward, 9, type=socket.SOCK_DGRAM)[:1]:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(to)
                found.append(str(probe.getsockname()[0]))
    except OSError:
        pass
    return tuple(dict.fromkeys((name, *found)))


class Channel:
    """A connection on which both sides have proved that they know the key."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, *, leads: bool) -> None:
        self._reader, self._writer, self._key, self._leads = reader, writer, key, leads
        self._nonces = b""
        self._said = self._heard = 0

    async def open(self) -> None:
        """Exchange nonces; the first lines prove the rest.

        Raises:
            PairingError, OSError: the other side is none of ours, or gone.
        """
        own = secrets.token_hex(_NONCE).encode()
        self._writer.write(own + b"\n")
        other = (await self._read()).strip()
        if len(other) != len(own):
            raise PairingError("expected a nonce")
        self._nonces = b"".join((own, other) if self._leads else (other, own))

    def say(self, line: Line) -> None:
        """Send a line."""
        text = line.model_dump_json().encode()
        self._writer.write(self._seal(text, self._said, leads=self._leads) + b" " + text + b"\n")
        self._said += 1

    async def hear(self) -> Line:
        """Wait for a line.

        Raises:
            PairingError, OSError: it is forged, none of ours, or the connection is gone.
        """
        seal, _, text = (await self._read()).rstrip(b"\n").partition(b" ")
        if not hmac.compare_digest(seal, self._seal(text, self._heard, leads=not self._leads)):
            raise PairingError("a line that was not sealed with this allocation's key")
        self._heard += 1
        try:
            return _LINES.validate_json(text)
        except ValidationError as error:
            raise PairingError(f"not understood: {error.errors()[0]['msg']}") from error

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _read(self) -> bytes:
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise PairingError("a line that is too long") from error
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the other side has hung up")
        return line

    def _seal(self, text: bytes, number: int, *, leads: bool) -> bytes:
        context = f"merlin {_VERSION} {'leader' if leads else 'member'} {number} ".encode()
        return hmac.new(self._key, context + self._nonces + text, hashlib.sha256).hexdigest().encode()
