"""The repository's own promises: nothing shadows the standard library, one version, wheels that stand alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("study", "operator", "agent", "cli")


def test_nothing_importable_lies_in_the_operator_folder() -> None:
    """A module or package in ``operator/`` would shadow the standard library's ``operator`` for whoever starts there."""
    folder = ROOT / "operator"
    assert [path.name for path in folder.glob("*.py")] == []
    assert not (folder / "conftest.py").exists()


def test_every_test_lies_under_tests() -> None:
    """Tests beside the sources would be collected from folders with names such as ``operator``."""
    strays = [path for name in DISTRIBUTIONS for path in (ROOT / name).rglob("test_*.py")]
    assert strays == []


def test_no_test_package_is_called_operator() -> None:
    """``tests/operator`` would do what ``operator/__init__.py`` does."""
    assert [path for path in (ROOT / "tests").rglob("operator*") if path.stem == "operator"] == []


def test_the_standard_library_wins_from_the_root() -> None:
    """Started from the root of the repository, ``import operator`` finds the standard library's."""
    found = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.add(1, 2))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "3"


def _project(name: str) -> dict[str, object]:
    text = (ROOT / name / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"])


def test_one_version_and_exact_pins_between_siblings() -> None:
    """A study compiled by one version is run by the same version's agents."""
    versions = {str(_project(name)["version"]) for name in DISTRIBUTIONS}
    assert len(versions) == 1
    version = versions.pop()
    for name in DISTRIBUTIONS:
        text = (ROOT / name / "pyproject.toml").read_text(encoding="utf-8")
        for sibling, pin in re.findall(r'"(merlin-[a-z]+)(?:\[[a-z]+\])?([=<>~]=[^"]*)"', text):
            assert pin == f"=={version}", f"{name} pins {sibling} as {pin}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheels of all distributions."""
    out = tmp_path_factory.mktemp("wheels")
    uv = ROOT / ".cache" / "uv" / "bin" / "uv"
    subprocess.run(
        [uv, "build", "--all-packages", "--wheel", "--out-dir", out, "--quiet"], cwd=ROOT, check=True, timeout=300
    )
    return out


def test_the_agent_wheel_runs_without_kopf_or_kubernetes(wheels: Path, tmp_path: Path) -> None:
    """On a compute node there is the agent, the agreement and little else."""
    uv = ROOT / ".cache" / "uv" / "bin" / "uv"
    bare = tmp_path / "bare"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, bare], check=True, timeout=120)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", bare / "bin" / "python", "--find-links", wheels, "merlin-agent"],
        cwd=tmp_path, check=True, timeout=300,
    )  # fmt: skip
    code = (
        "import importlib.util as u, pkgutil, importlib, merlin_agent\n"
        "assert not any(u.find_spec(n) for n in ('kopf', 'kubernetes', 'aiohttp', 'merlin_operator', 'numpy'))\n"
        "names = [m.name for m in pkgutil.iter_modules(merlin_agent.__path__) if m.name != '__main__']\n"
        "[importlib.import_module(f'merlin_agent.{n}') for n in names]\n"
    )
    subprocess.run([bare / "bin" / "python", "-c", code], cwd=tmp_path, check=True, timeout=120)
    shown = subprocess.run([bare / "bin" / "merlin-agent", "--version"], capture_output=True, text=True, check=True)
    assert "0.1.0" in shown.stdout
