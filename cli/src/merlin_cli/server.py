"""``merlin server start|stop|status``: NATS and the engine for one user's allocations, without Kubernetes.

From a directory of mode 0700 (keys, certificates, addresses; made on the spot, once) to a process that outlives the command
(`merlin_cli.serverd`). What agents need is one file in it, what commands need another; it should lie on a file system that the
user's machines share. The broker's store lies on a local disk, as JetStream wants it; the studies, and copies of the log, lie in the
directory, so that a server can be started on another machine when this one is gone.

Which store counts: each start that does not go on with the store of the one before raises the *generation*, which stands in
``server.json`` and in the store's directory. A store of another generation is older than the copies are, and is set aside.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from ssl import create_default_context
from typing import Any, Final

from rich.console import Console

from merlin_cli import contexts, local, signs, takeover
from merlin_cli.broker import MAX_PAYLOAD, find_server, free_port, write_private
from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 60.0
SNAPSHOT_EVERY: Final = 60.0
LOCK: Final = "server.lock"
_GENERATION: Final = "generation"
_STORE: Final = "broker"
_STUDIES: Final = ("studies", "configmaps", "wishes.json")


@dataclass(frozen=True)
class Place:
    """Where a server is, as ``server.json`` tells it.

    Attributes:
        host: The machine that it runs on, by its own name.
        address: How others reach it.
        broker_port: Of nats-server.
        port: Of the engine's API.
        state: The directory on that machine's disk.
        pid: Of the process that keeps both alive.
        generation: How often a server did not go on with the store of the one before.
        every: Seconds between two copies of the log.
        start: Of one start alone, random: two servers of the same generation are told apart by it.
    """

    host: str
    address: str
    broker_port: int
    port: int
    state: str
    pid: int = 0
    generation: int = 0
    every: float = SNAPSHOT_EVERY
    start: str = ""

    @property
    def broker(self) -> str:
        """The broker's address."""
        return f"tls://{self.address}:{self.broker_port}"

    @property
    def api(self) -> str:
        """The engine's address."""
        return f"https://{self.address}:{self.port}"

    @property
    def listen(self) -> str:
        """What to bind: loopback where nobody else is meant to come."""
        return "127.0.0.1" if self.address in ("127.0.0.1", "localhost") else "0.0.0.0"  # noqa: S104 agents come from other hosts


def read(directory: Path) -> Place | None:
    """Return what is known of the server of a directory; None where there never was one."""
    try:
        return Place(**json.loads((directory / "server.json").read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CliError(Exit.CANNOT_RUN, f"{directory}/server.json: is damaged ({error}); remove it") from error


def start(
    directory: Path,
    console: Console,
    *,
    address: str = "",
    state: str = "",
    snapshot_every: float | None = None,
    name: str = "server",
) -> Exit:
    """Start the server, or find that it runs.

    Raises:
        CliError: it does not come up, its directory is open to others, it runs on another machine, or another start came first.
    """
    local.check_installed()
    find_server()
    directory = directory.absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise CliError(
            Exit.CANNOT_RUN, f"{directory}: expected a directory of yours with mode 0700; run: chmod 700 {directory}"
        )
    before, here = read(directory), socket.gethostname()
    if before is not None and before.host != here:
        _await_end(directory, before, console)
    own = secrets.token_hex(8)
    with takeover.of(directory, own) as held:
        _check_unchanged(directory, before)
        if before is not None and before.host == here and _alive(before):
            say(console, f"The server runs already at {before.broker} (pid {before.pid}).")
            return Exit.OK
        place = replace(_placed(directory, before, here=here, address=address, state=state), start=own)
        if snapshot_every is not None:
            place = replace(place, every=snapshot_every)
        is_without_log = before is not None and not (Path(place.state) / _STORE).is_dir()
        copied = _copied(directory)
        _furnish(directory, place)
        held.check()
        _record(directory, place)
        signs.give(directory)  # whoever starts one elsewhere from now on waits for this one
        process = _launch(directory, place)
    _await_health(directory, place, process, console)
    pid = process.pid
    known = contexts.Contexts.load()
    contexts.Contexts(name, {**known.files, name: str(directory / "kubeconfig")}).save()
    say(console, f"The server runs at {place.broker} (pid {pid}); its state lies in {place.state}.")
    if is_without_log:
        log = f"from the log that was copied {copied}" if copied else "without a log"
        say(console, f"  it goes on {log}; what it lacks, agents read in the workspaces")
    say(console, f"  start agents:     merlin-agent --credentials {directory / contexts.SITE_FILE}")
    say(console, "  submit to it:     merlin run SPEC      (merlin context use cluster: to a cluster again)")
    say(console, "  stop it:          merlin server stop")
    return Exit.OK


def stop(directory: Path, console: Console) -> Exit:
    """End the server; agents keep what they have and wait for it.

    Raises:
        CliError: it runs on another machine, or does not end.
    """
    place = read(directory)
    if place is None:
        raise CliError(Exit.USAGE, f"{directory}: there is no server; start one with: merlin server start")
    if place.host != socket.gethostname():
        raise CliError(Exit.CANNOT_RUN, f"the server runs on {place.host}; run there: merlin server stop")
    if not _alive(place):
        say(console, "The server does not run.")
        return Exit.OK
    os.kill(place.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while _alive(place):
        if time.monotonic() > deadline:
            raise CliError(Exit.CANNOT_RUN, f"the server (pid {place.pid}) does not end; see {directory}/server.log")
        time.sleep(0.1)
    say(console, f"The server has ended; its state stays in {place.state}.")
    return Exit.OK


def status(directory: Path, console: Console) -> Exit:
    """Say where the server is, and what it runs; exit code 4 where it does not answer.

    Raises:
        CliError: there is none, or it does not answer.
    """
    place = read(directory)
    if place is None:
        raise CliError(Exit.USAGE, f"{directory}: there is no server; start one with: merlin server start")
    try:
        health = _ask(directory, place, "/healthz")
        studies = _ask(directory, place, "/apis/merlin.dev/v1alpha1/namespaces/default/studies")["items"]
    except (OSError, ValueError) as error:
        raise CliError(
            Exit.CANNOT_RUN, f"the server at {place.api} on {place.host} does not answer ({error}); merlin server start"
        ) from error
    agents = health["agents"]
    say(console, f"Server at {place.broker} on {place.host} (pid {place.pid}); {agents} agents.")
    say(console, f"  its log was copied {_copied(directory) or 'never'}")
    for study in studies:
        said, counts = study.get("status") or {}, (study.get("status") or {}).get("counts") or {}
        done, total = counts.get("done", 0), counts.get("total", "?")
        say(console, f"  {study['metadata']['name']:<40} {said.get('phase', 'Pending'):<22} {done}/{total}")
    return Exit.OK


def _await_end(directory: Path, before: Place, console: Console) -> None:
    """Return once the server of another machine has ended, or counts as dead.

    Raises:
        CliError: it runs.
    """
    runs = f"{directory}: its server runs on {before.host}"
    deadline, said = time.monotonic() + 2 * signs.STALE, False
    while True:
        try:
            _ask(directory, before, "/healthz")
        except (OSError, ValueError):
            pass
        else:
            raise CliError(Exit.CANNOT_RUN, f"{runs}; use that one, or run there: merlin server stop")
        silent = signs.silent_for(directory)
        if silent >= signs.STALE:
            return
        if time.monotonic() > deadline:
            raise CliError(
                Exit.CANNOT_RUN,
                f"{runs}: it gives signs of life, but does not answer at {before.api} from here; run there: merlin server stop",
            )
        if not said:
            left = signs.STALE - silent
            say(console, f"The server on {before.host} does not answer; it counts as dead in {left:.0f} s.")
            said = True
        time.sleep(1.0)


def _check_unchanged(directory: Path, before: Place | None) -> None:
    """Look once more, now that nobody else starts one.

    Raises:
        CliError: a server was started since ``before`` was read.
    """
    if (now := read(directory)) != before:
        where = f" on {now.host}" if now else ""
        raise CliError(
            Exit.CANNOT_RUN, f"{directory}: its server was started by somebody else{where}; see: merlin server status"
        )


def _placed(directory: Path, before: Place | None, *, here: str, address: str, state: str) -> Place:
    """Choose address, ports, state and generation.

    On the machine of an earlier start, address and ports stay, so that agents that wait find the server again. Elsewhere the
    ports stay where they are free.
    """
    own = (
        f"/var/tmp/merlin-{os.geteuid()}-{base64.b32encode(os.fsencode(directory)).decode().lower().rstrip('=')[-24:]}"  # noqa: S108 made with 0700 and checked
    )
    lies = os.path.abspath(state or (before.state if before else own))  # noqa: PTH100
    try:
        Path(lies).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(
            Exit.CANNOT_RUN, f"{lies}: can't be made ({error.strerror}); give another directory with --state"
        ) from error
    if Path(lies).stat().st_uid != os.geteuid():
        raise CliError(Exit.CANNOT_RUN, f"{lies}: belongs to somebody else; give another directory with --state")
    held = _held(Path(lies))
    if before is None:
        return Place(here, address or here, free_port(), free_port(), lies, generation=held or 0)
    is_same = held == before.generation
    if held is not None and not is_same:
        _set_aside(Path(lies))
    has_stayed = is_same and (before.host, before.state) == (here, lies)
    if before.host == here:
        known, ports = before.address, (before.broker_port, before.port)
    else:
        known, ports = here, (free_port(before.broker_port), free_port(before.port))
    return Place(
        here,
        address or known,
        *ports,
        lies,
        generation=before.generation + (not has_stayed),
        every=before.every,
    )


def _held(state: Path) -> int | None:
    """Return the generation of the store in a state's directory; None where there is no store."""
    if not (state / _STORE).is_dir():
        return None
    with contextlib.suppress(OSError, ValueError):
        return int((state / _GENERATION).read_text())
    return 0  # that of a server that knew of none


def _set_aside(state: Path) -> None:
    """Move a store away that is older than what another machine's server went on with."""
    old = state / f"{_STORE}.old"
    shutil.rmtree(old, ignore_errors=True)
    (state / _STORE).rename(old)


def _adopt_studies(directory: Path, state: Path) -> None:
    """Move the studies of an earlier version, which lie beside its store, to where another machine finds them."""
    for name in _STUDIES:
        if (state / name).exists() and not (directory / name).exists():
            shutil.move(state / name, directory / name)


def _copied(directory: Path) -> str:
    """Say how old the newest copy of the log is, and where it lies; nothing where there is none."""
    from merlin_operator import backup

    try:
        taken = backup.newest(directory / backup.PLACE)
    except (OSError, ValueError) as error:
        return f"to {directory / backup.PLACE}, where the newest copy can't be read ({error})"
    if taken is None:
        return ""
    return f"{max(0, time.time() - taken):.0f} s ago, to {directory / backup.PLACE}"


def _furnish(directory: Path, place: Place) -> None:
    """Make keys where there are none, and write what follows from them."""
    from merlin_operator import bootstrap

    _adopt_studies(directory, Path(place.state))
    write_private(Path(place.state) / _GENERATION, str(place.generation))
    now, keys_file = datetime.now(UTC), directory / "keys.json"
    if not keys_file.exists():
        drawn = {key: value.decode() for key, value in bootstrap.draw(now).items()}
        write_private(keys_file, json.dumps({**drawn, "token": os.urandom(24).hex()}))
    keys = {key: value.encode() for key, value in json.loads(keys_file.read_bytes()).items()}
    there = {name: (directory / name).read_bytes() for name in ("tls.crt", "tls.key") if (directory / name).exists()}
    hosts = sorted({place.address, place.host, "localhost", "127.0.0.1"})
    broker = bootstrap.for_broker(keys, there, hosts=hosts, now=now)
    for name in ("tls.crt", "tls.key"):
        write_private(directory / name, broker[name].decode())
    (directory / "operator").mkdir(mode=0o700, exist_ok=True)
    for name, data in bootstrap.for_operator(keys).items():
        write_private(directory / "operator" / name, data.decode())
    agents = bootstrap.for_agents(keys, namespace="default", server=place.broker, site="")
    write_private(directory / contexts.SITE_FILE, agents["site.yaml"].decode())
    write_private(directory / "kubeconfig", _kubeconfig(place, keys))
    write_private(directory / "nats.conf", _broker_config(directory, place, keys))


def _record(directory: Path, place: Place) -> None:
    write_private(directory / "server.json", json.dumps(place.__dict__))


def _kubeconfig(place: Place, keys: Mapping[str, bytes]) -> str:
    """The same form as a cluster's, so that one client speaks to both; JSON is YAML."""
    cluster = {"server": place.api, "certificate-authority-data": base64.b64encode(keys["ca.crt"]).decode()}
    context = {"cluster": "merlin", "user": "merlin", "namespace": "default"}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "merlin", "cluster": cluster}],
            "users": [{"name": "merlin", "user": {"token": keys["token"].decode()}}],
            "contexts": [{"name": "merlin", "context": context}],
            "current-context": "merlin",
        }
    )


def _broker_config(directory: Path, place: Place, keys: Mapping[str, bytes]) -> str:
    """One account: agents and engine are one user's here, with one file system between them."""
    users = ", ".join(
        f"{{user: {user}, password: {json.dumps(keys[f'{kind}-password'].decode())}}}"
        for user, kind in (("operator", "operator"), ("agents", "agents"))
    )
    files = (json.dumps(str(directory / name)) for name in ("tls.crt", "tls.key"))
    tls = 'cert_file: {}, key_file: {}, min_version: "1.2", handshake_first: true, timeout: 5'.format(*files)
    return "\n".join(
        (
            f"listen: {json.dumps(f'{place.listen}:{place.broker_port}')}",
            f"max_payload: {MAX_PAYLOAD}",
            f"ports_file_dir: {json.dumps(place.state)}",
            f"tls {{ {tls} }}",
            f"jetstream {{ store_dir: {json.dumps(f'{place.state}/{_STORE}')}, sync_interval: always }}",
            f"authorization {{ users: [{users}] }}",
            "",
        )
    )


def _launch(directory: Path, place: Place) -> subprocess.Popen[bytes]:
    """Start the process that keeps the server; return once it holds its lock, or has ended."""
    with (directory / "server.log").open("ab") as logged:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "merlin_cli.serverd", str(directory), place.start],
            stdin=subprocess.DEVNULL,
            stdout=logged,
            stderr=logged,
            start_new_session=True,
            cwd="/",
        )
    _record(directory, replace(place, pid=process.pid))
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None and not _alive(place):
        time.sleep(0.05)
    return process


def _await_health(directory: Path, place: Place, process: subprocess.Popen[bytes], console: Console) -> None:
    """Return once the server answers; one that puts its log back may take as long as it goes on doing so.

    Raises:
        CliError: it ends, or gets no further for `START_TIMEOUT` seconds.
    """
    deadline, done = time.monotonic() + START_TIMEOUT, 0
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _ask(directory, place, "/healthz")
        except urllib.error.HTTPError as error:
            if (more := _put_back(error)) > done:
                if not done:
                    say(console, "The log is put back from its copy; this takes as long as the copy is large.")
                done, deadline = more, time.monotonic() + START_TIMEOUT
        except (OSError, ValueError):
            pass
        else:
            return
        time.sleep(0.1)
    said = (directory / "server.log").read_text(errors="replace").splitlines()[-15:]
    if process.poll() is None:
        process.terminate()
    raise CliError(Exit.CANNOT_RUN, "the server does not come up; the end of what it says:\n" + "\n".join(said))


def _put_back(error: urllib.error.HTTPError) -> int:
    """Return the bytes that an engine says it has read and put back so far; 0 where it says nothing of it."""
    try:
        return int(json.loads(error.read())["put_back"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _alive(place: Place) -> bool:
    """Whether the process that keeps the server holds its lock; a pid alone may be another's by now."""
    try:
        handle = os.open(Path(place.state) / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _ask(directory: Path, place: Place, path: str) -> Any:
    keys = json.loads((directory / "keys.json").read_bytes())
    request = urllib.request.Request(place.api + path, headers={"Authorization": f"Bearer {keys['token']}"})  # noqa: S310 https
    context = create_default_context(cadata=keys["ca.crt"])
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        return json.loads(answer.read())
