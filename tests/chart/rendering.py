"""helm as a test uses it: what the chart renders to, parsed."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.ground.needs import ROOT

CHART = ROOT / "charts" / "merlin"
CASES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))
DEFAULT = "default-values.yaml"
NAMESPACE = "team"

Manifest = dict[str, Any]


@functools.cache
def program() -> str:
    """The path of helm."""
    done = subprocess.run([ROOT / "tools" / "helm" / "build"], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


class Helm:
    """The commands that need no cluster."""

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run helm; AssertionError with what it said where it fails."""
        done = subprocess.run([program(), *arguments], capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode:
            raise AssertionError(f"helm {' '.join(map(str, arguments))}:\n{done.stderr}{done.stdout}")
        return done

    def text(self, *options: str, case: str = DEFAULT) -> str:
        """What `helm template` prints for release `merlin`."""
        values = ["--values", str(CHART / "ci" / case)]
        return self.run(
            "template", "merlin", CHART, "--namespace", NAMESPACE, "--kube-version", "1.35.4", *values, *options
        ).stdout

    def render(self, *options: str, case: str = DEFAULT) -> list[Manifest]:
        """The same, parsed."""
        return [each for each in yaml.safe_load_all(self.text(*options, case=case)) if each]


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod that a manifest makes, as (metadata, spec), None where it makes none."""
    if manifest["kind"] == "Pod":
        return {"metadata": manifest["metadata"], "spec": manifest["spec"]}
    template = manifest.get("spec", {}).get("template")
    return template if isinstance(template, dict) and "spec" in template else None


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one manifest of a kind and name."""
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found
