"""The control plane of the test ground is a real one: schemas, RBAC, tokens, and restarts that lose nothing."""

import pytest

from tests.ground import ControlPlane

pytestmark = pytest.mark.control_plane

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: probes.ground.merlin.dev}
spec:
  group: ground.merlin.dev
  scope: Namespaced
  names: {kind: Probe, plural: probes, singular: probe}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              properties: {slots: {type: integer, minimum: 1}}
              x-kubernetes-validations: [{rule: self.slots % 2 == 0, message: slots come in pairs}]
"""

ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}
  - {kind: ServiceAccount, name: robot}
"""


def probe(slots: int) -> str:
    return f"apiVersion: ground.merlin.dev/v1\nkind: Probe\nmetadata: {{name: probe}}\nspec: {{slots: {slots}}}\n"


def test_a_definition_is_served_and_its_rules_are_enforced(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.install_crds(CRD)
    assert control_plane.apply(probe(2), namespace=namespace).stdout == "probe.ground.merlin.dev/probe created\n"
    refused = control_plane.apply(probe(3), namespace=namespace, check=False)
    assert (refused.returncode, "slots come in pairs" in refused.stderr) == (1, True)
    with pytest.raises(AssertionError, match="greater than or equal to 1"):
        control_plane.apply(probe(0), namespace=namespace)


def test_a_user_and_a_service_account_may_do_what_a_role_gives_them_and_no_more(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.kubectl("create", "serviceaccount", "robot", "--namespace", namespace)
    role = ROLE.replace("name: robot", f"name: robot, namespace: {namespace}")
    for who in (
        control_plane.granted("tenant", role, may="list configmaps", namespace=namespace),
        control_plane.service_account_kubeconfig(namespace, "robot"),
    ):
        assert control_plane.get("configmaps", kubeconfig=who)["items"] == []
        refused = control_plane.kubectl("get", "secrets", kubeconfig=who, check=False)
        assert "Forbidden" in refused.stderr


def test_objects_survive_a_kill_of_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "configmap", "kept", "--namespace", namespace)
    control_plane.kill_apiserver()
    refused = control_plane.kubectl("get", "configmap", "kept", "--namespace", namespace, check=False)
    assert "refused" in refused.stderr
    control_plane.restart_apiserver()
    assert control_plane.get("configmap", "kept", "--namespace", namespace)["kind"] == "ConfigMap"


def test_requests_hang_while_the_api_server_is_paused(control_plane: ControlPlane) -> None:
    control_plane.pause()
    try:
        hung = control_plane.kubectl("get", "namespaces", "--request-timeout=1s", check=False)
    finally:
        control_plane.resume()
    assert hung.returncode == 1
    assert control_plane.get("namespaces")["kind"] == "List"


def test_neither_command_line_holds_a_token(control_plane: ControlPlane) -> None:
    arguments = " ".join(control_plane.apiserver.argv + control_plane.etcd.argv)
    assert not [token for token in control_plane._tokens.values() if token in arguments]
