"""Metrics follow Prometheus' conventions, and their number stays bounded however many studies there are."""

import re
from collections.abc import Sequence
from dataclasses import replace

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from merlin_operator import agent_metrics, cluster, metrics
from merlin_operator.board import AgentView
from merlin_operator.view import StudyRef, StudyView
from tests.operating.running import RecordingEngine
from tests.operating.views import ACCEPTED, FAILED, REFUSED, RUNNING, SUCCEEDED, agent

NOW = 1_700_000_200.0


class Shown:
    """What of a board is measured."""

    def __init__(self, views: Sequence[StudyView], agents: Sequence[AgentView] = ()) -> None:
        self.views, self.agents = views, agents
        self.traffic = cluster.Traffic(status_writes=3, errors=1)


def scrape(board: Shown, collector: metrics.MerlinCollector | None = None) -> str:
    used = collector or metrics.MerlinCollector(RecordingEngine(), board, "team", clock=lambda: NOW)
    return prometheus_client.generate_latest(metrics.registry_of(used)).decode()


def series(text: str) -> dict[str, float]:
    found = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in found}


def named(name: str, view: StudyView) -> StudyView:
    return replace(view, ref=StudyRef("team", name, f"uid-{name}"))


def test_names_helps_and_units_follow_the_conventions() -> None:
    text = scrape(Shown([RUNNING], [agent()]))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) >= 17
    for name, family in families.items():
        assert re.fullmatch(r"merlin_[a-z]+(_[a-z]+)*", name)
        assert family.documentation[:1].isupper()
        assert not family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|percent|created|count|sum|bucket)$", name)
        for sample in family.samples:
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            assert sample.name in {name + suffix for suffix in suffixes}
            assert (family.type == "gauge") or sample.value >= 0
    assert "_created" not in text


def test_every_state_has_a_series_from_the_start_and_tasks_add_up() -> None:
    found = series(scrape(Shown([RUNNING, named("refused", REFUSED)])))
    assert series(scrape(Shown([]))).keys() >= {key for key in found if key.startswith("merlin_studies")}
    states = {key: value for key, value in found.items() if key.startswith("merlin_studies")}
    assert states == {
        'merlin_studies{namespace="team",state="Pending"}': 0,
        'merlin_studies{namespace="team",state="Refused"}': 1,
        'merlin_studies{namespace="team",state="Running"}': 1,
        'merlin_studies{namespace="team",state="Suspended"}': 0,
        'merlin_studies{namespace="team",state="Cancelling"}': 0,
        'merlin_studies{namespace="team",state="Succeeded"}': 0,
        'merlin_studies{namespace="team",state="CompletedWithFailures"}': 0,
        'merlin_studies{namespace="team",state="Cancelled"}': 0,
    }
    tasks = {
        key.split('state="')[1].split('"')[0]: value for key, value in found.items() if key.startswith("merlin_tasks")
    }
    assert sum(tasks.values()) == RUNNING.total
    assert (tasks["succeeded"], tasks["running"], tasks["queued"], tasks["waiting"]) == (40, 10, 20, 31)


def test_agents_and_slots_by_site() -> None:
    agents = [
        agent("a1", busy=1),
        agent("a2", leaving=True, busy=2),
        agent("a3", silent_for=100.0),
        agent("a4", left=True),
        agent("b1", site="other"),
    ]
    found = series(scrape(Shown([], agents)))
    assert [found[f'merlin_agents{{site="hpc",state="{state}"}}'] for state in agent_metrics.AGENT_STATES] == [1, 1, 1]
    assert found['merlin_agent_slots{site="hpc",state="busy"}'] == 3
    assert found['merlin_agent_slots{site="hpc",state="idle"}'] == 1
    assert found['merlin_agent_slots{site="other",state="idle"}'] == 2


def test_counts_of_engine_and_api_server_are_there() -> None:
    found = series(scrape(Shown([])))
    for name, value in {
        "merlin_broker_connected": 1,
        "merlin_status_writes_total": 3,
        "merlin_api_errors_total": 1,
        "merlin_issued_tasks_total": 0,
        "merlin_reports_total": 0,
        'merlin_refused_messages_total{reason="signature"}': 0,
        'merlin_refused_messages_total{reason="schema"}': 0,
        "merlin_engine_loop_age_seconds": 0,
    }.items():
        assert found[name] == value
    assert any(name.startswith("merlin_build_info{version=") for name in found)


def test_ten_thousand_studies_have_series_for_two_hundred_unfinished_ones_first() -> None:
    finished = [named(f"done-{number}", replace(SUCCEEDED, finished_at=NOW - number)) for number in range(9900)]
    active = [named(f"active-{number}", RUNNING) for number in range(100)]
    found = series(scrape(Shown([*finished, *active])))
    studies = {match[1] for key in found if (match := re.search(r'study="([^"]+)"', key))}
    assert len(studies) == metrics.MAX_STUDIES
    assert {view.ref.name for view in active} <= studies
    assert len(found) < 3000


def test_a_finished_study_keeps_its_series_for_a_while_and_no_longer() -> None:
    ended = replace(FAILED, finished_at=NOW - metrics.KEPT_AFTER_END + 1)
    assert metrics.shown_studies([ended, ACCEPTED], NOW) == [ACCEPTED, ended]
    assert metrics.shown_studies([ended, ACCEPTED], NOW + 2) == [ACCEPTED]


def test_what_another_operator_counted_is_not_counted_again() -> None:
    """Neither what stood when the log was first read, nor a study whose log was not read yet, nor a ledger folded anew."""
    board = Shown([replace(RUNNING, inherited=())])
    collector = metrics.MerlinCollector(RecordingEngine(), board, "team")
    stood = replace(RUNNING, inherited=RUNNING.counted)
    folded_anew = replace(stood, steps=(replace(stood.steps[0], succeeded=3), stood.steps[1]))
    ahead = replace(stood, steps=(replace(stood.steps[0], succeeded=44, failed=2), stood.steps[1]))
    totals = []
    for view in (board.views[0], stood, folded_anew, stood, ahead, folded_anew, ahead):
        board.views = [view]
        found = series(scrape(board, collector))
        totals.append(found['merlin_task_outcomes_total{namespace="team",outcome="succeeded"}'])
    assert totals == [0, 0, 0, 0, 4, 4, 4]
    assert found['merlin_task_outcomes_total{namespace="team",outcome="failed"}'] == 2


def test_redundant_results_never_count_backwards_when_studies_go() -> None:
    board = Shown([replace(RUNNING, redundant=3), named("other", replace(RUNNING, redundant=1))])
    collector = metrics.MerlinCollector(RecordingEngine(), board, "team")
    totals = []
    for views in (board.views, [replace(RUNNING, redundant=5)], [], [named("new", replace(RUNNING, redundant=2))]):
        board.views = views
        totals.append(series(scrape(board, collector))["merlin_redundant_results_total"])
    assert totals == [4, 6, 6, 8]
