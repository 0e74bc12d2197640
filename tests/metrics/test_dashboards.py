"""Every expression of every panel and alert runs in a real Prometheus that scraped a real run, and returns what happened.

The run: the operator's program on a real API server and nats-server, agents that are real processes. One study succeeds
partly, one asks for a site that nobody serves. An agent is killed, the broker goes away for a while, somebody without keys
speaks up, and at last the operator ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from nats.aio.client import Client

from merlin_study import subjects
from merlin_study.seal import Keyring
from tests.ground import Broker, ControlPlane, Process, eventually, free_port
from tests.metrics.prometheus import Prometheus, points
from tests.metrics.test_alerts import ALERTS, RULES
from tests.metrics.test_series import MOST
from tests.metrics.watched import PANELS, Watched, answer
from tools import dashboards, grafana

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "tests" / "operating" / "role.yaml"
TIMING = ("--heartbeat", "1", "--lost-after", "15", "--presence", "1", "--presence-stale", "5")
SAMPLES, FAILING = 300, 100
SLOTS = 4
OPEN = 60
"""The samples that do not wait until somebody was killed over the others."""
STUDY = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: {name}}}
spec:
  description: {{name: {name}, description: many short tasks of which a third fails}}
  {extra}
  study:
  - name: run
    description: some time, and an exit code by the sample's number
    run:
      cmd: |
        while (( $(NUMBER) > {open} )) && [ ! -e {gate} ]; do sleep 0.1; done
        sleep 0.$((RANDOM % 3))
        if (( $(NUMBER) % 3 == 0 )); then exit $(MERLIN_SOFT_FAIL); fi
      task_queue: short
  - name: once
    description: one task that asks for another try
    run:
      cmd: |
        if [ -e tried ]; then exit 0; fi
        touch tried
        exit $(MERLIN_RETRY)
      max_retries: 3
      retry_delay: 2
      task_queue: other
  merlin:
    samples:
      generate: {{cmd: "seq {samples} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""
FIRED = {"NoAgentsForQueue", "TaskFailureRatioHigh", "BrokerUnavailable", "MessagesRefused", "OperatorDown"}
"""Alerts whose expression must have held in this run; the others' must not."""


@dataclass
class Parts:
    """The processes of the run."""

    plane: ControlPlane
    broker: Broker
    namespace: str
    root: Path
    agents: list[Process]

    @property
    def gate(self) -> Path:
        """The file that most tasks wait for."""
        return self.root / "gate"

    def agent(self, name: str) -> Process:
        """Start an agent in what looks like a batch job that ends in an hour."""
        argv: list[str | Path] = [Path(sys.executable).with_name("merlin-agent"), "--server", self.broker.url]
        argv += ["--credentials", self.root / "credentials.json", "--keys", self.root / "keys", "--slots", str(SLOTS)]
        argv += [
            "--site",
            "hpc",
            "--namespace",
            self.namespace,
            "--workspace",
            self.root / "work",
            "--drain-grace",
            "2",
        ]
        job = {"SLURM_JOB_ID": str(len(self.agents) + 1), "SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
        process = Process(argv, log=self.root / f"{name}.log", env={**os.environ, **job})
        process.start()
        self.agents.append(process)
        return process

    def apply(self, name: str, extra: str = "") -> None:
        """Hand in a study."""
        text = STUDY.format(name=name, samples=SAMPLES, open=OPEN, gate=self.gate, extra=extra)
        self.plane.apply(text, namespace=self.namespace)

    def forge(self) -> None:
        """Speak as an agent without its keys."""

        async def speak() -> None:
            client = Client()
            await client.connect(self.broker.url, **self.broker.credentials)
            await client.publish(subjects.Space(self.namespace).heartbeat("hpc", "forger"), b"\x01no envelope")
            await client.flush()
            await client.close()

        asyncio.run(speak())


@pytest.fixture(scope="module")
def run(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One run for all tests here; when they ask, everything but Prometheus has ended."""
    root = tmp_path_factory.mktemp("run")
    (root / "work").mkdir()
    Keyring.generate().save(root / "keys")
    port, namespace = free_port(), control_plane.namespace()
    kubeconfig = control_plane.granted("operator", ROLE, may="get studies", namespace=namespace)
    with Broker(root / "broker", user="operator", store_limit="64Mi") as broker:
        (root / "credentials.json").touch(0o600)
        (root / "credentials.json").write_text(json.dumps(dict(broker.credentials)))
        argv: list[str | Path] = [Path(sys.executable).with_name("merlin-operator"), "--namespace", namespace]
        argv += ["--server", broker.url, "--credentials", root / "credentials.json", "--keys", root / "keys"]
        argv += ["--http", f"127.0.0.1:{port}"]
        operator = Process([*argv, *TIMING], log=root / "operator.log", env=control_plane.environment(kubeconfig))
        parts = Parts(control_plane, broker, namespace, root, [])
        start = time.time()
        with Prometheus(root, target=f"127.0.0.1:{port}", rules=RULES) as prometheus:
            try:
                _happen(parts, operator, prometheus)
            finally:
                for process in (*parts.agents, operator):
                    process.stop()
            eventually(lambda: prometheus.now("absent(merlin_build_info)"), message="the operator is gone")
            yield Watched(prometheus, start, time.time(), study="mixed")


def _happen(parts: Parts, operator: Process, prometheus: Prometheus) -> None:
    def sees(expression: str, what: str) -> None:
        try:
            eventually(lambda: prometheus.now(expression), message=what, interval=0.2)
        except AssertionError:
            print(operator.describe(), *(agent.describe() for agent in parts.agents), sep="\n")
            raise

    operator.start()
    sees("merlin_broker_connected == 1", "the operator is scraped")
    victim = parts.agent("victim")
    sees("sum(merlin_agents) == 1", "the victim is seen")
    parts.apply("mixed")
    parts.apply("stranded", extra="site: nowhere")
    sees('merlin_task_outcomes_total{outcome="succeeded"} > 20', "the study works")
    sees('merlin_agent_slots{state="busy"} == 4', "the victim is at work")
    parts.agent("survivor")
    sees("sum(merlin_agents) == 2", "both agents are seen")
    victim.kill()
    parts.agent("heir")
    sees("merlin_lost_chunks_total > 0", "the victim's work is lost")
    parts.gate.touch()
    parts.forge()
    sees("merlin_refused_messages_total > 0", "the forger is noticed")
    parts.broker.kill()
    sees("merlin_broker_connected == 0", "the broker's absence is seen")
    parts.broker.restart()
    wait = ("wait", "--for=condition=Finished", "study/mixed", "-n", parts.namespace, "--timeout=400s")
    parts.plane.kubectl(*wait, timeout=420)
    sees(f"sum(merlin_task_outcomes_total) >= {SAMPLES + 2}", "every outcome is scraped")
    time.sleep(3)  # two more heartbeats, and a scrape after them


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda part: getattr(part, "name", getattr(part, "title", "")))
def test_a_panel_shows_something_of_the_run(run: Watched, board: grafana.Dashboard, panel: grafana.Panel) -> None:
    """Every query parses; those that are not silent when all is well return numbers."""
    assert panel.title.endswith("?"), f"{board.title}: a title is the question that the panel answers"
    assert not run.unanswered(panel)
    for query in panel.queries:
        labels = {word.split("}}")[0] for word in query.legend.split("{{")[1:]}
        assert all(labels <= each["metric"].keys() for each in run.over(query.expr)), query.legend


def test_the_choices_at_the_top_of_a_dashboard_are_there(run: Watched) -> None:
    for board in dashboards.DASHBOARDS:
        for variable in board.variables:
            assert run.prometheus.values(variable.metric, variable.label), variable


def test_the_panels_answer_what_happened(run: Watched) -> None:
    """Counts are exact where the run was; shares and times are of the right size."""
    states = run.highest("What do its tasks do?", "state")
    assert (states["succeeded"], states["soft_failed"]) == (SAMPLES - FAILING + 2, FAILING)
    assert states["retrying"] >= 1
    assert run.most(answer("How far is it?")) == 1
    assert run.most(answer("How many tasks did not succeed?")) == FAILING
    assert run.most(answer("Did anything run twice without a reason?")) == 0
    assert run.most("merlin_duplicate_executions_total") == 0
    assert run.most(answer("How often was NATS connected to again?")) >= 1
    assert run.most(answer("How many series does a scrape bring?")) < MOST
    assert run.highest("Which studies wait for agents?", "study") == {"stranded": 1}
    assert 0.5 <= run.highest("What share of the slots is busy?", "site")["hpc"] <= 1
    assert 3000 < run.highest("How long do the allocations still last?", "site")["hpc"] <= 3600
    assert 0 < run.most(answer("How full is the broker's store?")) < 0.1
    assert run.highest("How many messages does each stream hold?", "stream")["reports"] > SAMPLES / 10
    assert run.highest("How many chunks wait for an agent to fetch them?", "queue").keys() >= {"short", "other"}
    assert max(run.highest("How near is each queue to the most that may be unclaimed?", "queue").values()) < 0.01
    assert run.most('merlin_refused_messages_total{reason="signature"}') == 1, "the forger"
    assert run.most('merlin_refused_messages_total{reason="schema"}') == 0
    assert run.most('merlin_lost_chunks_total{site="hpc"}') >= 1
    assert run.highest("How many hosts are quarantined?", "site") == {"hpc": 0}
    versions = run.highest("Which version runs?", "version")
    assert list(versions.values()) == [1]


def test_outcomes_and_times_are_those_of_the_run(run: Watched) -> None:
    """What agents count travels in heartbeats; only the last second of the killed one's may be missing."""
    outcomes = {each["metric"]["outcome"]: max(points([each])) for each in run.over("merlin_task_outcomes_total")}
    assert (outcomes["succeeded"], outcomes["soft_failed"], outcomes["failed"]) == (SAMPLES - FAILING + 2, FAILING, 0)
    attempts = {each["metric"]["outcome"]: max(points([each])) for each in run.over(
        "sum by (outcome) (merlin_task_attempts_total)"
    )}  # fmt: skip
    assert attempts["retry"] == 1
    executed = sum(attempts.values())
    unheard = SLOTS * 10 * 2  # slots × tasks a second × seconds between two heartbeats
    assert SAMPLES + 3 - unheard <= executed <= SAMPLES + 3 + outcomes["lost"]
    assert run.most("sum(merlin_task_duration_seconds_count)") == executed
    assert run.most("sum(merlin_task_queue_wait_seconds_count)") == executed
    ran = run.most("sum(merlin_task_duration_seconds_sum)")
    assert 0.05 * executed < ran < 3 * SLOTS * (run.end - run.start), "of three agents"
    waited = run.most("sum(merlin_task_queue_wait_seconds_sum)") / executed
    assert 0 < waited < run.end - run.start


def test_no_counter_ever_fell(run: Watched) -> None:
    """Agents came, were killed and left."""
    for each in run.over('{__name__=~"merlin_.*(_total|_bucket|_count|_sum)"}'):
        values = points([each])
        assert values == sorted(values), each["metric"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_s_expression_held_exactly_where_it_should(run: Watched, alert: dict[str, Any]) -> None:
    assert run.held(alert) == (alert["alert"] in FIRED)


def test_prometheus_evaluated_every_alert_without_fault(run: Watched) -> None:
    assert run.faults() == {}
    assert {rule["name"] for rule in run.prometheus.rules()} == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("board", dashboards.DASHBOARDS, ids=lambda board: str(board.name))
def test_a_dashboard_of_the_run_can_be_drawn(run: Watched, board: grafana.Dashboard, tmp_path: Path) -> None:
    """With MERLIN_PICTURES set, the pictures are those of the documentation."""
    folder = ROOT / "docs" / "pictures" if os.environ.get("MERLIN_PICTURES") else tmp_path
    path = folder / f"{board.name}.svg"
    path.write_text(run.draw(board), encoding="utf-8")
    drawn = ET.parse(path).getroot()
    texts = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {panel.title for panel in board.panels} <= texts
    assert path.stat().st_size < 200_000


def test_the_files_are_what_their_source_says() -> None:
    """Written by ``python tools/dashboards.py``."""
    files = {path.name: path.read_text(encoding="utf-8") for path in dashboards.FOLDER.glob("*.json")}
    assert files == {f"{board.name}.json": grafana.render(board) for board in dashboards.DASHBOARDS}


def _unique(values: Callable[[dict[str, Any]], Any], items: list[dict[str, Any]]) -> bool:
    found = [values(item) for item in items]
    return len(found) == len(set(found))


def test_a_dashboard_is_what_grafana_takes() -> None:
    """Fixed uids, a data source to choose, panels that do not overlap."""
    boards = [json.loads(grafana.render(board)) for board in dashboards.DASHBOARDS]
    assert [board["uid"] for board in boards] == ["merlin-studies", "merlin-study", "merlin-sites", "merlin-operator"]
    for board in boards:
        assert board["templating"]["list"][0]["type"] == "datasource"
        assert _unique(lambda panel: panel["id"], board["panels"])
        cells = [
            (place["x"] + dx, place["y"] + dy)
            for place in (panel["gridPos"] for panel in board["panels"])
            for dx in range(place["w"])
            for dy in range(place["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < grafana.WIDTH
        for panel in board["panels"]:
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
