"""The one source of the Grafana dashboards: writes charts/merlin/dashboards/*.json, or says with ``--check`` what differs.

A panel's title is the question that it answers. Tests import `DASHBOARDS` and run every expression in a real Prometheus.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

FOLDER: Final = Path(__file__).parents[1] / "charts" / "merlin" / "dashboards"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
"""Grafana's columns."""

Kind = Literal["timeseries", "stat", "bargauge", "heatmap"]
Unit = Literal["none", "s", "percentunit", "ops", "dateTimeAsIso", "bool_yes_no"]


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and what its series are called. ``quiet``: returns nothing where all is well."""

    expr: str
    legend: str = ""
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A question and the queries that answer it."""

    title: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    unit: Unit = "none"
    width: int = 12
    height: int = 8
    stacked: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of ``label`` in ``metric``."""

    name: str
    metric: str
    several: bool = True

    @property
    def label(self) -> str:
        """The label has the variable's name."""
        return self.name


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard; ``name`` is its file's."""

    name: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]

    @property
    def uid(self) -> str:
        """What links point at; it never changes."""
        return f"merlin-{self.name}"


ENDED: Final = 'state=~"succeeded|soft_failed|failed|timed_out|cancelled"'
UNSUCCESSFUL: Final = 'outcome=~"soft_failed|failed|timed_out"'
NAMESPACE: Final = 'namespace=~"$namespace"'
STUDY: Final = 'namespace=~"$namespace", study=~"$study"'
SITE: Final = 'site=~"$site"'


def _quantiles(metric: str, *, by: str, where: str) -> tuple[Query, ...]:
    rate = f"sum by ({', '.join(filter(None, ('le', by)))}) (rate({metric}_bucket{where}[$__rate_interval]))"
    name = f"{{{{{by}}}}} " if by else ""
    return tuple(
        Query(f"histogram_quantile({share}, {rate})", f"{name}{text}")
        for share, text in ((0.5, "half within"), (0.95, "95 % within"))
    )


STUDIES: Final = Dashboard(
    "studies",
    "Merlin / Studies",
    (Variable("namespace", "merlin_studies"),),
    (
        Panel(
            "How many studies are there, and how do they stand?",
            (Query(f"sum by (state) (merlin_studies{{{NAMESPACE}}})", "{{state}}"),),
            kind="stat",
            width=24,
            height=4,
        ),
        Panel(
            "How many tasks run now?",
            (Query(f'sum(merlin_tasks{{{NAMESPACE}, state="running"}})'),),
            kind="stat",
            width=8,
            height=4,
        ),
        Panel(
            "How many tasks are left?",
            (Query(f'sum(merlin_tasks{{{NAMESPACE}, state=~"waiting|queued|running|retrying"}})'),),
            kind="stat",
            width=8,
            height=4,
        ),
        Panel(
            "Did anything run twice without a reason?",
            (Query("sum(merlin_duplicate_executions_total)"),),
            kind="stat",
            width=8,
            height=4,
            hint="Must stay 0; what is counted here is a bug.",
        ),
        Panel(
            "How far is each study?",
            (
                Query(
                    f"sum by (namespace, study) (merlin_tasks{{{NAMESPACE}, {ENDED}}})"
                    f" / sum by (namespace, study) (merlin_tasks{{{NAMESPACE}}})",
                    "{{namespace}}/{{study}}",
                ),
            ),
            kind="bargauge",
            unit="percentunit",
        ),
        Panel(
            "How long until each study ends?",
            (Query(f"merlin_study_remaining_seconds{{{NAMESPACE}}}", "{{namespace}}/{{study}}", quiet=True),),
            unit="s",
            hint="From the rate of the last minute; empty while nothing ends.",
        ),
        Panel(
            "How many tasks end each second?",
            (
                Query(
                    f"sum by (outcome) (rate(merlin_task_outcomes_total{{{NAMESPACE}}}[$__rate_interval]))",
                    "{{outcome}}",
                ),
            ),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "What share of the tasks that end does not succeed?",
            (
                Query(
                    f"sum(rate(merlin_task_outcomes_total{{{NAMESPACE}, {UNSUCCESSFUL}}}[$__rate_interval]))"
                    f" / (sum(rate(merlin_task_outcomes_total{{{NAMESPACE}}}[$__rate_interval])) > 0)",
                    "unsuccessful",
                    quiet=True,
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "How long do tasks run?",
            (Query("sum by (le) (increase(merlin_task_duration_seconds_bucket[$__rate_interval]))", "{{le}}"),),
            kind="heatmap",
            unit="s",
        ),
        Panel(
            "How long do tasks wait for a slot?",
            _quantiles("merlin_task_queue_wait_seconds", by="", where=""),
            unit="s",
        ),
        Panel(
            "Which studies wait for agents?",
            (Query(f"merlin_study_unserved{{{NAMESPACE}}} == 1", "{{namespace}}/{{study}}", quiet=True),),
            hint="Empty where every queue with work has an agent.",
        ),
        Panel(
            "Which studies have not moved for longest?",
            (
                Query(
                    f"topk(10, time() - merlin_study_progress_timestamp_seconds{{{NAMESPACE}}})",
                    "{{namespace}}/{{study}}",
                ),
            ),
            unit="s",
        ),
    ),
)

ONE_STUDY: Final = Dashboard(
    "study",
    "Merlin / One study",
    (Variable("namespace", "merlin_studies", several=False), Variable("study", "merlin_tasks", several=False)),
    (
        Panel(
            "How far is it?",
            (Query(f"sum(merlin_tasks{{{STUDY}, {ENDED}}}) / sum(merlin_tasks{{{STUDY}}})"),),
            kind="stat",
            unit="percentunit",
            width=8,
            height=4,
        ),
        Panel(
            "How long until it ends?",
            (Query(f"merlin_study_remaining_seconds{{{STUDY}}}", quiet=True),),
            kind="stat",
            unit="s",
            width=8,
            height=4,
        ),
        Panel(
            "How long ago did an agent report?",
            (Query(f"time() - merlin_study_progress_timestamp_seconds{{{STUDY}}}"),),
            kind="stat",
            unit="s",
            width=8,
            height=4,
        ),
        Panel(
            "Does it wait for agents?",
            (Query(f"merlin_study_unserved{{{STUDY}}}"),),
            kind="stat",
            unit="bool_yes_no",
            width=8,
            height=4,
        ),
        Panel(
            "How many tasks did not succeed?",
            (Query(f'sum(merlin_tasks{{{STUDY}, state=~"soft_failed|failed|timed_out"}})'),),
            kind="stat",
            width=8,
            height=4,
        ),
        Panel(
            "Did anything run twice without a reason?",
            (Query(f"merlin_doubled_executions{{{STUDY}}}"),),
            kind="stat",
            width=8,
            height=4,
            hint="Must stay 0; what is counted here is a bug.",
        ),
        Panel(
            "What do its tasks do?",
            (Query(f"sum by (state) (merlin_tasks{{{STUDY}}})", "{{state}}"),),
            stacked=True,
            width=24,
        ),
        Panel(
            "How many tasks end each second?",
            (Query(f"sum by (state) (deriv(merlin_tasks{{{STUDY}, {ENDED}}}[$__rate_interval]))", "{{state}}"),),
            unit="ops",
        ),
        Panel(
            "How many tasks wait for their next try?",
            (Query(f'merlin_tasks{{{STUDY}, state="retrying"}}', "retrying"),),
        ),
        Panel(
            "How many tasks could be handed out and are not yet?",
            (Query(f"merlin_unroll_lag_tasks{{{STUDY}}}", "ready"),),
            hint="Only about a minute of work is handed out ahead, so that agents share it evenly.",
        ),
        Panel(
            "How many tasks wait for other steps?",
            (
                Query(
                    f'merlin_tasks{{{STUDY}, state="waiting"}} - ignoring (state) merlin_unroll_lag_tasks{{{STUDY}}}',
                    "waiting",
                ),
            ),
        ),
    ),
)

SITES: Final = Dashboard(
    "sites",
    "Merlin / Sites and agents",
    (Variable("site", "merlin_agents"),),
    (
        Panel(
            "How many agents are there?",
            (Query(f"sum by (site, state) (merlin_agents{{{SITE}}})", "{{site}} {{state}}"),),
            stacked=True,
        ),
        Panel(
            "What share of the slots is busy?",
            (
                Query(
                    f'sum by (site) (merlin_agent_slots{{{SITE}, state="busy"}})'
                    f" / (sum by (site) (merlin_agent_slots{{{SITE}}}) > 0)",
                    "{{site}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "How many slots are there?",
            (Query(f"sum by (site, state) (merlin_agent_slots{{{SITE}}})", "{{site}} {{state}}"),),
            stacked=True,
        ),
        Panel(
            "How long do the allocations still last?",
            (
                Query(f"merlin_first_allocation_end_timestamp_seconds{{{SITE}}} - time()", "{{site}} first"),
                Query(f"merlin_last_allocation_end_timestamp_seconds{{{SITE}}} - time()", "{{site}} last"),
            ),
            unit="s",
            hint="Of agents in a batch job whose end is known.",
        ),
        Panel(
            "How long ago was a site last heard?",
            (Query(f"time() - merlin_agent_last_seen_timestamp_seconds{{{SITE}}}", "{{site}}"),),
            unit="s",
        ),
        Panel(
            "How do executions end at each site?",
            (
                Query(
                    f"sum by (site, outcome) (rate(merlin_task_attempts_total{{{SITE}}}[$__rate_interval]))",
                    "{{site}} {{outcome}}",
                ),
            ),
            unit="ops",
        ),
        Panel(
            "How long do tasks of each queue run?",
            _quantiles("merlin_task_duration_seconds", by="queue", where=f"{{{SITE}}}"),
            unit="s",
        ),
        Panel(
            "How long do tasks of each queue wait for a slot?",
            _quantiles("merlin_task_queue_wait_seconds", by="queue", where=f"{{{SITE}}}"),
            unit="s",
        ),
        Panel(
            "How many slots' worth of work is done?",
            (Query(f"sum by (site) (rate(merlin_task_duration_seconds_sum{{{SITE}}}[$__rate_interval]))", "{{site}}"),),
            hint="Seconds of tasks that ended, each second; compare with the busy slots.",
        ),
        Panel(
            "How many chunks of tasks get lost with their agents?",
            (Query("increase(merlin_lost_chunks_total[$__rate_interval])", "lost"),),
        ),
    ),
)

OPERATOR: Final = Dashboard(
    "operator",
    "Merlin / Broker and operator",
    (),
    (
        Panel(
            "Which version runs?",
            (Query("sum by (version) (merlin_build_info)", "{{version}}"),),
            kind="stat",
            width=12,
            height=4,
        ),
        Panel(
            "Is the operator connected to NATS?",
            (Query("min(merlin_broker_connected)"),),
            kind="stat",
            unit="bool_yes_no",
            width=12,
            height=4,
        ),
        Panel(
            "How long ago did the engine's loop go round?",
            (Query("max(merlin_engine_loop_age_seconds)"),),
            kind="stat",
            unit="s",
            width=12,
            height=4,
        ),
        Panel(
            "How often was the connection to NATS made again?",
            (Query("sum(merlin_broker_reconnects_total)"),),
            kind="stat",
            width=12,
            height=4,
        ),
        Panel(
            "How long does the engine take to go round?",
            _quantiles("merlin_reconcile_duration_seconds", by="", where=""),
            unit="s",
        ),
        Panel(
            "How many rounds did the broker's absence end early?",
            (Query("sum(increase(merlin_reconcile_errors_total[$__rate_interval]))", "rounds"),),
        ),
        Panel(
            "How much is handed out each second?",
            (
                Query("sum(rate(merlin_issued_tasks_total[$__rate_interval]))", "tasks"),
                Query("sum(rate(merlin_issued_chunks_total[$__rate_interval]))", "chunks"),
            ),
            unit="ops",
        ),
        Panel(
            "How many log entries are folded each second?",
            (Query("sum(rate(merlin_reports_total[$__rate_interval]))", "entries"),),
            unit="ops",
        ),
        Panel(
            "What was refused or came too late?",
            (
                Query("sum(increase(merlin_refused_messages_total[$__rate_interval]))", "refused by the operator"),
                Query("sum(increase(merlin_agent_refused_messages_total[$__rate_interval]))", "refused by agents"),
                Query("sum(increase(merlin_redundant_results_total[$__rate_interval]))", "results after a final one"),
            ),
        ),
        Panel(
            "How much is written to the API server each second?",
            (
                Query("sum(rate(merlin_status_writes_total[$__rate_interval]))", "status of studies"),
                Query("sum(rate(merlin_allocation_writes_total[$__rate_interval]))", "allocations"),
            ),
            unit="ops",
            hint="At most 20 and 5.",
        ),
        Panel(
            "How many requests does the API server refuse or not answer?",
            (
                Query("sum(increase(merlin_api_errors_total[$__rate_interval]))", "errors"),
                Query("sum(increase(merlin_api_conflicts_total[$__rate_interval]))", "conflicts"),
            ),
        ),
        Panel(
            "How many series does a scrape bring?",
            (
                Query(
                    "sum(scrape_samples_scraped * on (instance, job) group_left () (merlin_build_info > 0))", "series"
                ),
            ),
            hint="At most 20,000.",
        ),
    ),
)

DASHBOARDS: Final = (STUDIES, ONE_STUDY, SITES, OPERATOR)


def render(dashboard: Dashboard) -> str:
    """Return a dashboard as Grafana reads it."""
    return json.dumps(_dashboard(dashboard), indent=1, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["merlin"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "links": [
            {
                "title": "Merlin",
                "type": "dashboards",
                "tags": ["merlin"],
                "asDropdown": True,
                "includeVars": False,
                "keepTime": True,
            }
        ],
        "templating": {"list": [source, *map(_variable, dashboard.variables)]},
        "panels": [
            _panel(panel, number, place)
            for number, (panel, place) in enumerate(
                zip(dashboard.panels, places(dashboard.panels), strict=True), start=1
            )
        ],
    }


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.metric}, {variable.label})"
    choices: dict[str, Any] = {"multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"}}
    if variable.name == "study":
        query = f'label_values({variable.metric}{{namespace=~"$namespace"}}, {variable.label})'
    return {
        "name": variable.name,
        "label": variable.name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        **(choices if variable.several else {"multi": False, "includeAll": False}),
    }


def places(panels: Sequence[Panel]) -> Iterator[dict[str, int]]:
    """Fill rows from the left; a row is as high as its highest panel."""
    x = y = height = 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, height = 0, y + height, 0
        yield {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x, height = x + panel.width, max(height, panel.height)


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    heat = panel.kind == "heatmap"
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never"}
        custom |= {"stacking": {"mode": "normal"}} if panel.stacked else {}
    bounds = {"min": 0, "max": 1} if panel.unit == "percentunit" else {}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.hint,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **bounds, "custom": custom}, "overrides": []},
        "options": _options(panel.kind),
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "format": "heatmap" if heat else "time_series",
                "instant": panel.kind in ("stat", "bargauge"),
                "range": panel.kind not in ("stat", "bargauge"),
            }
            for at, query in enumerate(panel.queries)
        ],
    }


def _options(kind: Kind) -> dict[str, Any]:
    last = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    match kind:
        case "stat":
            return {**last, "colorMode": "none", "graphMode": "none", "textMode": "auto"}
        case "bargauge":
            return {**last, "displayMode": "basic", "orientation": "horizontal"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": "s"}, "cellGap": 1, "legend": {"show": False}}
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom"},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def main(arguments: Sequence[str]) -> int:
    """Write the files; with ``--check`` only say which differ."""
    differing = []
    for dashboard in DASHBOARDS:
        path, text = FOLDER / f"{dashboard.name}.json", render(dashboard)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            differing.append(path.name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    print(f"{'differ from' if '--check' in arguments else 'written from'} tools/dashboards.py: {differing}")
    return 1 if differing and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
