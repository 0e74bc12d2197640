"""The number of series is bounded whatever there is to show, and promtool finds nothing to say about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from merlin_agent import measure
from merlin_operator import cluster, metrics
from merlin_operator.board import AgentView
from merlin_operator.load import ConsumerLoad
from merlin_operator.view import StudyRef, StudyView
from merlin_study.outcome import Outcome
from tests.metrics.prometheus import promtool
from tests.metrics.test_measures import beat
from tests.operating.running import LOAD, RecordingEngine
from tests.operating.views import FAILED, RUNNING, agent

MOST = 20_000


class Shown:
    """What of a board is measured."""

    def __init__(self, views: Sequence[StudyView], agents: Sequence[AgentView]) -> None:
        self.views, self.agents, self.traffic = views, agents, cluster.Traffic()


def scrape(studies: int, sites: int, queues: int) -> str:
    """Return what is scraped from an operator that knows so many of each."""
    views = [
        replace(view, ref=StudyRef("team", f"study-{number}", f"uid-{number}"), progressed_at=1.0)
        for number, view in ((number, FAILED if number % 2 else RUNNING) for number in range(studies))
    ]
    agents = [agent(f"a{number}", site=f"site-{number % sites}") for number in range(5 * sites)]
    consumers = [
        ConsumerLoad(f"site-{site}", f"queue-{queue}", pending=1, ack_pending=1, ack_limit=40, redelivered=0)
        for site in range(sites)
        for queue in range(queues)
    ]
    engine = RecordingEngine(load=replace(LOAD, consumers=tuple(consumers)))
    for each in agents:
        told = measure.Measures()
        engine.tally.hear(beat(each.heartbeat.agent, told, site=each.heartbeat.site))
        for queue in range(queues):
            told.note(f"queue-{queue}", Outcome.SUCCEEDED, ran=1.0, waited=1.0)
        engine.tally.hear(beat(each.heartbeat.agent, told, site=each.heartbeat.site))
    collector = metrics.MerlinCollector(engine, Shown(views, agents), "team", clock=lambda: 1_700_000_200.0)
    return prometheus_client.generate_latest(metrics.registry_of(collector)).decode()


def series(text: str) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]


def test_ten_thousand_studies_on_many_sites_stay_below_the_bound() -> None:
    found = series(scrape(studies=10_000, sites=300, queues=40))
    assert len(found) == len(set(found))
    assert len(found) < MOST
    assert 'merlin_task_duration_seconds_count{queue="other",site="other"}' in found
    assert 'merlin_agents{site="other",state="active"}' in found
    assert 'merlin_consumer_pending_chunks{queue="other",site="other"}' in found


def test_no_histogram_has_a_label_of_a_study_or_a_step() -> None:
    for line in series(scrape(studies=3, sites=2, queues=2)):
        if "_bucket{" in line:
            assert "study=" not in line
            assert "step=" not in line


def test_promtool_finds_nothing_to_say() -> None:
    done = promtool("check", "metrics", stdin=scrape(studies=3, sites=2, queues=2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documentation_s_table_names_every_metric_and_its_labels() -> None:
    families = text_string_to_metric_families(scrape(studies=3, sites=2, queues=2))
    found = {
        sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") if family.type == "histogram"
        else sample.name: set(sample.labels) - {"le"}
        for family in families
        for sample in family.samples
    }  # fmt: skip
    page = Path(__file__).parents[2] / "docs" / "monitoring.md"
    rows = re.findall(r"^\| `(merlin_\w+)` \| ([^|]*?) ?\|", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name: set(filter(None, labels.split(", "))) for name, labels in rows} == found
