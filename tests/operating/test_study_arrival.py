"""Studies arrive, change, resume and leave, over kopf and a real API server, with the operator's rights only."""

import json
import logging

import pytest
from kubernetes import client

from merlin_operator import storages
from tests.ground import ControlPlane, eventually
from tests.operating.running import RecordingEngine, running

pytestmark = pytest.mark.control_plane

STUDY = {
    "apiVersion": "merlin.dev/v1alpha1",
    "kind": "Study",
    "metadata": {"name": "probe"},
    "spec": {
        "description": {"name": "probe", "description": "a probe"},
        "study": [{"name": "hello", "description": "says hello", "run": {"cmd": "echo hello"}}],
    },
}
BIG = {
    **STUDY,
    "spec": {
        **STUDY["spec"],  # type: ignore[dict-item]
        "study": [
            {"name": f"step-{number}", "description": "is big", "run": {"cmd": f"# {number}\n" + "x" * 3000}}
            for number in range(100)
        ],
    },
}


def study(plane: ControlPlane, namespace: str, name: str = "probe") -> dict[str, object]:
    return plane.get("study", name, "--namespace", namespace)


def annotations(plane: ControlPlane, namespace: str) -> dict[str, str]:
    metadata = study(plane, namespace)["metadata"]
    assert isinstance(metadata, dict)
    found: dict[str, str] = metadata.get("annotations", {})
    return found


def gone(plane: ControlPlane, namespace: str) -> bool:
    found = plane.kubectl("get", "study", "probe", "--namespace", namespace, "--ignore-not-found")
    return not found.stdout


def suspend(plane: ControlPlane, namespace: str, *, value: bool = True) -> None:
    patch = json.dumps({"spec": {"suspend": value}})
    plane.kubectl("patch", "study", "probe", "--namespace", namespace, "--type=merge", "--patch", patch)


def handled(plane: ControlPlane, namespace: str) -> bool:
    return storages.SPEC_HASH in annotations(plane, namespace)


def events(plane: ControlPlane, namespace: str) -> list[str]:
    found = plane.get("events", "--namespace", namespace)["items"]
    assert isinstance(found, list)
    return [event["reason"] for event in found]


def test_a_study_is_observed_once_and_again_for_each_change_of_its_spec(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    engine = RecordingEngine()
    with running(restricted, namespace, engine):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
        suspend(control_plane, namespace)
        eventually(lambda: engine.generations("probe") == [1, 2])
        # Neither of these is for the engine.
        control_plane.kubectl("label", "study", "probe", "--namespace", namespace, "some=label")
        status = json.dumps({"status": {"phase": "Running"}})
        control_plane.kubectl(
            "patch", "study", "probe", "-n", namespace, "--subresource=status", "--type=merge", "--patch", status
        )
        suspend(control_plane, namespace, value=False)
        eventually(lambda: engine.generations("probe") == [1, 2, 3])
    observed = engine.observed[0]
    assert (observed.ref.namespace, observed.ref.name, observed.spec) == (namespace, "probe", STUDY["spec"])
    assert observed.created > 0


def test_a_study_that_was_there_before_the_operator_is_observed_by_the_next_one(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    control_plane.apply(json.dumps(STUDY), namespace=namespace)
    for _ in range(2):
        engine = RecordingEngine()
        with running(restricted, namespace, engine):
            eventually(lambda: engine.generations("probe") == [1])  # noqa: B023 - it is called in this turn
            eventually(lambda: handled(control_plane, namespace))


def test_a_copy_of_a_handled_study_with_its_annotations_is_a_new_study(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    engine = RecordingEngine()
    with running(restricted, namespace, engine):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
        copied = {"name": "copy", "annotations": annotations(control_plane, namespace)}
        control_plane.apply(json.dumps({**STUDY, "metadata": copied}), namespace=namespace)
        eventually(lambda: engine.generations("copy") == [1])


def test_a_deleted_study_is_forgotten_and_then_gone(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    engine = RecordingEngine()
    with running(restricted, namespace, engine):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
        control_plane.kubectl("delete", "study", "probe", "--namespace", namespace, "--timeout=180s")
    assert engine.forgotten == [engine.observed[0].ref]


def test_a_study_deleted_while_no_operator_runs_waits_for_the_next_one(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    with running(restricted, namespace, RecordingEngine()):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
    control_plane.kubectl("delete", "study", "probe", "--namespace", namespace, "--wait=false")
    assert not gone(control_plane, namespace)
    engine = RecordingEngine()
    with running(restricted, namespace, engine):
        eventually(lambda: gone(control_plane, namespace))
    assert ([each.name for each in engine.forgotten], engine.observed) == (["probe"], [])


@pytest.mark.parametrize("answer", [False, None], ids=["the broker is away", "the engine does not answer at all"])
def test_a_study_goes_away_although_the_broker_was_not_cleaned(
    control_plane: ControlPlane,
    namespace: str,
    restricted: client.Configuration,
    answer: bool | None,  # noqa: FBT001 - a case of the table
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(restricted, namespace, RecordingEngine(forgets=answer), forget_seconds=0.2):
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: handled(control_plane, namespace))
        with caplog.at_level(logging.WARNING):
            control_plane.kubectl("delete", "study", "probe", "--namespace", namespace, "--timeout=180s")
        eventually(lambda: events(control_plane, namespace), message="kopf posts events on the side")
    assert "study deleted without cleaning the broker: study=probe" in caplog.text
    assert events(control_plane, namespace) == ["CleanupTimedOut"]


def test_what_is_remembered_on_a_large_study_is_small_even_while_its_handler_fails(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_operator.handlers.BACKOFF", 0.5)
    engine = RecordingEngine(fails=2)
    text = json.dumps(BIG)
    assert len(text) > 300_000
    with running(restricted, namespace, engine):
        control_plane.apply(text, "--server-side", namespace=namespace)
        failing = eventually(lambda: annotations(control_plane, namespace))
        eventually(lambda: handled(control_plane, namespace))
    done = annotations(control_plane, namespace)
    assert len(json.dumps(failing)) < 1024
    assert list(done) == [storages.SPEC_HASH]
    assert len(json.dumps(done)) < 256
    assert engine.generations("probe") == [1]


def test_what_an_allocation_wishes_of_its_agents_is_handed_over(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    """As it was before the operator, as it changes, and that it is gone; the object itself is left alone."""
    made = {
        "apiVersion": "merlin.dev/v1alpha1",
        "kind": "Allocation",
        "metadata": {"name": "slurm-1"},
        "spec": {"site": "hpc", "scheduler": "slurm", "jobId": "1", "queues": ["a"]},
    }
    control_plane.apply(json.dumps(made), namespace=namespace)
    engine = RecordingEngine()
    where = ("allocation", "slurm-1", "--namespace", namespace)
    with running(restricted, namespace, engine):
        eventually(lambda: engine.directed.get("slurm-1", {}).get("queues") == ["a"])
        patch = json.dumps({"spec": {"drain": True, "queues": None}})
        control_plane.kubectl("patch", *where, "--type=merge", "--patch", patch)
        eventually(lambda: engine.directed["slurm-1"].get("drain") is True)
        assert "queues" not in engine.directed["slurm-1"]
        control_plane.kubectl("delete", *where)
        eventually(lambda: engine.directed["slurm-1"] == {})
