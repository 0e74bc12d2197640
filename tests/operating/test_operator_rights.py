"""The operator's Role is exactly what the operator asks for: the API server's audit log of all that it can do, against the rules."""

import asyncio
import inspect
import json
from collections.abc import Awaitable
from typing import Any

import pytest
import yaml
from kubernetes import client

from merlin_operator import cluster
from merlin_operator.allocations import Tell
from merlin_operator.handlers import FINALIZER
from merlin_operator.view import StudyRef
from tests.ground import ControlPlane, eventually
from tests.operating.conftest import ROLE
from tests.operating.running import RecordingEngine, running
from tests.operating.test_study_arrival import STUDY, gone, handled

pytestmark = pytest.mark.control_plane

CHILD = {**STUDY, "metadata": {"name": "child"}}
ALLOCATION = {
    "apiVersion": "merlin.dev/v1alpha1",
    "kind": "Allocation",
    "metadata": {"name": "slurm-77"},
    "spec": {"site": "hpc", "scheduler": "slurm", "jobId": "77"},
}


def rights() -> set[tuple[str, str]]:
    """Every (resource, verb) of the Role."""
    role = next(each for each in yaml.safe_load_all(ROLE.read_text()) if each["kind"] == "Role")
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


async def _every_request(api: cluster.Api, uid: str) -> set[str]:
    """Make each request that the operator has beside kopf's; return the names of those."""
    child = await api.create_study(CHILD)
    ref = StudyRef(api.namespace, "child", str(child["metadata"]["uid"]))
    status: list[dict[str, Any]] = [{"op": "add", "path": "/status", "value": {"phase": "Running"}}]
    requests: dict[str, Awaitable[object]] = {
        "study": api.study("child"),
        "studies": api.studies(),
        "patch_study": api.patch_study("probe", uid, {"suspend": True}),
        "patch_study_status": api.patch_study_status("probe", status),
        "release_study": api.release_study("probe", uid, held=[FINALIZER], kept=[FINALIZER]),
        "delete_study": api.delete_study(ref),
        "namespace_ends": api.namespace_ends(),
        "content": api.content("files", "x"),
        "create_allocation": api.create_allocation(ALLOCATION),
        "allocations": api.allocations(),
        "patch_allocation_status": api.patch_allocation_status("slurm-77", {"status": {"state": "Running"}}),
        "allocation": api.allocation("slurm-77"),
        "patch_allocation": api.patch_allocation("slurm-77", {"spec": {"drain": True}}),
        "tell_of_allocation": api.tell_of_allocation(Tell("slurm-77", uid, "Quarantined", "why")),
        "delete_allocation": api.delete_allocation("slurm-77"),
    }
    for request in requests.values():
        await request
    return {"create_study", *requests}


def test_the_operator_needs_every_right_that_it_has_and_no_other(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    """Through kopf: a Study arrives, changes and leaves with a warning; and every request of `cluster.Api` once."""
    control_plane.kubectl("create", "configmap", "files", "-n", namespace, "--from-literal=x=1")
    with running(restricted, namespace, RecordingEngine(forgets=False)):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
        study: Any = control_plane.get("study", "probe", "-n", namespace)
        made = asyncio.run(_every_request(cluster.Api(restricted, namespace), study["metadata"]["uid"]))
        control_plane.kubectl("delete", "study", "probe", "-n", namespace, "--wait=false")
        eventually(lambda: gone(control_plane, namespace))
        eventually(lambda: ("events", "create") in used(control_plane, namespace))
    assert made == {name for name, _ in inspect.getmembers(cluster.Api, inspect.iscoroutinefunction) if name[0] != "_"}
    assert not [each for each in control_plane.asked(namespace) if each["responseStatus"]["code"] == 403]
    assert used(control_plane, namespace) == rights()


def used(plane: ControlPlane, namespace: str) -> set[tuple[str, str]]:
    """Every (resource, verb) that the operator asked for."""
    found = [(each["objectRef"], each["verb"]) for each in plane.asked(namespace)]
    return {("/".join(filter(None, (what["resource"], what.get("subresource")))), verb) for what, verb in found}
