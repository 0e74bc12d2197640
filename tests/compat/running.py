"""Upstream's own tools in an environment of their own, and both tools' runs of the same file.

The environment (`requirements.txt`) is made once below ``.cache/compat``. So are upstream's runs: each is kept under a digest of
everything that it depends on, because upstream needs seconds for what is compared in milliseconds. Ours always runs anew.
"""

import fcntl
import functools
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.ground.needs import ROOT, missing

HERE: Final = Path(__file__).parent
CACHE: Final = ROOT / ".cache" / "compat"
REQUIREMENTS: Final = HERE / "requirements.txt"
STAND_INS: Final = HERE / "environment"
UV: Final = ROOT / ".cache" / "uv" / "bin" / "uv"
STARTED: Final = 300
"""Seconds that a run may take on a busy machine."""


@dataclass(frozen=True)
class Case:
    """One file to run with both tools.

    Attributes:
        spec: Below `HERE`, or below the folder of the wheel's examples where it begins with ``workflows/`` or ``dev_workflows/``.
        dry: Whether only directories and scripts are made.
        options: What else both command lines say.
    """

    spec: str
    dry: bool = False
    options: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """How the test is called."""
        return f"{Path(self.spec).stem}{'-dry' if self.dry else ''}"

    @property
    def source(self) -> Path:
        """The folder that the file lies in."""
        inside = environment() / "examples" if self.spec.split("/")[0].endswith("workflows") else HERE
        return (inside / self.spec).parent

    @property
    def files(self) -> list[Path]:
        """What both tools are given: the whole folder of an example, one file of our own."""
        if self.source.is_relative_to(HERE):
            return [HERE / self.spec]
        return sorted(path for path in self.source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)

    @property
    def arguments(self) -> list[str]:
        """The command line behind ``merlin``."""
        name = f"{self.source.name}/{Path(self.spec).name}"
        return ["run", name, "--local", *(["--dry"] if self.dry else []), *self.options]


@dataclass(frozen=True)
class Run:
    """What became of a case under one of the tools: exit code, what it said, and where."""

    code: int
    said: str
    here: Path
    home: Path

    @property
    def study(self) -> Path | None:
        """The study's directory; None where none was made or its samples came to nothing."""
        found = [info.parent for place in (self.here, self.home) for info in place.rglob("merlin_info")]
        assert len(found) <= 1, found
        return found[0] if found else None


@functools.cache
def environment() -> Path:
    """The environment, with ``examples`` beside its ``bin``."""
    parts = [REQUIREMENTS.read_bytes(), *(file.read_bytes() for file in sorted(STAND_INS.iterdir())), _PYTHON.encode()]
    home = CACHE / f"environment-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}"
    with _lock(home):
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            try:
                _install(home)
            except (OSError, subprocess.SubprocessError) as error:
                missing(f"upstream's wheels can't be installed: {error}")
            (home / "complete").touch()
    return home


_PYTHON: Final = f"{sys.executable} {sys.version}"


def _install(home: Path) -> None:
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, home], check=True, timeout=120)
    install: list[str | Path] = [
        UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        home / "bin" / "python",
        "-r",
        REQUIREMENTS,
    ]
    subprocess.run(install, check=True, timeout=300)
    (package,) = home.glob("lib/python*/site-packages")
    shutil.copy(STAND_INS / "sitecustomize.py", package)
    shutil.copy(STAND_INS / "spellbook", home / "bin")
    (home / "examples").symlink_to(package / "merlin" / "examples")


@contextmanager
def _lock(beside: Path) -> Iterator[None]:
    beside.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{beside}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def theirs(case: Case) -> Run:
    """Upstream's run, from the cache where nothing that it depends on has changed."""
    digest = hashlib.sha256(f"{environment().name} {case}".encode())
    for file in case.files:
        digest.update(f"{file.relative_to(case.source)}\0".encode() + file.read_bytes())
    place = CACHE / "runs" / f"{case.id}-{digest.hexdigest()[:16]}"
    with _lock(place):
        if not (place / "result.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            command = [str(environment() / "bin" / "merlin"), *case.arguments]
            done = _run(case, place, [*command, "--no-errors"])
            (place / "result.json").write_text(json.dumps([done.code, done.said]))
    code, said = json.loads((place / "result.json").read_text())
    return Run(code, said, place / "here", place / "home")


def ours(case: Case, place: Path) -> Run:
    """Our run, in ``place``."""
    return _run(case, place, [sys.executable, "-m", "merlin_cli", *case.arguments])


def _run(case: Case, place: Path, command: list[str]) -> Run:
    here, home = place / "here", place / "home"
    home.mkdir(parents=True)
    for file in case.files:
        copy = here / case.source.name / file.relative_to(case.source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    path = f"{environment() / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    environ = {"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8", "USER": "compat", "COMPAT_WORD": "from outside"}
    environ["CELERY_BROKER_URL"] = "memory://"  # upstream speaks to workers also under --local: where a task stops them
    done = subprocess.run(
        command,
        cwd=here,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STARTED,
        check=False,
    )
    return Run(done.returncode, done.stdout, here, home)
