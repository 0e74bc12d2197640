"""The whole loop on real parts: kubectl, API server, operator, NATS, and agents in real Slurm allocations."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.funnel import check_complete, condition, manifest, taking_part, workspace_of
from tests.cluster.site import Site, running_site
from tests.ground import Slurm, eventually

pytestmark = [pytest.mark.slurm, pytest.mark.control_plane, pytest.mark.timeout(900)]

SAMPLES = 10_000
LONG = "40:00"
"""Of an allocation, so that it outlives all tests here on a busy machine."""


@pytest.fixture(scope="module")
def site(slurm: Slurm) -> Iterator[Site]:
    """One site for all tests here: what they share is started once."""
    with running_site(slurm) as started:
        yield started


def _check_complete(site: Site, name: str, *, most_doubled: int) -> None:
    study = site.study(name)
    check_complete(study, site.root / "work", samples=SAMPLES, most_doubled=most_doubled)
    assert len(site.control_plane.kubectl("get", "study", name, "-n", site.namespace, "-o", "json").stdout) < 32 * 1024


def test_a_study_runs_in_two_slurm_allocations(site: Site) -> None:
    """Applied with kubectl between one allocation's start and the other's; nothing is lost and nothing runs twice."""
    site.allocate(time=LONG)
    before, began = site.metric("merlin_status_writes_total"), time.monotonic()
    site.apply(manifest("first-light", samples=SAMPLES))
    eventually(lambda: site.done("first-light") > 0, message="the first allocation works")
    site.allocate(time=LONG)
    site.wait_finished("first-light")
    _check_complete(site, "first-light", most_doubled=0)
    writes = site.metric("merlin_status_writes_total") - before
    assert writes <= time.monotonic() - began + 2, "at most one status write a second"
    assert taking_part(site.study("first-light"), site.root / "work") == 2, "both allocations"
    allocations: Any = site.control_plane.get("allocations", "-n", site.namespace)["items"]
    assert {each["spec"]["jobId"] for each in allocations} == set(site.jobs)


def test_killing_each_part_in_turn_costs_nothing(site: Site) -> None:
    """``kill -9`` of the operator, of one agent and of nats-server during one study: the same result.

    Tasks stand still from before each kill until it is noted how far the study is, or it would be over before the next one; on a busy
    machine, which notes it late, it may be all the same.
    """
    hold = site.root / "hold"

    def goes_on() -> bool:
        return site.done("survivor") >= min(mark + 1000, 2 * SAMPLES + 2)

    while len(site.agent_pids()) < 2:
        jobs = len(site.agent_pids())
        site.allocate(time=LONG)
        eventually(lambda before=jobs: len(site.agent_pids()) > before, message="an agent starts")  # type: ignore[misc]
    site.apply(manifest("survivor", samples=SAMPLES, before=f"while [ -e {hold} ]; do sleep 0.05; done"))
    eventually(lambda: site.done("survivor") > 500, message="the study is under way")
    hold.touch()
    site.operator.kill()
    site.operator.start()
    mark = site.done("survivor")
    hold.unlink()
    eventually(goes_on, message="the operator goes on where it was")
    hold.touch()
    os.kill(random.choice(site.agent_pids()), signal.SIGKILL)
    mark = site.done("survivor")
    hold.unlink()
    eventually(goes_on, timeout=400, message="the other agent goes on")
    hold.touch()
    site.broker.kill()
    site.broker.start()
    hold.unlink()
    site.wait_finished("survivor")
    lost = sum(step.get("lost", 0) for step in site.study("survivor")["status"]["steps"])
    _check_complete(site, "survivor", most_doubled=lost)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("description: the funnel", "describtion: the funnel"), "describtion"),
        (
            ("cmd: find $(say.workspace) -name said.txt -exec cat {} + | sort -u | wc -l > total.txt", "shell: sh"),
            "cmd",
        ),
        (("depends: [say_*]", "depends: [sing_*]"), "sing"),
        (("task_queue: many", "task_queue: many\n      depends: [count]"), "count -> say"),
        (("name: count", "name: say"), "different names"),
        (('values: ["world", "mundo"]', 'values: ["world"]'), "WORLD"),
        (("total.txt", "$(MERLIN_TOTAL)"), "MERLIN_TOTAL"),
        (("name: count", "name: ../x"), "../x"),
    ],
)
def test_what_is_wrong_is_refused_with_a_clear_message(site: Site, change: tuple[str, str], words: str) -> None:
    """By ``kubectl apply`` or by the ``Accepted`` condition; either names the place."""
    name = f"refused-{random.getrandbits(32):x}"
    text = manifest(name, samples=3).replace(*change)
    applied = site.control_plane.apply(text, namespace=site.namespace, check=False)
    if applied.returncode:
        assert words in applied.stderr
        return
    site.wait_finished(name)
    accepted = condition(site.study(name), "Accepted")
    assert accepted["status"] == "False"
    assert words in accepted["message"]
    assert "spec." in accepted["message"]


def test_deleting_a_study_leaves_nothing_in_the_broker(site: Site) -> None:
    """The finalizer lets go, and the study's subjects are gone from every stream."""
    if not site.agent_pids():
        site.allocate(time=LONG)
    site.apply(manifest("brief", samples=3))
    site.wait_finished("brief")
    site.control_plane.kubectl("delete", "study", "brief", "-n", site.namespace, "--timeout=180s", timeout=200)
    gone = site.control_plane.kubectl("get", "study", "brief", "-n", site.namespace, check=False)
    assert "NotFound" in gone.stderr


def test_a_rehearsed_study_goes_the_whole_way_and_runs_nothing(site: Site) -> None:
    """Its tasks are reported as succeeded by the agents of an allocation, and none of its commands leaves a trace."""
    if not site.agent_pids():
        site.allocate(time=LONG)
    study = yaml.safe_load(manifest("rehearsed", samples=1).replace("$(NUMBER)", "$(MERLIN_SAMPLE_ID)"))
    study["spec"].update(rehearse=0, merlin={"samples": {"count": SAMPLES}})
    site.apply(yaml.safe_dump(study))
    site.wait_finished("rehearsed")
    rehearsed = site.study("rehearsed")
    assert condition(rehearsed, "Succeeded")["status"] == "True", rehearsed["status"]
    assert rehearsed["status"]["counts"]["succeeded"] == 2 * SAMPLES + 1
    assert [path.name for path in workspace_of(rehearsed, site.root / "work").iterdir()] == ["merlin_info"]


def _patch(site: Site, name: str, **spec: Any) -> None:
    change = json.dumps({"spec": spec})
    site.control_plane.kubectl("patch", "study", name, "-n", site.namespace, "--type=merge", "-p", change)


def _phase(site: Site, name: str) -> str:
    return str(site.study(name).get("status", {}).get("phase"))


def _running(site: Site, name: str) -> int:
    return int(site.study(name).get("status", {}).get("counts", {}).get("running", 0))


def _cancelled(site: Site, name: str) -> int:
    return int(site.study(name).get("status", {}).get("counts", {}).get("cancelled", 0))


def test_a_user_holds_ends_and_repeats_studies_with_kubectl(site: Site) -> None:
    """Each switch takes effect within seconds, and the phase and the conditions tell it."""
    if not site.agent_pids():
        site.allocate(time=LONG)
    gate = site.root / "gate"
    site.apply(manifest("held", samples=150, before=f"while [ ! -e {gate} ]; do sleep 0.05; done"))
    eventually(lambda: _running(site, "held") > 0, message="tasks run")

    _patch(site, "held", suspend=True)
    eventually(lambda: _phase(site, "held") == "Suspended", message="it is suspended")
    assert condition(site.study("held"), "Suspended")["reason"] == "Suspended"
    gate.touch()
    eventually(lambda: _running(site, "held") == 0, message="what runs ends")
    begun = site.done("held")
    assert 0 < begun < 300, "what had not started waits"
    gate.unlink()

    _patch(site, "held", suspend=False, maxInFlight=1)
    eventually(lambda: _phase(site, "held") == "Running", message="it goes on")
    eventually(lambda: _running(site, "held") == 1, message="one task runs, though there are more slots")

    site.apply(manifest("urgent", samples=3).replace("\nspec:", "\nspec:\n  priority: 10"))
    _patch(site, "held", cancel=True)
    site.wait_finished("held")
    assert _phase(site, "held") == "Cancelled"
    assert condition(site.study("held"), "Finished")["reason"] == "Cancelled"

    gate.touch()
    _patch(site, "held", cancel=False, maxInFlight=None, restart={"id": "1", "steps": ["say"]})
    eventually(lambda: _phase(site, "held") != "Cancelled", message="the restart is carried out")
    site.wait_finished("held")
    assert condition(site.study("held"), "Succeeded")["status"] == "True", (
        "what was cancelled ran, and what waited for it"
    )
    site.wait_finished("urgent")

    gate.unlink()
    _patch(site, "held", restart={"id": "2", "exitCodes": [0], "steps": ["say"]})
    eventually(lambda: _running(site, "held") > 0, message="successes run again where they are named")
    site.apply(manifest("first", samples=2).replace("\nspec:", "\nspec:\n  priority: 10"))
    _patch(site, "held", purge="1")
    eventually(lambda: _cancelled(site, "held") > 0, message="what waits is dropped, though nothing that runs ends")
    gate.touch()
    site.wait_finished("first")
    site.wait_finished("held")
    held = site.study("held")
    assert held["status"]["phase"] == "CompletedWithFailures"
    assert held["status"]["counts"]["cancelled"] > 0, "what waited is dropped"
    assert held["status"]["doubled"] == 0


ROUNDS = """
description: {name: rounds, description: a study that starts the next one}
env: {variables: {ROUND: 1, OUTPUT_PATH: rounds}}
study:
- name: iterate
  description: three rounds; a retry of the task starts nothing twice
  run:
    cmd: |
      cd $(SPECROOT)
      [ $(ROUND) -eq 3 ] || merlin run rounds.yaml --vars ROUND=$(( $(ROUND) + 1 )) || exit 102
      mkdir tried-$(ROUND) 2> /dev/null && exit $(MERLIN_RETRY)
      echo round $(ROUND)
    retry_delay: 0
"""


def test_a_study_starts_studies_from_within_its_steps(site: Site) -> None:
    """Through an agent's socket, the broker and the operator's narrow rights; they belong to the first one."""
    if not site.agent_pids():
        site.allocate(time=LONG)
    place = site.root / "work" / "nested"
    place.mkdir()
    (place / "rounds.yaml").write_text(ROUNDS)
    body = {
        "apiVersion": "merlin.dev/v1alpha1",
        "kind": "Study",
        "metadata": {"name": "rounds"},
        "spec": yaml.safe_load(ROUNDS.replace("ROUND: 1", "ROUND: '1'")) | {"vars": {"SPECROOT": str(place)}},
    }
    site.apply(yaml.safe_dump(body))
    uid = site.study("rounds")["metadata"]["uid"]

    def family() -> list[dict[str, Any]]:
        found: Any = site.control_plane.get("studies", "-n", site.namespace, "-l", f"merlin.dev/root={uid}")["items"]
        return sorted(found, key=lambda each: int(each["metadata"]["annotations"]["merlin.dev/generation"]))

    eventually(lambda: len(family()) == 2, message="both are made")
    first, second = family()
    for each in (first, second):
        site.wait_finished(each["metadata"]["name"])
    site.wait_finished("rounds")
    assert len(family()) == 2, "a task that was tried again started nothing twice"
    names = ["rounds", first["metadata"]["name"], second["metadata"]["name"]]
    assert all(condition(site.study(name), "Succeeded")["status"] == "True" for name in names)
    assert second["metadata"]["labels"]["merlin.dev/parent"] == first["metadata"]["uid"]
    assert [owner["uid"] for owner in second["metadata"]["ownerReferences"]] == [uid]
    said = {path.read_text().splitlines()[-1] for path in (place / "rounds").glob("*/iterate/iterate.out")}
    assert said == {"round 2", "round 3"}
