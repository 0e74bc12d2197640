"""``merlin run`` from a folder that no agent ever sees: its files, samples and parameters reach the allocation with the study."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.funnel import condition
from tests.cluster.site import Site, running_site
from tests.ground import Slurm, eventually

pytestmark = [pytest.mark.slurm, pytest.mark.control_plane, pytest.mark.timeout(900)]

SPEC = """
description: {name: voyage, description: all that it needs travels with it}
global.parameters: {SIDE: {values: [0], label: SIDE.%%}}
study:
- name: measure
  description: calls a script of the folder
  run: {cmd: "python3 $(SPECROOT)/scripts/x.py $(SIDE) $(POINT) > measured.txt"}
- name: go-on
  description: starts the next study, whose file and script travelled too
  run:
    depends: [measure_*]
    cmd: |
      cd $(SPECROOT)
      merlin run next.yaml
merlin:
  samples: {file: none.csv, column_labels: [POINT]}
"""
NEXT = """
description: {name: landfall, description: what a step started}
env: {variables: {OUTPUT_PATH: ../../..}}
study:
- name: measure
  description: calls the same script
  run: {cmd: "python3 $(SPECROOT)/scripts/x.py on land > measured.txt"}
"""
GENERATOR = """
from maestrowf.datastructures.core import ParameterGenerator


def get_custom_generator(env, **kwargs):
    generator = ParameterGenerator()
    generator.add_parameter("SIDE", ["left", "right"], ["port", "starboard"])
    return generator
"""
SCRIPT = "import sys\nprint('measured', *sys.argv[1:])\n"


def _merlin(site: Site, *arguments: str, cwd: Path) -> None:
    """Run the command as a scientist does, with a kubeconfig of the namespace."""
    plane = site.control_plane
    done = subprocess.run(
        site.slurm.network.enter([str(Path(sys.executable).with_name("merlin")), *arguments]),
        cwd=cwd,
        env=plane.environment(plane.user_kubeconfig("admin", namespace=site.namespace)),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def _succeeded(site: Site, name: str) -> None:
    site.wait_finished(name)
    assert condition(site.study(name), "Succeeded")["status"] == "True", site.study(name)["status"]


def test_all_that_a_study_needs_reaches_an_agent_that_never_saw_its_folder(slurm: Slurm, tmp_path: Path) -> None:
    """Script, samples and a table by reference; the study that a step starts finds its script, and keeps a copy of its own."""
    folder = tmp_path / "laptop"
    (folder / "scripts").mkdir(parents=True)
    for name, text in {"scripts/x.py": SCRIPT, "voyage.yaml": SPEC, "next.yaml": NEXT, "gen.py": GENERATOR}.items():
        (folder / name).write_text(text)
    (folder / "points.csv").write_text("north\nsouth\n")
    with running_site(slurm) as site:
        _merlin(
            site,
            *("run", "voyage.yaml", "--name", "voyage", "--samplesfile", "points.csv", "--pgen", "gen.py"),
            cwd=folder,
        )
        shutil.rmtree(folder)
        site.allocate()
        _succeeded(site, "voyage")
        (workspace,) = (site.root / "work").glob("voyage_*")
        said = {path.read_text().strip() for path in workspace.glob("measure/*/*/measured.txt")}
        assert said == {f"measured {side} {point}" for side in ("left", "right") for point in ("north", "south")}
        assert {path.name for path in workspace.glob("measure/*")} == {"port", "starboard"}

        def children() -> list[str]:
            found: Any = site.control_plane.get("studies", "-n", site.namespace, "-l", "merlin.dev/parent")["items"]
            return [each["metadata"]["name"] for each in found]

        (child,) = eventually(children, message="the step's study is made")
        _succeeded(site, child)
        (landed,) = (site.root / "work").glob("landfall_*")
        assert (landed / "measure" / "measured.txt").read_text() == "measured on land\n"
        shutil.rmtree(workspace)
        site.slurm.scancel(site.jobs.pop())
        eventually(lambda: not site.slurm.squeue(), message="the allocation ends")
        for name in ("outcomes", "agents"):
            shutil.rmtree(landed / "merlin_info" / name)
        for name in ("MERLIN_FINISHED", "measured.txt"):
            (landed / "measure" / name).unlink()
        _merlin(site, "restart", str(landed), "--local", cwd=tmp_path)
        assert (landed / "measure" / "measured.txt").read_text() == "measured on land\n"
