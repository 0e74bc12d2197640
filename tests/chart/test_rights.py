"""What each account of the chart may do, as the API server itself answers: ``kubectl auth can-i --list``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.chart.rendering import Helm
from tests.ground import ControlPlane

pytestmark = pytest.mark.control_plane

RIGHTS = {
    "operator": {
        "studies.merlin.dev": "create delete get list patch watch",
        "studies.merlin.dev/status": "patch",
        "allocations.merlin.dev": "create delete get list patch watch",
        "allocations.merlin.dev/status": "patch",
        "configmaps": "get",
        "events": "create",
    },
    "bootstrap": {
        "secrets": "create",
        "secrets merlin-agents": "get update",
        "secrets merlin-broker": "get update",
        "secrets merlin-keys": "get update",
        "secrets merlin-operator": "get update",
    },
    "test": {"studies.merlin.dev": "create delete get"},
    "site-credentials": {"secrets merlin-agents": "get"},
}
"""Resource and, where a right is for some only, name → verbs."""
ROLES = {
    "view": {
        "allocations.merlin.dev": "get list watch",
        "allocations.merlin.dev/status": "get list watch",
        "studies.merlin.dev": "get list watch",
        "studies.merlin.dev/status": "get list watch",
    },
    "edit": {
        "allocations.merlin.dev": "patch update",
        "studies.merlin.dev": "create delete deletecollection patch update",
    },
    "admin": {
        "allocations.merlin.dev": "delete deletecollection patch update",
        "studies.merlin.dev": "create delete deletecollection patch update",
    },
}


def listed(plane: ControlPlane, namespace: str, who: str) -> dict[str, str]:
    """What somebody may do in a namespace, beyond what everybody who signed in may."""
    heads, *rows = plane.kubectl("auth", "can-i", "--list", "-n", namespace, "--as", who).stdout.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+(?: \S+)*", heads)]
    found: dict[str, str] = {}
    for row in rows:
        resource, _, names, verbs = (row[at:end].strip() for at, end in zip(starts, [*starts[1:], None], strict=True))
        if resource and not resource.startswith("self"):  # reviews of what oneself may do
            for name in names.strip("[]").split() or [""]:
                found[f"{resource} {name}".strip()] = " ".join(sorted(verbs.strip("[]").split()))
    return found


@pytest.fixture(scope="module")
def installed(helm: Helm, control_plane: ControlPlane) -> str:
    """A namespace with the accounts, roles and bindings of a release."""
    namespace = control_plane.namespace()
    manifests = [each for each in helm.render() if re.search("ServiceAccount|Role", each["kind"])]
    text = json.dumps(manifests).replace('"namespace": "team"', f'"namespace": "{namespace}"')
    control_plane.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": json.loads(text)}))
    ours, theirs = ("-n", namespace), ("--user", "ada")
    control_plane.kubectl("create", "rolebinding", "ada", "--role=merlin-site-credentials", *theirs, *ours)
    for role in ROLES:
        control_plane.kubectl(
            "create", "rolebinding", role, f"--clusterrole=merlin-study-{role}", "--user", role, *ours
        )
    return namespace


@pytest.mark.parametrize("component", RIGHTS)
def test_an_account_may_do_what_is_listed_here_and_nothing_elsewhere(
    control_plane: ControlPlane, installed: str, component: str
) -> None:
    """Each line is a right that an admin grants with the release: a change here is one to tell in the CHANGELOG."""
    account = f"system:serviceaccount:{installed}:merlin-{component}"
    who = "ada" if component == "site-credentials" else account
    assert listed(control_plane, installed, who) == RIGHTS[component]
    assert listed(control_plane, "default", who) == {}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_of_the_cluster_s_users_gains_what_is_listed_here(
    control_plane: ControlPlane, installed: str, role: str
) -> None:
    assert listed(control_plane, installed, role) == ROLES[role]
    found: Any = control_plane.get("clusterrole", f"merlin-study-{role}")
    aggregated = {name for name in found["metadata"]["labels"] if "aggregate-to" in name}
    assert aggregated == {f"rbac.authorization.k8s.io/aggregate-to-{role}"}
