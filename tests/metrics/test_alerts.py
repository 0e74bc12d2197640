"""Every alert is a valid rule, has a test of when it fires and when not, and a page that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics.prometheus import promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "merlin" / "rules" / "merlin.yaml"
CASES = Path(__file__).with_name("alerts.yaml")
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    done = promtool("test", "rules", CASES.name, cwd=CASES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_cases_of_both_kinds_and_a_page(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    tests = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", []) if case["alertname"] == name]
    assert any(case.get("exp_alerts") for case in cases), "no test shows it firing"
    assert any(not case.get("exp_alerts") for case in cases), "no test shows it silent"
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook_url"} == alert["annotations"].keys()
    page = ROOT / alert["annotations"]["runbook_url"]
    assert page.is_relative_to(ROOT / "docs" / "runbooks")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## What it means", "## What to do"]
