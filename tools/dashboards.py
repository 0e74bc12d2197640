"""The one source of the Grafana dashboards: writes charts/merlin/dashboards/*.json, or says with ``--check`` what differs.

A panel's title is the question that it answers. Tests import `DASHBOARDS` and run every expression in a real Prometheus.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / "charts" / "merlin" / "dashboards"
sys.path.insert(0, str(FOLDER.parents[2]))  # run as a program, it finds its neighbour as tests do

from tools.grafana import Dashboard, Variable, increase, lines, number, quantiles, rate, render, since  # noqa: E402

ENDED: Final = 'state=~"succeeded|soft_failed|failed|timed_out|cancelled"'
UNSUCCESSFUL: Final = "soft_failed|failed|timed_out"
UNFINISHED: Final = 'state=~"waiting|queued|running|retrying"'
NAMESPACE: Final = 'namespace=~"$namespace"'
STUDY: Final = 'namespace=~"$namespace", study=~"$study"'
SITE: Final = 'site=~"$site"'
EACH: Final = "{{namespace}}/{{study}}"
QUEUE: Final = "{{site}}/{{queue}}"
TWICE: Final = "Must stay 0; what is counted here is a bug."

STUDIES: Final = Dashboard(
    "studies",
    "Merlin / Studies",
    (Variable("namespace", "merlin_studies"),),
    (
        number(
            "How many studies are there, and how do they stand?",
            f"sum by (state) (merlin_studies{{{NAMESPACE}}})",
            legend="{{state}}",
            width=24,
        ),
        number("How many tasks run now?", f'sum(merlin_tasks{{{NAMESPACE}, state="running"}})'),
        number("How many tasks are left?", f"sum(merlin_tasks{{{NAMESPACE}, {UNFINISHED}}})"),
        number("Did anything run twice without a reason?", "sum(merlin_duplicate_executions_total)", hint=TWICE),
        lines(
            "How far is each study?",
            (
                EACH,
                (
                    f"sum by (namespace, study) (merlin_tasks{{{NAMESPACE}, {ENDED}}})"
                    f" / sum by (namespace, study) (merlin_tasks{{{NAMESPACE}}})"
                ),
            ),
            kind="bargauge",
            unit="percentunit",
        ),
        lines(
            "How long until each study ends?",
            (EACH, f"merlin_study_remaining_seconds{{{NAMESPACE}}}"),
            quiet=True,
            unit="s",
            hint="From the rate of the last minute; empty while nothing ends.",
        ),
        lines(
            "How many tasks end each second?",
            ("{{outcome}}", rate("merlin_task_outcomes_total", NAMESPACE, by="outcome")),
            unit="ops",
            stacked=True,
        ),
        lines(
            "What share of the tasks that end does not succeed?",
            (
                "unsuccessful",
                rate("merlin_task_outcomes_total", f'{NAMESPACE}, outcome=~"{UNSUCCESSFUL}"')
                + f" / ({rate('merlin_task_outcomes_total', NAMESPACE)} > 0)",
            ),
            quiet=True,
            unit="percentunit",
        ),
        lines(
            "How long do tasks run?",
            ("{{le}}", increase("merlin_task_duration_seconds_bucket", by="le")),
            kind="heatmap",
            unit="s",
        ),
        lines("How long do tasks wait for a slot?", *quantiles("merlin_task_queue_wait_seconds"), unit="s"),
        lines(
            "Which studies wait for agents?",
            (EACH, f"merlin_study_unserved{{{NAMESPACE}}} == 1"),
            quiet=True,
            hint="Empty where every queue with work has an agent.",
        ),
        lines(
            "Which studies have not moved for longest?",
            (EACH, f"topk(10, {since('merlin_study_progress_timestamp_seconds', NAMESPACE)})"),
            unit="s",
        ),
    ),
)

ONE_STUDY: Final = Dashboard(
    "study",
    "Merlin / One study",
    (Variable("namespace", "merlin_studies", several=False), Variable("study", "merlin_tasks", several=False)),
    (
        number(
            "How far is it?",
            f"sum(merlin_tasks{{{STUDY}, {ENDED}}}) / sum(merlin_tasks{{{STUDY}}})",
            unit="percentunit",
        ),
        number("How long until it ends?", f"merlin_study_remaining_seconds{{{STUDY}}}", quiet=True, unit="s"),
        number("How long ago did an agent report?", since("merlin_study_progress_timestamp_seconds", STUDY), unit="s"),
        number("Does it wait for agents?", f"merlin_study_unserved{{{STUDY}}}", unit="bool_yes_no"),
        number("How many tasks did not succeed?", f'sum(merlin_tasks{{{STUDY}, state=~"{UNSUCCESSFUL}"}})'),
        number("Did anything run twice without a reason?", f"merlin_doubled_executions{{{STUDY}}}", hint=TWICE),
        lines(
            "What do its tasks do?",
            ("{{state}}", f"sum by (state) (merlin_tasks{{{STUDY}}})"),
            stacked=True,
            width=24,
        ),
        lines(
            "How many tasks end each second?",
            ("{{state}}", f"sum by (state) (deriv(merlin_tasks{{{STUDY}, {ENDED}}}[$__rate_interval]))"),
            unit="ops",
        ),
        lines("How many tasks wait for their next try?", ("retrying", f'merlin_tasks{{{STUDY}, state="retrying"}}')),
        lines(
            "How many tasks could be handed out and are not yet?",
            ("ready", f"merlin_unroll_lag_tasks{{{STUDY}}}"),
            hint="Only about a minute of work is handed out ahead, so that agents share it evenly.",
        ),
        lines(
            "How many tasks wait for other steps?",
            (
                "waiting",
                f'merlin_tasks{{{STUDY}, state="waiting"}} - ignoring (state) merlin_unroll_lag_tasks{{{STUDY}}}',
            ),
        ),
    ),
)

SITES: Final = Dashboard(
    "sites",
    "Merlin / Sites and agents",
    (Variable("site", "merlin_agents"),),
    (
        lines(
            "How many agents are there?",
            ("{{site}} {{state}}", f"sum by (site, state) (merlin_agents{{{SITE}}})"),
            stacked=True,
        ),
        lines(
            "What share of the slots is busy?",
            (
                "{{site}}",
                (
                    f'sum by (site) (merlin_agent_slots{{{SITE}, state="busy"}})'
                    f" / (sum by (site) (merlin_agent_slots{{{SITE}}}) > 0)"
                ),
            ),
            unit="percentunit",
        ),
        lines(
            "How many slots are there?",
            ("{{site}} {{state}}", f"sum by (site, state) (merlin_agent_slots{{{SITE}}})"),
            stacked=True,
        ),
        lines(
            "How long do the allocations still last?",
            ("{{site}} first", f"merlin_first_allocation_end_timestamp_seconds{{{SITE}}} - time()"),
            ("{{site}} last", f"merlin_last_allocation_end_timestamp_seconds{{{SITE}}} - time()"),
            unit="s",
            hint="Of agents in a batch job whose end is known.",
        ),
        lines(
            "How long ago was a site last heard?",
            ("{{site}}", since("merlin_agent_last_seen_timestamp_seconds", SITE)),
            unit="s",
        ),
        lines(
            "How do executions end at each site?",
            ("{{site}} {{outcome}}", rate("merlin_task_attempts_total", SITE, by="site, outcome")),
            unit="ops",
        ),
        lines(
            "How long do tasks of each queue run?",
            *quantiles("merlin_task_duration_seconds", SITE, by="queue"),
            unit="s",
        ),
        lines(
            "How long do tasks of each queue wait for a slot?",
            *quantiles("merlin_task_queue_wait_seconds", SITE, by="queue"),
            unit="s",
        ),
        lines(
            "How many slots' worth of work is done?",
            ("{{site}}", rate("merlin_task_duration_seconds_sum", SITE, by="site")),
            hint="Seconds of tasks that ended, each second; compare with the busy slots.",
        ),
        lines(
            "How many chunks of tasks get lost with their agents?",
            ("{{site}}", increase("merlin_lost_chunks_total", SITE, by="site")),
        ),
        lines(
            "How many hosts are quarantined?",
            ("{{site}}", f"sum by (site) (merlin_quarantined_hosts{{{SITE}}})"),
            hint="Hosts that get no work, because all that ran there failed and succeeded elsewhere; their Allocations say which.",
        ),
    ),
)

OPERATOR: Final = Dashboard(
    "operator",
    "Merlin / Broker and operator",
    (),
    (
        number("Which version runs?", "sum by (version) (merlin_build_info)", legend="{{version}}"),
        number("Is the operator connected to NATS?", "min(merlin_broker_connected)", unit="bool_yes_no"),
        number("How long ago did the loop go round?", "max(merlin_engine_loop_age_seconds)", unit="s"),
        number("How long ago did the operator begin?", since("merlin_operator_start_timestamp_seconds"), unit="s"),
        number("How often was NATS connected to again?", "sum(merlin_broker_reconnects_total)"),
        number(
            "How many series does a scrape bring?",
            "sum(scrape_samples_scraped * on (instance, job) group_left () (merlin_build_info > 0))",
            hint="At most 20,000.",
        ),
        lines(
            "How full is the broker's store?",
            ("all streams", "merlin_broker_storage_bytes / merlin_broker_storage_limit_bytes"),
            unit="percentunit",
            hint="Of nats.maxFileStore; empty where the broker's account has no limit.",
        ),
        lines(
            "How many bytes does each stream hold?",
            ("{{stream}}", "sum by (stream) (merlin_stream_bytes)"),
            unit="bytes",
            stacked=True,
        ),
        lines("How many messages does each stream hold?", ("{{stream}}", "sum by (stream) (merlin_stream_messages)")),
        lines(
            "How many servers hold all of each stream?",
            ("{{stream}}", "min by (stream) (merlin_stream_current_replicas)"),
            ("{{stream}}: shall", "max by (stream) (merlin_stream_replicas)"),
            hint="Of a cluster; while it is fewer than shall, stop none of them.",
        ),
        lines(
            "How many chunks wait for an agent to fetch them?",
            (QUEUE, "sum by (site, queue) (merlin_consumer_pending_chunks)"),
        ),
        lines(
            "How many chunks are fetched and not yet claimed?",
            (QUEUE, "sum by (site, queue) (merlin_consumer_ack_pending_chunks)"),
        ),
        lines(
            "How near is each queue to the most that may be unclaimed?",
            (QUEUE, "max by (site, queue) (merlin_consumer_ack_pending_ratio)"),
            unit="percentunit",
            hint="The fullest of its consumers; at 100 % agents get nothing more from it.",
        ),
        lines(
            "How many unclaimed chunks were delivered again?",
            (QUEUE, "sum by (site, queue) (merlin_consumer_redelivered_chunks)"),
            hint="Fetched by an agent that did not claim them within ten seconds.",
        ),
        lines(
            "How long does the engine take to go round?",
            *quantiles("merlin_reconcile_duration_seconds"),
            unit="s",
        ),
        lines(
            "How many rounds did the broker's absence end early?",
            ("rounds", increase("merlin_reconcile_errors_total")),
        ),
        lines(
            "How much is handed out each second?",
            ("tasks", rate("merlin_issued_tasks_total")),
            ("chunks", rate("merlin_issued_chunks_total")),
            unit="ops",
        ),
        lines("How many log entries are folded each second?", ("entries", rate("merlin_reports_total")), unit="ops"),
        lines(
            "What was refused or came too late?",
            ("operator: {{reason}}", increase("merlin_refused_messages_total", by="reason")),
            ("agents", increase("merlin_agent_refused_messages_total")),
            ("too late", increase("merlin_redundant_results_total")),
        ),
        lines(
            "How much is written to the API server each second?",
            ("status of studies", rate("merlin_status_writes_total")),
            ("allocations", rate("merlin_allocation_writes_total")),
            unit="ops",
            hint="At most 20 and 5.",
        ),
        lines(
            "How many requests does the API server refuse or not answer?",
            ("errors", increase("merlin_api_errors_total")),
            ("conflicts", increase("merlin_api_conflicts_total")),
        ),
    ),
)

DASHBOARDS: Final = (STUDIES, ONE_STUDY, SITES, OPERATOR)


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
