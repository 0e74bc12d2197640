"""Where the agent's settings come from: flags, ``MERLIN_AGENT_*`` variables, ``~/.merlin/agent.yaml``, the machine's file, the site file, defaults.

Each counts before the next. The site file is what ``--credentials`` may name, see `merlin_study.sitefile`.

Every fault says the place first, then what was expected, what was found and the cure, and has an exit code of its own: 2 for
wrong usage, 3 for keys or credentials that cannot be read, 4 for a workspace that cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from merlin_agent import allocation
from merlin_study import sitefile, transport
from merlin_study.memory import mebibytes
from merlin_study.seal import KeyFileError, Keyring, open_to_others

PREFIX: Final = "MERLIN_AGENT_"
USAGE: Final = 2
UNREADABLE_KEYS: Final = 3
UNWRITABLE_WORKSPACE: Final = 4
_DEFAULT_FILE: Final = "~/.merlin/agent.yaml"
_MACHINE_FILE: Final = "/etc/merlin/agent.yaml"
_MAX_FILE: Final = 1 << 20


class ConfigError(Exception):
    """The agent can't start like this; ``code`` is the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What proves to the broker who we are (a token, a user with a password, or nothing), and it to us.

    ``ca`` is the broker's certificate authority in PEM (empty: those of the host). ``keys`` and ``server``, where the broker is, come with
    a site file only.
    """

    token: str = ""
    user: str = ""
    password: str = ""
    ca: str = ""
    keys: Keyring | None = None
    server: str = ""

    def as_options(self) -> dict[str, Any]:
        """Return the options of a NATS client."""
        if self.token:
            return {"token": self.token}
        return {"user": self.user, "password": self.password} if self.user else {}


class Settings(BaseSettings):
    """What an agent can be told; `merlin-agent --help` says the same."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, nested_model_default_partial_update=False
    )

    server: str = "nats://127.0.0.1:4222"
    credentials: Path | None = None
    ca: Path | None = None
    insecure: bool = False
    keys: Path = Path("~/.merlin/keys")
    namespace: str = "default"
    site: str = Field(
        default_factory=lambda: allocation.site(os.environ), max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
    )
    name: str = Field(default="", max_length=40, pattern="^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")
    queues: Annotated[tuple[str, ...], NoDecode] = ()
    slots: int = Field(
        default_factory=lambda: allocation.slots(allocation.here(), allocation.usable_cores()), ge=1, le=4096
    )
    gpus: Annotated[tuple[str, ...], NoDecode] = Field(default_factory=lambda: allocation.here().gpus)
    memory: int = Field(default_factory=lambda: allocation.memory(allocation.here()), ge=1)
    workspace: Path = Field(default_factory=Path.cwd)
    scratch: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()))
    drain_grace: float = Field(default=15.0, ge=0)
    end_margin: float = Field(default=60.0, ge=0)
    creates: float | None = Field(default=None, gt=0)
    site_creates: float | None = Field(default=None, gt=0)
    study: str = ""
    study_name: str = ""
    idle_exit: float | None = Field(default_factory=lambda: allocation.idle_exit(allocation.here()), gt=0)
    keep_alive: bool = False
    this_node: bool = False
    bind: bool = True
    lifeline: bool = False
    submissions: bool = True
    verbose: bool = False

    @field_validator("queues", "gpus", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            return tuple(str(part).strip() for part in parts if str(part).strip())
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        return mebibytes(value) if isinstance(value, str) else value

    @field_validator("keys", "workspace", "scratch", "credentials", "ca")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(value.expanduser()))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables; the file's values are merged below them by `load`."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(cls)


class _FileSource(PydanticBaseSettingsSource):
    """The values of the configuration file that `load` has read."""

    values: Mapping[str, Any] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.values)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; absent flags leave no trace, so that the next source counts."""
    made = argparse.ArgumentParser(
        prog="merlin-agent",
        description="Runs the tasks of Merlin studies on this host. Start it inside a batch allocation, in the "
        "environment that the tasks need; start as many as you like. SIGTERM drains it.",
        epilog=f"Each flag is also a variable ({PREFIX}SERVER, {PREFIX}SLOTS, …) and a key of {_DEFAULT_FILE}; a flag "
        f"counts before a variable, a variable before the file, that before the machine's, {_MACHINE_FILE}. Exit codes: 0 drained, 2 wrong usage, 3 keys or "
        "credentials unreadable, 4 workspace not writable, 5 doctor found something wrong.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    made.add_argument(
        "command",
        nargs="?",
        choices=["doctor"],
        default=None,
        help="look at this host and say what an agent finds here, what is missing and the cure; then end "
        "(`merlin-agent script --help`: print a batch script that starts agents)",
    )
    made.add_argument("--config", metavar="FILE", help=f"the configuration file (default {_DEFAULT_FILE})")
    made.add_argument("--server", metavar="URL", help="the NATS server (default nats://127.0.0.1:4222)")
    made.add_argument(
        "--credentials",
        metavar="FILE",
        help="a file of mode 0600: the site file of `merlin site credentials`, which is all that an agent needs; or token:; "
        "or user: and password:",
    )
    made.add_argument(
        "--ca", metavar="FILE", help="the broker's certificate authority (default: the site file's, or the host's)"
    )
    made.add_argument(
        "--insecure", action="store_true", help="accept an address that is neither tls:// nor on this host"
    )
    made.add_argument(
        "--keys", metavar="DIR", help="the directory of seal.key and signing.key (default ~/.merlin/keys)"
    )
    made.add_argument("--namespace", metavar="NAME", help="the namespace whose studies to serve (default: default)")
    made.add_argument("--site", metavar="NAME", help="machines that share a file system (default: the cluster's name)")
    made.add_argument("--name", metavar="NAME", help="begin the agent's name with this (default: with the host's)")
    made.add_argument("--queues", metavar="A,B", help="serve only these queues (default: all)")
    made.add_argument(
        "--slots", metavar="N", type=int, help="tasks of one core at once (default: the cores given to us)"
    )
    made.add_argument(
        "--gpus", metavar="0,1", help="the GPUs that tasks may have, by index (default: those of the job on this host)"
    )
    made.add_argument(
        "--memory",
        metavar="64G",
        help="the memory of this host that tasks may use (default: the job's, else all of it)",
    )
    made.add_argument("--workspace", metavar="DIR", help="where studies' directories lie (default: here)")
    made.add_argument(
        "--scratch",
        metavar="DIR",
        help="a directory on this host's own disk, where tasks of studies with outputs: packed run (default: TMPDIR, or /tmp)",
    )
    made.add_argument(
        "--drain-grace", metavar="S", type=float, help="on SIGTERM, how long running tasks may go on (15)"
    )
    made.add_argument(
        "--end-margin", metavar="S", type=float, help="take nothing more so long before the allocation's end (60)"
    )
    made.add_argument(
        "--creates", metavar="N", type=float, help="make at most N files and directories a second for tasks (no limit)"
    )
    made.add_argument(
        "--site-creates", metavar="N", type=float, help="the same for all agents of the site together, in equal parts"
    )
    made.add_argument("--study", metavar="UID", help="serve only this study, and leave when it is over")
    made.add_argument(
        "--study-name",
        metavar="NAME",
        help="leave where a task of a study of this name stops its agents (exit 102 or 105); others are served, too",
    )
    made.add_argument(
        "--idle-exit",
        metavar="S",
        type=float,
        help="leave when nothing came for so long (default: 120 in an allocation)",
    )
    made.add_argument("--keep-alive", action="store_true", help="stay until the allocation ends, whatever comes")
    made.add_argument("--this-node", action="store_true", help="start no agents on the other hosts of this batch job")
    made.add_argument(
        "--no-bind",
        dest="bind",
        action="store_false",
        help="bind no task to the cores that it was given (bind: false in the file)",
    )
    made.add_argument(
        "--no-submissions",
        dest="submissions",
        action="store_false",
        help="let no step start studies of its own (submissions: false in the file)",
    )
    made.add_argument("--lifeline", action="store_true", help="leave at once when standard input ends")
    made.add_argument("--verbose", action="store_true", help="log more")
    made.add_argument("--version", action="version", version=f"merlin-agent {version('merlin-agent')}")
    return made


def program() -> str:
    """Return the command that this agent was started by, so that a batch script starts the same one."""
    started = Path(os.path.abspath(sys.argv[0]))
    return str(started) if os.access(started, os.X_OK) and started.suffix != ".py" else "merlin-agent"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings.

    Raises:
        ConfigError: they make no sense; flags that argparse refuses end the process with code 2 by themselves.
    """
    flags = vars(parser().parse_args(arguments))
    flags.pop("command", None)
    given = flags.pop("config", None) or environ.get(f"{PREFIX}CONFIG")
    path = Path(given or _DEFAULT_FILE).expanduser()
    machine = Path(environ.get(f"{PREFIX}MACHINE_CONFIG") or _MACHINE_FILE)
    own: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for file, required in ((machine, f"{PREFIX}MACHINE_CONFIG" in environ), (path, bool(given))):
        if required or file.exists():
            values = {key.replace("-", "_"): value for key, value in _read_mapping(file, USAGE).items()}
            own |= values
            places |= dict.fromkeys(values, file)
    credentials = flags.get("credentials") or environ.get(f"{PREFIX}CREDENTIALS") or own.get("credentials")
    _FileSource.values = {**_site_values(credentials), **own}
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault, flags, environ, places) for fault in error.errors())) from None
    finally:
        _FileSource.values = {}


def _site_values(credentials: object) -> dict[str, Any]:
    """What a site file says besides secrets; nothing where there is none (`load_credentials` says what is wrong with it)."""
    try:
        values = _read_mapping(Path(str(credentials)).expanduser(), UNREADABLE_KEYS) if credentials else {}
    except ConfigError:
        return {}
    named = {name: values.get(name) for name in ("server", "namespace", "site")}
    return {name: value for name, value in named.items() if value} if sitefile.MARK in values else {}


def _explain(fault: Any, flags: Mapping[str, Any], environ: Mapping[str, str], places: Mapping[str, Path]) -> str:
    name = str(fault["loc"][0]) if fault["loc"] else "settings"
    if name in flags:
        place = "--" + name.replace("_", "-")
    elif f"{PREFIX}{name.upper()}" in environ:
        place = f"{PREFIX}{name.upper()}"
    else:
        place = f"{places[name]}: {name}" if name in places else name
    if fault["type"] == "extra_forbidden":
        return f"{place}: expected one of {', '.join(Settings.model_fields)}; remove it or correct the spelling"
    return f"{place}: {fault['msg']}, found {fault['input']!r}; see merlin-agent --help"


def load_credentials(path: Path | None, *, ca: Path | None = None) -> Credentials:
    """Read the credentials' file, and the certificate authority where it stands in a file of its own.

    Raises:
        ConfigError: one is missing, open to others, or holds something else.
    """
    found = Credentials() if path is None else _read_credentials(path)
    if ca is None:
        return found
    try:
        return replace(found, ca=ca.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ca}: expected a certificate authority in PEM, found: {error}", UNREADABLE_KEYS) from error


def renewed_credentials(settings: Settings) -> Credentials:
    """Read the credentials again, as they are now.

    Raises:
        ConfigError: as `load_credentials`, or secrets would go to a server that they name now in the clear.
    """
    found = load_credentials(settings.credentials, ca=settings.ca)
    if found.server:
        check_transport(settings.model_copy(update={"server": found.server}), found)
    return found


def _read_credentials(path: Path) -> Credentials:
    try:
        state = path.stat()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a credentials file, found none: {error.strerror}", UNREADABLE_KEYS
        ) from error
    if open_to_others(state):
        mode = stat.S_IMODE(state.st_mode)
        raise ConfigError(f"{path}: expected mode 0600, found {mode:04o}; run: chmod 600 {path}", UNREADABLE_KEYS)
    values = _read_mapping(path, UNREADABLE_KEYS)
    if sitefile.MARK in values:
        return _from_site_file(path, values)
    if set(values) not in ({"token"}, {"user", "password"}) or not all(
        isinstance(value, str) and value for value in values.values()
    ):
        keys = ", ".join(sorted(map(str, values))) or "nothing"
        raise ConfigError(f"{path}: expected token:, or user: and password:, as text, found {keys}", UNREADABLE_KEYS)
    return Credentials(**values)


def _from_site_file(path: Path, values: Mapping[str, Any]) -> Credentials:
    try:
        site = sitefile.parse(values)
        return Credentials(user=site.user, password=site.password, ca=site.ca, keys=site.keyring(), server=site.server)
    except sitefile.SiteFileError as error:
        raise ConfigError(
            f"{path}: expected a site file of `merlin site credentials`, found: {error}", UNREADABLE_KEYS
        ) from error


def check_transport(settings: Settings, credentials: Credentials) -> None:
    """See that secrets go nowhere in the clear.

    Raises:
        ConfigError: they would, or the certificate authority is none.
    """
    try:
        transport.check(settings.server, insecure=settings.insecure)
        transport.options(settings.server, ca=credentials.ca)
    except transport.TransportError as error:
        raise ConfigError(f"--server {error}") from error


def load_keys(settings: Settings, credentials: Credentials) -> Keyring:
    """Return the keys: those of the directory where one was named, else the site file's.

    Raises:
        ConfigError: one is missing, open to others, or no key.
    """
    if credentials.keys is not None and "keys" not in settings.model_fields_set:
        return credentials.keys
    try:
        return Keyring.load(settings.keys)
    except KeyFileError as error:
        raise ConfigError(f"{error}; copy the operator's keys there, or give --keys", UNREADABLE_KEYS) from error


def check_workspace(directory: Path) -> None:
    """Make the workspace root if need be, and see that we may write there.

    Raises:
        ConfigError: we may not.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("not writable for us")
    except OSError as error:
        raise ConfigError(
            f"{directory}: expected a directory that we may write, found: {error.strerror or error}; give another --workspace",
            UNWRITABLE_WORKSPACE,
        ) from error


def _read_mapping(path: Path, code: int) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE)
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        # A parser's message may quote the line at fault, and that line may be the secret.
        why = error.strerror if isinstance(error, OSError) else "no YAML or JSON"
        raise ConfigError(f"{path}: expected readable YAML or JSON, found: {why}", code) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys with values, found {type(values).__name__}", code)
    return {str(key): value for key, value in values.items()}
