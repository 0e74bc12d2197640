"""Parts of a study's files through a real API server: made by a user's rights, read by the operator's, collected with the Study."""

import asyncio
import json
from typing import Any

import pytest
from kubernetes import client

from merlin_cli import bundling, freight
from merlin_cli.exits import CliError
from merlin_cli.kube import KubeConfig
from merlin_operator import cluster, contents
from tests.ground import ControlPlane
from tests.operating.test_study_arrival import STUDY

pytestmark = pytest.mark.control_plane


def test_what_a_user_submits_the_operator_reads_and_the_study_owns(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bundling.Content.of(b"0123456789" * 100_000)
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(control_plane.kubeconfig))
    user = KubeConfig()
    for name in ("first", "second"):
        freight.deliver(user, namespace, {**STUDY, "metadata": {"name": name}}, [content])
    for name, _ in content.parts:
        found = control_plane.get("configmap", name, "--namespace", namespace)
        assert found["immutable"] is True
        metadata: Any = found["metadata"]
        assert {owner["name"] for owner in metadata["ownerReferences"]} == {"first", "second"}
    with pytest.raises(CliError):
        freight.deliver(user, namespace, {**STUDY, "metadata": {"name": "first"}}, [bundling.Content.of(b"other")])
    listed = json.loads(control_plane.kubectl("get", "configmaps", "-n", namespace, "-o", "json").stdout)
    assert {each["metadata"]["name"] for each in listed["items"]} >= {name for name, _ in content.parts}
    assert not any(bundling.Content.of(b"other").parts[0][0] == each["metadata"]["name"] for each in listed["items"])

    api = cluster.Api(restricted, namespace)
    parts = [(name, "part") for name, _ in content.parts]
    assert asyncio.run(contents.joined(api, parts, content.sha256)) == b"0123456789" * 100_000
    with pytest.raises(contents.ContentError, match=r"ConfigMap absent: expected it in namespace .*; create it"):
        asyncio.run(api.content("absent", "part"))
    with pytest.raises(contents.ContentError, match="expected a key 'other', found part"):
        asyncio.run(api.content(parts[0][0], "other"))
    monkeypatch.setenv("KUBECONFIG", str(control_plane.user_kubeconfig("stranger", namespace=namespace)))
    with pytest.raises(contents.ContentError, match=r"found 403: .* cannot get resource"):
        asyncio.run(cluster.Api(cluster.connect(), namespace).content(parts[0][0], "part"))
    core = client.CoreV1Api(client.ApiClient(restricted))
    with pytest.raises(client.ApiException, match="Forbidden"):
        core.list_namespaced_config_map(namespace)
