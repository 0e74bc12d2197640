"""A run that a Prometheus watched, and what its dashboards and alerts must say of any run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tests.metrics.prometheus import Prometheus, points
from tools import dashboards, grafana, pictures

PANELS = [(board, panel) for board in dashboards.DASHBOARDS for panel in board.panels]


@dataclass
class Watched:
    """What is left of a run: the Prometheus that watched it, when it was, and the study that was chosen."""

    prometheus: Prometheus
    start: float
    end: float
    study: str

    def over(self, expression: str) -> list[dict[str, Any]]:
        """Ask for the whole run, second by second, with the choices of a dashboard made."""
        return self.prometheus.over(self.chosen(expression), start=self.start, end=self.end)

    def most(self, expression: str) -> float:
        """Return the highest value of a single series."""
        return max(points(self.over(expression)))

    def highest(self, title: str, label: str) -> dict[str, float]:
        """Return the highest value of a panel's first query for each value of a label."""
        highest: dict[str, float] = {}
        for each in self.over(answer(title)):
            name = each["metric"][label]
            highest[name] = max([highest.get(name, -math.inf), *points([each])])
        return {name: value for name, value in highest.items() if value > -math.inf}

    def chosen(self, expression: str) -> str:
        """Put in what Grafana puts in."""
        choices = {"$__rate_interval": "10s", "$namespace": ".*", "$study": self.study, "$site": ".*"}
        for name, value in choices.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        return expression

    def unanswered(self, panel: grafana.Panel) -> list[str]:
        """Return the queries of a panel that returned no number, of those that are not silent when all is well."""
        answers = {query.expr: points(self.over(query.expr)) for query in panel.queries}
        return [query.expr for query in panel.queries if not query.quiet and not answers[query.expr]]

    def held(self, alert: dict[str, Any]) -> bool:
        """Whether an alert's expression held at any time."""
        return bool(self.over(alert["expr"]))

    def faults(self) -> dict[str, str]:
        """Return what was wrong with the rules as Prometheus evaluated them, by alert; empty where nothing was."""
        return {rule["name"]: rule.get("lastError", "") for rule in self.prometheus.rules() if rule["health"] != "ok"}

    def draw(self, board: grafana.Dashboard) -> str:
        """Return the picture of a dashboard."""
        lines = [
            [pictures.line_of(query.legend, each) for query in panel.queries for each in self.over(query.expr)]
            for panel in board.panels
        ]
        return pictures.draw(board, lines)


def answer(title: str) -> str:
    """Return the first expression of the first panel with a title."""
    return next(panel.queries[0].expr for _, panel in PANELS if panel.title == title)
