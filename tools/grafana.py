"""Dashboards as data, short ways to write their panels, and what Grafana reads of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
"""Grafana's columns."""

Kind = Literal["timeseries", "stat", "bargauge", "heatmap"]
Unit = Literal["none", "s", "percentunit", "ops", "bytes", "bool_yes_no"]


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


def number(title: str, expr: str, **more: Any) -> Panel:
    """One number, as it is now; ``quiet`` is the query's, all else the panel's."""
    query = Query(expr, more.pop("legend", ""), quiet=more.pop("quiet", False))
    return Panel(title, (query,), kind="stat", **({"width": 8, "height": 4} | more))


def lines(title: str, *series: tuple[str, str], quiet: bool = False, **more: Any) -> Panel:
    """Lines over time: pairs of a legend and an expression."""
    return Panel(title, tuple(Query(expr, legend, quiet=quiet) for legend, expr in series), **more)


def rate(metric: str, where: str = "", *, by: str = "") -> str:
    """Return how often something is counted each second."""
    return _sum(f"rate({_chosen(metric, where)}[$__rate_interval])", by)


def increase(metric: str, where: str = "", *, by: str = "") -> str:
    """Return how often it was counted since the point before."""
    return _sum(f"increase({_chosen(metric, where)}[$__rate_interval])", by)


def since(timestamp: str, where: str = "") -> str:
    """Return how many seconds ago something was."""
    return f"time() - {_chosen(timestamp, where)}"


def quantiles(metric: str, where: str = "", *, by: str = "") -> tuple[tuple[str, str], ...]:
    """Return the lines of a histogram: how long half takes at most, and nearly all."""
    counts = rate(f"{metric}_bucket", where, by=", ".join(filter(None, ("le", by))))
    name = f"{{{{{by}}}}} " if by else ""
    return tuple(
        (f"{name}{text}", f"histogram_quantile({share}, {counts})")
        for share, text in ((0.5, "half within"), (0.95, "95 % within"))
    )


def _chosen(metric: str, where: str) -> str:
    return f"{metric}{{{where}}}" if where else metric


def _sum(expr: str, by: str) -> str:
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


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
