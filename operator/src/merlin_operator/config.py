"""What an operator is told: flags, then ``MERLIN_OPERATOR_*`` variables, then defaults.

Secrets are files of mode 0600, never arguments or variables: those are seen by others and end up in logs.
"""

from __future__ import annotations

import argparse
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from merlin_operator import quarantine
from merlin_study import transport, wire
from merlin_study.seal import open_to_others

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ConfigError(Exception):
    """What was given cannot be used; says what and how to cure it."""


class CredentialsError(Exception):
    """The credentials file cannot be read, is open to others, or holds something else."""


class Settings(BaseSettings):
    """All settings; each is a flag (``--lost-after``) and a variable (``MERLIN_OPERATOR_LOST_AFTER``)."""

    model_config = SettingsConfigDict(env_prefix="MERLIN_OPERATOR_", extra="forbid", frozen=True)

    namespace: str = Field(description="namespace whose Studies to run", min_length=1, max_length=63)
    server: str = Field("nats://127.0.0.1:4222", description="address of the broker; several with commas between them")
    credentials: Path | None = Field(None, description="file with the broker's token or user and password (mode 0600)")
    ca: Path | None = Field(None, description="file with the broker's certificate authority; else those of the host")
    insecure: bool = Field(False, description="accept an address that is neither tls:// nor on this host: true, false")
    keys: Path = Field(description="directory with seal.key and signing.key (mode 0600), and agents.pub if they differ")
    http: str = Field("127.0.0.1:8080", description="host:port of /healthz, /readyz and /metrics", pattern=r"^.*:\d+$")
    heartbeat: Seconds = Field(wire.Timing().heartbeat, description="seconds between two heartbeats of an agent")
    lost_after: Seconds = Field(wire.Timing().lost_after, description="seconds of silence until an agent is lost")
    presence: Seconds = Field(wire.Timing().presence, description="seconds between two touches of an agent's file")
    presence_stale: Seconds = Field(wire.Timing().presence_stale, description="age at which that file counts as left")
    replicas: int = Field(1, description="servers of the broker's cluster that keep each stream: 1, 3 or 5", ge=1, le=5)
    window_seconds: Seconds = Field(60.0, description="seconds of work that may wait in the broker")
    quarantine_chunks: Annotated[int, Field(ge=0, le=10_000)] = Field(
        quarantine.LEAST_CHUNKS, description="failed chunks in a row until a host can be quarantined; 0: never"
    )
    quarantine_seconds: Seconds = Field(quarantine.PERIOD, description="seconds of a host's first quarantine")
    log_level: Literal["debug", "info", "warning"] = Field("info", description="how much to log: debug, info, warning")

    @model_validator(mode="after")
    def _timing_makes_sense(self) -> Settings:
        if self.lost_after <= 2 * self.heartbeat:
            raise ValueError("lost-after must exceed two heartbeats, or agents are lost while they live")
        if self.presence_stale <= 2 * self.presence:
            raise ValueError("presence-stale must exceed two presences, or chunks run twice at once")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to serve probes and metrics on."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 asked for by an empty host

    @property
    def timing(self) -> wire.Timing:
        """The clocks that agents are told."""
        return wire.Timing(
            heartbeat=self.heartbeat,
            lost_after=self.lost_after,
            presence=self.presence,
            presence_stale=self.presence_stale,
        )


class _Credentials(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: SecretStr | None = None
    user: str | None = None
    password: SecretStr | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> _Credentials:
        if (self.token is None) == (self.user is None) or (self.user is None) != (self.password is None):
            raise ValueError("expected either token, or user and password")
        return self


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Read flags and variables.

    Raises:
        ConfigError: a value is missing or wrong. (argparse itself exits with 2 where a flag is unknown.)
    """
    parser = argparse.ArgumentParser(
        prog="merlin-operator",
        description="Runs the Studies of one namespace. Each flag is also a variable: MERLIN_OPERATOR_LOST_AFTER.",
        argument_default=argparse.SUPPRESS,
    )
    for name, field in Settings.model_fields.items():
        default = f" (default: {field.default})" if not field.is_required() and field.default is not None else ""
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{field.description}{default}", metavar="VALUE")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_told(each) for each in error.errors())) from error


def broker_options(path: Path | None) -> dict[str, str]:
    """Return what `nats.connect` takes for the credentials in a file; nothing where there is none.

    Raises:
        CredentialsError: the file is missing, open to others, or holds something else.
    """
    if path is None:
        return {}
    try:
        state, text = path.stat(), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{path}: can't read the credentials: {error}") from error
    if open_to_others(state):
        mode = stat.S_IMODE(state.st_mode)
        raise CredentialsError(f"{path}: is open to others (mode {mode:04o}); run: chmod 600 {path}")
    try:
        found = _Credentials.model_validate(json.loads(text))
    except ValueError as error:  # pydantic's is one too; neither may quote the file
        raise CredentialsError(
            f'{path}: expected {{"token": …}} or {{"user": …, "password": …}} as JSON'
        ) from error.__cause__
    secrets = {"token": found.token, "password": found.password}
    plain = {key: value.get_secret_value() for key, value in secrets.items() if value is not None}
    return plain if found.user is None else {"user": found.user, **plain}


def connection(settings: Settings) -> dict[str, Any]:
    """Return all that `nats.connect` takes besides the address: credentials, TLS, and where answers go.

    Raises:
        CredentialsError: see `broker_options`; or the certificate authority cannot be read.
        ConfigError: the address would carry the password in the clear.
    """
    options = broker_options(settings.credentials)
    try:
        transport.check(settings.server, insecure=settings.insecure)
        ca = settings.ca.read_text(encoding="ascii") if settings.ca is not None else ""
        return {**options, **transport.options(settings.server, user=options.get("user", ""), ca=ca)}
    except transport.TransportError as error:
        raise ConfigError(f"--server {error}") from error
    except OSError as error:
        raise CredentialsError(f"{settings.ca}: can't read the certificate authority: {error}") from error


def _told(error: Any) -> str:
    name = "-".join(str(part) for part in error["loc"]).replace("_", "-")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"--{name} (or MERLIN_OPERATOR_{name.replace('-', '_').upper()}) is required"
    return f"--{name}: {message}" if name else message
