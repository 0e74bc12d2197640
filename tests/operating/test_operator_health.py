"""Health is judged by what the operator did: its loop goes round, and what is there was delivered."""

import json
import urllib.error
import urllib.request

import pytest
from kubernetes import client

from merlin_operator.health import WATCH_STUCK_AFTER, WatchGuard
from tests.ground import ControlPlane, eventually
from tests.operating.running import RecordingEngine, running
from tests.operating.test_study_arrival import STUDY, suspend

ONE, TWO = ("uid-1", 1), ("uid-2", 3)
LISTED = {ONE: "first", TWO: "second"}


def test_a_watch_that_delivered_everything_is_alive() -> None:
    guard = WatchGuard()
    guard.delivered("uid-1", 1)
    guard.delivered("uid-2", 3)
    for now in (0.0, 60.0, 600.0):
        assert guard.compare(LISTED, frozenset(LISTED), now) == []
        assert guard.problem(now) == ""


def test_a_study_that_was_just_made_is_given_time() -> None:
    guard = WatchGuard()
    assert guard.compare(LISTED, frozenset(), 0.0) == []
    assert guard.problem(60.0) == ""
    guard.delivered("uid-1", 1)
    guard.delivered("uid-2", 3)
    assert guard.compare(LISTED, frozenset(LISTED), 60.0) == []
    assert guard.problem(WATCH_STUCK_AFTER * 9) == ""


def test_what_is_handed_over_does_not_make_the_watch_alive() -> None:
    guard = WatchGuard()
    guard.delivered("uid-1", 1)
    assert guard.compare(LISTED, frozenset({ONE}), 0.0) == []
    assert guard.compare(LISTED, frozenset({ONE}), 60.0) == ["second"]
    assert guard.compare(LISTED, frozenset(LISTED), 120.0) == []  # the engine was told, but not by the watch
    assert guard.problem(119.0) == ""
    assert "has not delivered 1 studies" in guard.problem(120.0)
    guard.delivered("uid-2", 3)
    guard.compare(LISTED, frozenset(LISTED), 180.0)
    assert guard.problem(180.0) == ""


def test_a_generation_that_the_watch_missed_counts_like_a_study() -> None:
    guard = WatchGuard()
    guard.delivered("uid-2", 2)
    listed = {TWO: "second"}
    guard.compare(listed, frozenset(), 0.0)
    assert guard.problem(120.0)
    guard.delivered("uid-2", 4)  # a later one was delivered meanwhile, so the missed one does not matter
    guard.compare(listed, frozenset({("uid-2", 4)}), 180.0)
    assert guard.problem(300.0) == ""


def test_an_engine_that_does_not_know_what_was_delivered_is_no_better_than_a_dead_watch() -> None:
    guard = WatchGuard()
    guard.delivered("uid-1", 1)
    guard.compare({ONE: "first"}, frozenset(), 0.0)
    assert guard.compare({ONE: "first"}, frozenset(), 120.0) == ["first"]
    assert guard.problem(120.0)


def test_a_study_that_is_gone_is_missed_no_more() -> None:
    guard = WatchGuard()
    guard.compare(LISTED, frozenset(), 0.0)
    guard.compare({}, frozenset(), 100.0)
    assert guard.problem(1000.0) == ""


def probe(url: str) -> tuple[int, str]:
    """Status and text of an answer; 0 and the reason while nobody listens, as before the operator has come up."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@pytest.mark.control_plane
def test_probes_and_metrics_of_a_running_operator(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    engine = RecordingEngine()
    with running(restricted, namespace, engine, interval=0.2) as operator:
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: probe(f"{operator.url}/readyz") == (200, "ok\n"))
        assert probe(f"{operator.url}/healthz") == (200, "ok\n")
        assert "merlin_build_info{" in probe(f"{operator.url}/metrics")[1]
        engine.quiet = 61.0
        assert probe(f"{operator.url}/healthz") == (503, "the engine's loop has not gone round for 61 s\n")


@pytest.mark.control_plane
def test_an_operator_is_ready_once_it_has_met_its_broker(restricted: client.Configuration, namespace: str) -> None:
    engine = RecordingEngine(met=False)
    with running(restricted, namespace, engine, interval=0.2) as operator:
        waits = (503, "the broker has not been reached yet\n")
        eventually(lambda: probe(f"{operator.url}/readyz") == waits)
        assert probe(f"{operator.url}/healthz") == (200, "ok\n"), "a restart would not bring the broker"
        engine.met = True
        assert probe(f"{operator.url}/readyz") == (200, "ok\n")


@pytest.mark.control_plane
def test_a_study_that_the_watch_missed_is_handed_over_and_counted(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_operator.health.WATCH_STUCK_AFTER", 0.5)
    monkeypatch.setattr(WatchGuard, "delivered", lambda *_: None)
    engine = RecordingEngine(deaf=True)
    with running(restricted, namespace, engine, interval=0.2) as operator:
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: probe(f"{operator.url}/healthz")[0] == 503)
        engine.deaf = False
        eventually(lambda: engine.generations("probe") == [1])
        status, text = probe(f"{operator.url}/healthz")
        assert (status, "the watch has not delivered 1 studies" in text) == (503, True)


@pytest.mark.control_plane
def test_a_part_that_fails_ends_the_operator(restricted: client.Configuration, namespace: str) -> None:
    engine = RecordingEngine()
    with pytest.raises(AssertionError, match="a bug"), running(restricted, namespace, engine) as operator:  # noqa: PT012
        engine.dies = "a bug"
        eventually(operator.loop.is_closed)


@pytest.mark.control_plane
def test_an_operator_ends_whose_api_server_was_put_back_to_an_older_state(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    """Its watch would be silent, and what it knows of generations is not true any more; the next one reads what there is."""
    control_plane.apply(json.dumps(STUDY), namespace=namespace)
    older, engine = control_plane.backup(), RecordingEngine()
    with (  # noqa: PT012
        pytest.raises(AssertionError, match="put back to an older state"),
        running(restricted, namespace, engine, interval=0.5) as operator,
    ):
        suspend(control_plane, namespace)
        eventually(lambda: engine.generations("probe")[-1:] == [2])
        control_plane.restore(older)
        eventually(operator.loop.is_closed)


@pytest.mark.control_plane
def test_the_watch_goes_on_after_an_outage_of_the_api_server(
    control_plane: ControlPlane, namespace: str, restricted: client.Configuration
) -> None:
    engine = RecordingEngine()
    with running(restricted, namespace, engine, interval=0.5) as operator:
        eventually(lambda: probe(f"{operator.url}/readyz")[0] == 200)
        control_plane.kill_apiserver()
        eventually(lambda: operator.board.traffic.errors)
        control_plane.restart_apiserver()
        control_plane.apply(json.dumps(STUDY), namespace=namespace)
        eventually(lambda: operator.operator.health.guard._delivered)
        assert engine.generations("probe")[0] == 1
        eventually(lambda: probe(f"{operator.url}/healthz")[0] == 200)
