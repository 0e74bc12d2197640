"""Upstream's own introductory examples run as they are: same files in, same layout and contents out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = str(ROOT / ".cache" / "uv" / "bin" / "uv")
MERLIN = str(Path(sys.executable).with_name("merlin"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with upstream's wheel (for its examples; nothing of it runs) and what their scripts import."""
    home = tmp_path_factory.mktemp("upstream") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(home)], check=True, timeout=120)
    install = [UV, "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
    subprocess.run([*install, "--no-deps", "merlin==1.13.0", "names", "numpy"], check=True, timeout=300)
    return home


def _run(python: Path, folder: str, name: str, where: Path, *options: str) -> Path:
    """Copy an example, run it, and return its study's directory."""
    (package,) = python.glob("lib/python*/site-packages/merlin")
    shutil.copytree(package / "examples" / "workflows" / folder, where / folder)
    command = [MERLIN, "run", f"{folder}/{name}.yaml", "--local", "--slots", "2", *options]
    environment = {**os.environ, "PATH": f"{python / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("Outputs: "))


def _texts(study: Path, pattern: str) -> dict[str, str]:
    return {str(path.relative_to(study)): path.read_text() for path in study.glob(pattern)}


def test_the_demo_ends_well_and_says_where_its_outputs_lie(tmp_path: Path) -> None:
    """What ``make demo`` runs: more than a thousand sampled tasks, a chain and two funnels."""
    command = [MERLIN, "run", str(ROOT / "docs" / "examples" / "demo.yaml"), "--local", "--slots", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = Path(done.stdout.strip().splitlines()[-1].removeprefix("Outputs: "))
    assert len(list(study.glob("throw/*/**/MERLIN_FINISHED"))) == 1000
    assert "expected error" in (study / "report" / "pi.txt").read_text()


def test_the_bench_measures_all_contenders() -> None:
    """Few tasks, one turn: that it works, not how fast anything is."""
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--tasks", "20", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "merlin / hyperqueue" in done.stdout


def test_hello(python: Path, tmp_path: Path) -> None:
    study = _run(python, "hello", "hello", tmp_path)
    assert _texts(study, "step_1/*/*.out") == {
        "step_1/GREET.hello.WORLD.world/step_1_GREET.hello.WORLD.world.out": "hello, world!\n",
        "step_1/GREET.hola.WORLD.mundo/step_1_GREET.hola.WORLD.mundo.out": "hola, mundo!\n",
    }
    assert (study / "step_2" / "step_2.out").read_text() == "Hurrah, we did it!\n"
    assert len(list(study.rglob("MERLIN_FINISHED"))) == 3


def test_hello_samples(python: Path, tmp_path: Path) -> None:
    """Samples are made by the example's own script; each greets its own row."""
    study = _run(python, "hello", "hello_samples", tmp_path)
    names = (study / "merlin_info" / "samples.csv").read_text().split()
    said = _texts(study, "step_1/*/*/*.out")
    assert said == {
        f"step_1/GREET.{word}/{at:02d}/step_1_GREET.{word}.out": f"{word}, {name}!\n"
        for word in ("hello", "hola")
        for at, name in enumerate(names)
    }
    assert len(names) == 3


def test_simple_chain(python: Path, tmp_path: Path) -> None:
    """The second step lists the first one's directory of the same parameter, after it is over."""
    study = _run(python, "simple_chain", "simple_chain", tmp_path)
    assert study.parent == tmp_path / "studies"
    listed = _texts(study, "step2/*/*.out")
    assert sorted(listed) == ["step2/X2.0.5/step2_X2.0.5.out", "step2/X2.0.75/step2_X2.0.75.out"]
    assert all("MERLIN_FINISHED" in text and "RUNNING" not in text for text in listed.values())


def test_null_spec(python: Path, tmp_path: Path) -> None:
    """Ten rows of a ``.npy`` file, named only in a comment, make ten tasks; scripts are called as under Slurm."""
    study = _run(python, "null_spec", "null_spec", tmp_path, "--vars", "TIME=0")
    scripts = _texts(study, "null_step/*/null_step.slurm.sh")
    assert len(scripts) == 10
    assert all("#echo 0." in text and "sleep 0\nexit 0" in text for text in scripts.values())
    assert (study / "verify" / "verify.slurm.out").read_text() == "Done\n"
