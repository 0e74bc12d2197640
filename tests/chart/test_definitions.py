"""Definitions outlive a release, and the Studies with them: helm itself against a real API server, without pods."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chart.rendering import CHART, DEFAULT, Helm
from tests.ground import ControlPlane

pytestmark = pytest.mark.control_plane

STUDY = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {name: kept}
spec:
  description: {name: kept, description: outlives its operator}
  study: [{name: say, description: one line, run: {cmd: echo hello}}]
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def helm_of(helm: Helm, control_plane: ControlPlane) -> Iterator[Run]:
    """Helm on that API server; what a test leaves is uninstalled. No hooks: nothing there would run the Job."""
    installed: set[tuple[str, str]] = set()

    def run(verb: str, release: str, namespace: str, *options: str, check: bool = True) -> Any:
        installed.add((release, namespace))
        chart = [] if verb == "uninstall" else [str(CHART), "--values", str(CHART / "ci" / DEFAULT)]
        place = ["--namespace", namespace, "--kubeconfig", str(control_plane.kubeconfig), "--no-hooks"]
        return helm.run(verb, release, *chart, *place, *options, check=check)

    yield run
    for release, namespace in installed:
        run("uninstall", release, namespace, "--ignore-not-found")


def owner(control_plane: ControlPlane) -> tuple[str, str]:
    """Which release, in which namespace, the definition of Studies says it belongs to."""
    definition: dict[str, Any] = control_plane.get("customresourcedefinition", "studies.merlin.dev")
    found = definition["metadata"]["annotations"]
    return found["meta.helm.sh/release-name"], found["meta.helm.sh/release-namespace"]


def test_a_release_that_comes_back_finds_its_definitions_and_studies(
    helm_of: Run, control_plane: ControlPlane, namespace: str
) -> None:
    """Under the same name it needs nothing said; under another one, Helm's own words and one flag."""
    helm_of("install", "merlin", namespace, "--take-ownership")  # definitions that kubectl applied are adopted, too
    assert owner(control_plane) == ("merlin", namespace)
    control_plane.apply(STUDY, namespace=namespace)
    before: dict[str, Any] = control_plane.get("study", "kept", "--namespace", namespace)
    helm_of("uninstall", "merlin", namespace)
    assert not control_plane.get("deployments", "--namespace", namespace)["items"]
    helm_of("install", "merlin", namespace)
    helm_of("uninstall", "merlin", namespace)

    other = control_plane.namespace()
    refused = helm_of("install", "again", other, check=False)
    assert refused.returncode != 0
    assert "invalid ownership metadata" in refused.stderr
    helm_of("install", "again", other, "--take-ownership")
    assert owner(control_plane) == ("again", other)
    helm_of("upgrade", "again", other)
    after: dict[str, Any] = control_plane.get("study", "kept", "--namespace", namespace)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_release_without_definitions_of_its_own_touches_none(
    helm_of: Run, control_plane: ControlPlane, namespace: str
) -> None:
    """The second tenant of a cluster comes and goes while the first one's release owns them."""
    helm_of("install", "merlin", namespace, "--take-ownership")
    second = control_plane.namespace()
    helm_of("install", "merlin", second, "--set", "crds.install=false,rbac.aggregate=false")
    helm_of("uninstall", "merlin", second)
    assert owner(control_plane) == ("merlin", namespace)


def test_an_older_helm_takes_what_kubectl_hands_over(helm_of: Run, control_plane: ControlPlane, namespace: str) -> None:
    """The commands of docs/chart.md for a helm without --take-ownership."""
    definitions = ("studies.merlin.dev", "allocations.merlin.dev")
    control_plane.kubectl("label", "--overwrite", "crd", *definitions, "app.kubernetes.io/managed-by=Helm")
    names = ("meta.helm.sh/release-name=again", f"meta.helm.sh/release-namespace={namespace}")
    control_plane.kubectl("annotate", "--overwrite", "crd", *definitions, *names)
    helm_of("install", "again", namespace)
    assert owner(control_plane) == ("again", namespace)
