"""A Study from beginning to end and beyond, over a real API server, operator, broker and agent: what stays, and what never comes again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from merlin_study import subjects
from tests.ground import Broker, ControlPlane, Process, eventually
from tests.operating.test_operator_process import condition

pytestmark = pytest.mark.control_plane


@pytest.fixture
def agent(broker: Broker, process: Process, namespace: str, tmp_path: Path) -> Iterator[Process]:
    """An agent of the operator `process`, which is started with it."""
    process.start()
    flags = ["--namespace", namespace, "--site", "testsite", "--slots", "2", "--server", broker.url]
    files = [f"--credentials={tmp_path}/credentials", f"--keys={tmp_path}/keys", f"--workspace={tmp_path}/work"]
    environ = {**os.environ, "HOME": str(tmp_path)}
    made = Process([sys.executable, "-m", "merlin_agent", *flags, *files], log=tmp_path / "agent.log", env=environ)
    made.start()
    yield made
    made.stop()


def submit(plane: ControlPlane, namespace: str, name: str, cmd: str, **more: Any) -> str:
    """Apply a Study of one task, and return its uid."""
    step = {"name": "only", "description": "d", "run": {"cmd": cmd}}
    spec = {"description": {"name": name, "description": "d"}, "study": [step], **more}
    body = {"apiVersion": "merlin.dev/v1alpha1", "kind": "Study", "metadata": {"name": name}, "spec": spec}
    plane.apply(json.dumps(body), namespace=namespace)
    found: Any = plane.get("study", name, "--namespace", namespace)
    return str(found["metadata"]["uid"])


def test_an_etcd_that_is_put_back_to_an_older_state_fires_no_old_restart(
    agent: Process, process: Process, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """What was done stands in the log: neither the request that is there again nor the one that is gone comes twice."""

    def restart(token: str) -> None:
        patch = json.dumps({"spec": {"restart": {"id": token}}})
        control_plane.kubectl("patch", "study", "again", "--namespace", namespace, "--type=merge", "--patch", patch)

    def runs() -> int:
        return sum(len(path.read_text().splitlines()) for path in (tmp_path / "work").glob("**/runs"))

    def over() -> bool:
        return condition(control_plane, namespace, "again", "Finished") == "True"

    try:
        submit(control_plane, namespace, "again", f"echo run >> runs; test -e {tmp_path}/pass")
        eventually(lambda: runs() == 1 and over(), interval=0.2, message="it fails")
        restart("first")
        eventually(lambda: runs() == 2 and over(), interval=0.2, message="it runs again")
        older = control_plane.backup()
        restart("second")
        eventually(lambda: runs() == 3 and over(), interval=0.2, message="it runs once more")
        process.kill()
        control_plane.restore(older)
        found: Any = control_plane.get("study", "again", "--namespace", namespace)
        assert found["spec"]["restart"] == {"id": "first"}
        process.start()
        restart("second")
        generation = found["metadata"]["generation"] + 1
        eventually(lambda: _observed(control_plane, namespace, "again") == generation, message="it is seen")
        (tmp_path / "pass").touch()
        restart("third")
        eventually(lambda: condition(control_plane, namespace, "again", "Succeeded") == "True", message="it runs")
        assert runs() == 4, "once at first, and once for each of three requests"
    except BaseException:
        print(process.describe(), agent.describe())
        raise


def _observed(plane: ControlPlane, namespace: str, name: str) -> int:
    found: Any = plane.get("study", name, "--namespace", namespace)
    return int(found["status"].get("observedGeneration", 0))


def test_a_study_whose_time_is_over_leaves_its_files_and_what_its_policy_retains(
    agent: Process, process: Process, broker: Broker, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """Nothing else in any stream but the word for agents that were out of reach, which the broker drops by itself."""
    try:
        wishes = {"brief": {}, "kept": {"deletionPolicy": "Retain"}}
        uids = {
            name: submit(control_plane, namespace, name, "echo hello", ttlSecondsAfterFinished=1, **wish)
            for name, wish in wishes.items()
        }
        gone = ("wait", "--for=delete", "study/brief", "study/kept", "--namespace", namespace, "--timeout=180s")
        control_plane.kubectl(*gone)
        space = subjects.Space(namespace)
        left = asyncio.run(_left(broker, space))
        word = {name: space.control(uid) for name, uid in uids.items()}
        assert {subject for subject in left if uids["brief"] in subject} == {word["brief"]}
        retained = {subject for subject in left if uids["kept"] in subject}
        assert word["kept"] in retained
        assert any(subject.startswith(space.reports_of(uids["kept"])[:-1]) for subject in retained), "its log"
        assert any(subject.startswith(space.plans_of(uids["kept"])[:-1]) for subject in retained), "its plan"
        said = sorted(path.read_text() for path in (tmp_path / "work").glob("*/only/only.out"))
        assert said == ["hello\n", "hello\n"]
    except BaseException:
        print(process.describe(), agent.describe())
        raise


async def _left(broker: Broker, space: subjects.Space) -> set[str]:
    """Return the subjects of all messages that the broker holds, and what consumers filter."""
    client = await nats.connect(broker.url, **broker.credentials)
    stream, found = client.jetstream(), set[str]()
    for name in [each.config.name or "" for each in await stream.streams_info()]:
        state = (await stream.stream_info(name, subjects_filter=">")).state
        found |= set(state.subjects or {})
        found |= {each.config.filter_subject or "" for each in await stream.consumers_info(name)}
    assert {space.task_stream, space.report_stream, space.control_stream} <= {
        each.config.name for each in await stream.streams_info()
    }
    await client.close()
    return found
