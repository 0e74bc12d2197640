"""Heartbeats become one object for each batch job, written when something that matters has changed."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import yaml

from merlin_operator import allocations
from merlin_operator.allocations import Change, Create, Delete, Ledger, Tell, Update
from merlin_operator.board import AgentView
from merlin_study import wire
from tests.ground.needs import ROOT
from tests.operating.test_status_conditions import closed
from tests.operating.views import agent

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = closed(
    yaml.safe_load((ROOT / "crds" / "allocation.yaml").read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def ledger() -> Ledger:
    made = Ledger()
    made.learn([])
    return made


def settle(made: Ledger, *agents: AgentView, now: datetime = NOW) -> list[Change]:
    """What is done until nothing more is to be done, as the board does it."""
    made.note(agents)
    done: list[Change] = []
    while changes := made.changes(now):
        for change in changes:
            made.done(change, now)
            done.append(change)
        assert len(done) < 1000, "it comes to an end"
    return done


def shown(change: Change) -> dict[str, Any]:
    assert isinstance(change, Update)
    jsonschema.validate({key: value for key, value in change.status.items() if value is not None}, STATUS)
    return change.status


STATUS = SCHEMA["properties"]["status"]


def test_agents_of_one_batch_job_share_an_object_and_others_have_one_for_each_host() -> None:
    done = settle(
        ledger(),
        agent("a1"),
        agent("a2", host="n2"),
        agent("b1", job="78"),
        agent("c1", job="", host="laptop"),
        agent("c2", job="", host="laptop"),
        agent("d1", site="other"),
    )
    bodies = [change.body for change in done if isinstance(change, Create)]
    for body in bodies:
        # The server fills the metadata in; its rule of the name is CEL.
        jsonschema.validate({**body, "metadata": {}}, {**SCHEMA, "additionalProperties": True})
        assert len(body["metadata"]["name"]) <= 63
    specs = [tuple(body["spec"].values()) for body in bodies]
    assert sorted(specs) == [
        ("hpc", "none", "laptop"),
        ("hpc", "slurm", "77"),
        ("hpc", "slurm", "78"),
        ("other", "slurm", "77"),
    ]
    assert len([change for change in done if isinstance(change, Update)]) == 4


def test_a_status_sums_up_the_agents_that_are_heard() -> None:
    made = ledger()
    *_, told = settle(
        made,
        agent("a2", host="n2", busy=1, queues=("sim", "all"), problems=("the workspace is not there",)),
        agent("a1", silent_for=61.0),
    )
    first = {"host": "n1", "version": "0.1.0", "slots": 2, "busy": 0}
    assert shown(told) == {
        "state": "Running",
        "nodes": 2,
        "hosts": ["n1", "n2"],
        "slots": 2,
        "busy": 1,
        "agentCount": 1,
        "agents": [
            {"name": "a1", **first, "queues": [], "lastHeartbeat": "2025-12-31T23:58:59Z"},
            {
                "name": "a2",
                **first,
                "host": "n2",
                "busy": 1,
                "queues": ["all", "sim"],
                "lastHeartbeat": "2025-12-31T23:59:59Z",
            },
        ],
        "queues": ["all", "sim"],
        "endTime": "2033-05-18T03:33:20Z",
        "lastHeartbeat": "2025-12-31T23:59:59Z",
        "quarantined": [],
        "messages": ["the workspace is not there"],
    }


def test_a_change_that_a_user_acts_on_is_written_at_once_and_the_rest_once_a_minute() -> None:
    made = ledger()
    settle(made, agent("a1"))
    assert settle(made, agent("a1"), now=after(10)) == []
    assert len(settle(made, agent("a1", busy=1), now=after(20))) == 1
    assert settle(made, agent("a1", busy=2), now=after(30)) == []
    assert shown(settle(made, agent("a1", busy=2), now=after(81))[0])["busy"] == 2
    assert shown(settle(made, agent("a1", leaving=True), now=after(82))[0])["state"] == "Draining"
    assert shown(settle(made, agent("a1", silent_for=70), now=after(83))[0])["state"] == "Silent"


def test_an_allocation_goes_when_all_its_agents_have_left_and_not_before() -> None:
    made = ledger()
    settle(made, agent("a1"), agent("a2"))
    (change,) = settle(made, agent("a1", left=True), agent("a2"))
    assert shown(change)["agentCount"] == 1
    made.note([agent("a1", left=True), agent("a2", left=True)])
    # The last word is heard once; the board may look later.
    (gone,) = settle(made)
    assert isinstance(gone, Delete)
    assert settle(made) == []


def test_an_allocation_goes_ten_minutes_after_the_last_sign_of_life() -> None:
    made = ledger()
    settle(made, agent("a1"))
    settle(made, agent("a1", silent_for=599), now=after(599))
    (gone,) = settle(made, agent("a1", silent_for=601), now=after(601))
    assert isinstance(gone, Delete)


def test_what_an_operator_before_this_one_left_is_taken_over_or_collected() -> None:
    created = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    mine = allocations.name_of(agent("a1").heartbeat)
    old = {"metadata": {"name": "old", **created}, "status": {"lastHeartbeat": "2026-01-01T00:01:00Z"}}
    made = Ledger()
    made.learn([{"metadata": {"name": mine, **created}}, old, {"metadata": {"name": "empty", **created}}])
    (told,) = settle(made, agent("a1"), now=after(60))
    assert shown(told)["agentCount"] == 1
    assert Delete("empty") in settle(made, agent("a1"), now=after(601))
    assert Delete("old") in settle(made, agent("a1"), now=after(661))


def test_an_object_that_the_server_refuses_is_left_alone() -> None:
    made = ledger()
    made.note([agent("a1", site="NOT_A_SITE"), agent("a2")])
    bad, _ = sorted(
        made.changes(NOW), key=lambda change: isinstance(change, Create) and "not-a-site" not in str(change)
    )
    made.refused(bad)
    (good, _) = settle(made, agent("a1", site="NOT_A_SITE"), agent("a2"))
    assert isinstance(good, Create)
    assert good.body["spec"]["site"] == "hpc"


def test_names_are_readable_safe_and_never_the_same_for_different_places() -> None:
    heartbeats = [
        agent("a", site="s", job="1", host="h").heartbeat,
        agent("a", site="s", job="", host="1").heartbeat,
        agent("a", site="S/../x", job="1[3]", host="h").heartbeat,
        agent("a", site="s" * 100, job="9" * 300, host="h").heartbeat,
        agent("a", site="", job="", host="").heartbeat,
    ]
    names = [allocations.name_of(each) for each in heartbeats]
    assert len(set(names)) == len(names)
    assert names[0].startswith("s-slurm-1-")
    for name in names:
        assert len(name) <= 52
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert name == name.strip("-")


def test_a_thousand_agents_make_a_small_object() -> None:
    many = [agent(f"a{number}" + "x" * 100, host=f"n{number}" + "x" * 200) for number in range(1000)]
    *_, told = settle(ledger(), *many)
    status = shown(told)
    assert (status["agentCount"], status["slots"], len(status["agents"])) == (1000, 2000, 64)
    assert len(json.dumps(status)) < 64 * 1024


def test_a_quarantined_host_is_shown_and_told_of_once() -> None:
    """An Event when it begins; the state says how many hosts are concerned."""
    held = wire.Quarantine(site="hpc", host="n2", since=1.7e9, until=1.7e9 + 600, why="all failed")
    sound, sick = agent("a1"), replace(agent("a2", host="n2"), quarantine=held)
    made = ledger()
    settle(made, sound, agent("a2", host="n2"))
    told, update = settle(made, sound, sick)
    assert isinstance(told, Tell)
    assert (told.reason, told.message) == ("Quarantined", "host n2 gets no work: all failed")
    status = shown(update)
    assert status["state"] == "Running, 1 quarantined"
    assert status["quarantined"] == [
        {"host": "n2", "startTime": "2023-11-14T22:13:20Z", "endTime": "2023-11-14T22:23:20Z", "reason": "all failed"}
    ]
    assert [type(change) for change in settle(made, sound, sick, now=after(61))] == [Update], "not a second Event"
    (alone,) = settle(made, sick, now=after(130))
    assert shown(alone)["state"] == "Quarantined"
