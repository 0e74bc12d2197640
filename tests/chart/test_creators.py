"""Who created a Study and whose child it is can't be made up: the chart's admission policy in a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from merlin_cli.kube import KubeConfig
from merlin_study import nested
from tests.chart.rendering import Helm
from tests.ground import ControlPlane, eventually

pytestmark = pytest.mark.control_plane

OPERATOR = "system:serviceaccount:{}:merlin-operator"
SPEC = {
    "description": {"name": "probe", "description": "a probe"},
    "study": [{"name": "hello", "description": "says hello", "run": {"cmd": "echo hello"}}],
}


@pytest.fixture(scope="module")
def guarded(helm: Helm, control_plane: ControlPlane) -> Iterator[str]:
    """A namespace with a release's policy, in which everybody may do everything."""
    namespace = control_plane.namespace()
    manifests = [each for each in helm.render("--set", "creators.exempt={velero}") if "Admission" in each["kind"]]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    text = text.replace("team", namespace)
    control_plane.apply(text)
    control_plane.kubectl("create", "clusterrolebinding", f"all-{namespace}", "--clusterrole=cluster-admin",
        "--user=tenant", "--user=stranger", "--user=velero", f"--user={OPERATOR.format(namespace)}")  # fmt: skip
    command = (
        "create",
        "--dry-run=server",
        "--as",
        "tenant",
        "-n",
        namespace,
        "-f",
        "-",
    )  # stores nothing, so each is new
    eventually(
        lambda: control_plane.kubectl(*command, stdin=study("probe", creator="x"), check=False).stderr,
        message="the policy is in force",
    )
    yield namespace
    # Other tests of this API server know these users as ones without rights.
    control_plane.kubectl("delete", "clusterrolebinding", f"all-{namespace}")
    for who in ("tenant", "stranger"):
        asks = ("auth", "can-i", "create", "studies", "--as", who, "-n", namespace)
        eventually(lambda asks=asks: control_plane.kubectl(*asks, check=False).returncode, message=f"{who} may not")  # type: ignore[misc]


def study(name: str, *, creator: str = "", labels: Mapping[str, str] | None = None, **annotations: str) -> str:
    said = {f"merlin.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    metadata: dict[str, Any] = {"name": name, "labels": dict(labels or {}), "annotations": said}
    if creator:
        metadata["annotations"][nested.CREATOR] = creator
    return json.dumps({"apiVersion": "merlin.dev/v1alpha1", "kind": "Study", "metadata": metadata, "spec": SPEC})


def applied(plane: ControlPlane, namespace: str, who: str, name: str, **says: Any) -> str:
    """Apply a Study as somebody; return what was said against it."""
    command = ("apply", "--as", who, "-n", namespace, "-f", "-")
    return plane.kubectl(*command, stdin=study(name, **says), check=False).stderr


def test_a_study_carries_who_created_it_or_nobody_and_that_stays(control_plane: ControlPlane, guarded: str) -> None:
    assert applied(control_plane, guarded, "tenant", "own", creator="tenant") == ""
    assert applied(control_plane, guarded, "tenant", "nobodys") == ""
    assert "expected tenant in a new Study" in applied(control_plane, guarded, "tenant", "forged", creator="stranger")
    assert "no change in one that is there" in applied(control_plane, guarded, "tenant", "nobodys", creator="tenant")
    assert "no change in one that is there" in applied(control_plane, guarded, "stranger", "own", creator="stranger")
    assert "no change" in applied(control_plane, guarded, "tenant", "own"), "kubectl takes back what it had said"
    patch = (
        "patch",
        "study",
        "own",
        "--as",
        "stranger",
        "-n",
        guarded,
        "--type=merge",
        "-p",
        '{"spec":{"suspend":true}}',
    )
    control_plane.kubectl(*patch)


@pytest.mark.parametrize(
    "says",
    [
        {"labels": {"merlin.dev/root": "0000-uid"}},
        {"labels": {"merlin.dev/parent": "0000-uid"}},
        {"labels": {"merlin.dev/submission": "0123456789abcdef"}},
        {"generation": "1"},
        {"root_name": "another"},
    ],
)
def test_nobody_joins_a_family_by_saying_so(control_plane: ControlPlane, guarded: str, says: dict[str, Any]) -> None:
    """Neither with a new Study nor with one that is there; only the operator's account, and who is exempt."""
    control_plane.apply(study("there"), namespace=guarded)
    for name in ("new", "there"):
        assert "only the operator says whose child" in applied(control_plane, guarded, "tenant", name, **says)
    for who in (OPERATOR.format(guarded), "velero"):
        assert applied(control_plane, guarded, who, f"by-{len(who)}", creator="tenant", **says) == ""


def test_other_namespaces_are_not_concerned(control_plane: ControlPlane, guarded: str, namespace: str) -> None:
    assert namespace != guarded
    assert applied(control_plane, namespace, "tenant", "probe", creator="stranger") == ""


def test_the_command_line_learns_its_name_from_the_api_server(
    control_plane: ControlPlane, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = control_plane.user_kubeconfig("tenant", namespace=guarded)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    assert KubeConfig().whoami() == "tenant"
