"""The Spack recipe against a stand-in that knows only names of Spack's package language, and takes only what these take."""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "agent" / "spack" / "packages" / "merlin-agent" / "package.py"


class Words:
    """What the recipe has said and run."""

    def __init__(self) -> None:
        self.directives: list[tuple[str, object]] = []
        self.ran: list[list[str]] = []

    def module(self) -> ModuleType:
        """``spack.package``, as far as a recipe of this kind may use it."""

        def version(name: str) -> None:
            self.directives.append(("version", name))

        def license(name: str) -> None:  # noqa: A001 - Spack's word
            self.directives.append(("license", name))

        def depends_on(spec: str, *, type: tuple[str, ...] = ("build", "link")) -> None:  # noqa: A002 - Spack's word
            self.directives.append(("depends_on", (spec, type)))

        made = ModuleType("spack.package")
        made.__dict__.update(
            Package=type("Package", (), {}),
            version=version,
            license=license,
            depends_on=depends_on,
            join_path=lambda *parts: "/".join(map(str, parts)),
            Executable=lambda path: lambda *words: self.ran.append([path, *map(str, words)]),
        )
        return made


class Prefix(str):
    """Spack's prefix: a text with directories as attributes."""

    __slots__ = ()

    @property
    def bin(self) -> str:
        """Its programs."""
        return f"{self}/bin"


def test_the_recipe_installs_the_wheels_into_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words()
    monkeypatch.setitem(sys.modules, "spack", ModuleType("spack"))
    monkeypatch.setitem(sys.modules, "spack.package", words.module())
    package: Any = runpy.run_path(str(RECIPE))["MerlinAgent"]()
    version = (ROOT / "agent" / "pyproject.toml").read_text().split('version = "')[1].split('"')[0]
    assert ("version", version) in words.directives
    assert ("depends_on", ("python@3.11:", ("build", "run"))) in words.directives
    assert package.url.endswith(f"/merlin-agent-wheels-{version}.tar.gz"), "what `make wheelhouse` writes"
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse" / f"merlin_agent-{version}-py3-none-any.whl").touch()
    package.stage = type("Stage", (), {"source_path": str(tmp_path)})
    python = type(
        "Python", (), {"command": staticmethod(lambda *given: words.ran.append(["python", *map(str, given)]))}
    )
    spec = type("Spec", (dict,), {"version": version})({"python": python})
    package.install(spec, Prefix("/opt/agent"))
    assert words.ran == [
        ["python", "-m", "venv", "/opt/agent"],
        [
            "/opt/agent/bin/python", "-m", "pip", "install", "--no-index",
            f"--find-links={tmp_path}/wheelhouse", f"merlin-agent=={version}",
        ],
    ]  # fmt: skip
