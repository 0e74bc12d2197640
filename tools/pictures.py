"""Draws a dashboard's answers as one SVG, for the documentation: Grafana is not needed to see what it would show.

Time runs from left to right over the whole run; what Grafana shows as one number is a number here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

from tools.grafana import Dashboard, Panel, places

COLUMN, ROW, MARGIN = 40, 26, 8
COLOURS: Final = ("#1f6fb4", "#d1741b", "#2b8a4b", "#b3283a", "#7a52a5", "#7d5a4a", "#c2549c", "#6d6d6d", "#9a9a1f")
MOST_SERIES: Final = 9
"""Lines of one panel; what Grafana would show beyond is left out of the picture."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series: what the legend calls it, and (time, value) in order."""

    name: str
    points: tuple[tuple[float, float], ...]


def line_of(legend: str, series: Mapping[str, Any]) -> Line:
    """Return a series of Prometheus' answer to a range query."""
    name = legend
    for label, value in series["metric"].items():
        name = name.replace(f"{{{{{label}}}}}", value)
    points = tuple((float(at), float(value)) for at, value in series["values"])
    return Line(name, tuple(point for point in points if abs(point[1]) < float("inf")))


def draw(dashboard: Dashboard, answers: Sequence[Sequence[Line]]) -> str:
    """Return the picture; ``answers`` has the lines of each panel."""
    found = list(places(dashboard.panels))
    width = COLUMN * 24
    height = max(place["y"] + place["h"] for place in found) * ROW + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(dashboard.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>',
        f'<text x="{MARGIN}" y="20" font-size="15" font-weight="bold">{escape(dashboard.title)}</text>',
    ]
    for panel, place, lines in zip(dashboard.panels, found, answers, strict=True):
        box = (place["x"] * COLUMN + 3, place["y"] * ROW + 33, place["w"] * COLUMN - 6, place["h"] * ROW - 6)
        parts += _panel(panel, box, [line for line in lines if line.points])
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, box: tuple[int, int, int, int], lines: Sequence[Line]) -> list[str]:
    x, y, width, height = box
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#fff" stroke="#d5d8dc"/>',
        f'<text x="{x + MARGIN}" y="{y + 18}" font-weight="bold">{escape(panel.title)}</text>',
    ]
    if not lines:
        return [*parts, f'<text x="{x + MARGIN}" y="{y + 44}" fill="#777">nothing</text>']
    if panel.kind in ("stat", "bargauge"):
        told = [f"{line.name} {_number(line.points[-1][1], panel.unit)}".strip() for line in lines]
        step = min(26, (height - 34) // len(told))
        return parts + [
            f'<text x="{x + MARGIN}" y="{y + 42 + at * step}" font-size="{min(16, step)}">{escape(text)}</text>'
            for at, text in enumerate(told)
        ]
    inner = (x + 56, y + 28, width - 66, height - 68)
    return parts + (_heat(inner, lines) if panel.kind == "heatmap" else _chart(panel, inner, lines[:MOST_SERIES]))


def _heat(box: tuple[int, int, int, int], lines: Sequence[Line]) -> list[str]:
    """Buckets from below; the more fell into one, the darker."""
    x, y, width, height = box
    rows = sorted(lines, key=lambda line: float(line.name))
    below: dict[float, float] = {}
    counts = []
    for row in rows:
        counts.append({at: value - below.get(at, 0.0) for at, value in row.points})
        below = dict(row.points)
    times = sorted({at for each in counts for at in each})
    top = max([1e-9, *(value for each in counts for value in each.values())])
    high, wide = height / len(rows), width / len(times)
    parts = []
    for number, (found, line) in enumerate(zip(counts, rows, strict=True)):
        low = y + height - (number + 1) * high
        parts.append(f'<text x="{x - 4}" y="{low + high:.0f}" text-anchor="end" font-size="9">{line.name}</text>')
        parts += [
            f'<rect x="{x + column * wide:.1f}" y="{low:.1f}" width="{wide - 1:.1f}" height="{high - 1:.1f}" '
            f'fill="{COLOURS[0]}" fill-opacity="{found.get(at, 0) / top:.2f}"/>'
            for column, at in enumerate(times)
            if found.get(at, 0) / top > 0.005
        ]
    return parts


def _chart(panel: Panel, box: tuple[int, int, int, int], lines: Sequence[Line]) -> list[str]:
    x, y, width, height = box
    times = [at for line in lines for at, _ in line.points]
    first, last = min(times), max(times)
    top = max(value for line in lines for _, value in line.points)
    top = top if top > 0 else 1.0
    parts = [
        f'<path d="M{x} {y}V{y + height}H{x + width}" fill="none" stroke="#aaa"/>',
        f'<text x="{x - 4}" y="{y + 9}" text-anchor="end" fill="#555">{_number(top, panel.unit)}</text>',
        f'<text x="{x - 4}" y="{y + height}" text-anchor="end" fill="#555">0</text>',
    ]
    for at, line in enumerate(lines):
        colour, legend = COLOURS[at % len(COLOURS)], x + at % 5 * width // 5
        path = " ".join(
            f"{x + width * (time - first) / max(1, last - first):.0f},{y + height - height * max(0, value) / top:.1f}"
            for time, value in line.points
        )
        name = escape(line.name or "value")
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{legend}" y="{y + height + 16 + at // 5 * 14}" font-size="10" fill="{colour}">{name}</text>'
        )
    return parts


def _number(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{value:.0%}"
        case "bytes":
            return f"{value / 1024:.3g} KiB" if value < 1 << 20 else f"{value / (1 << 20):.3g} MiB"
        case "bool_yes_no":
            return "yes" if value else "no"
        case "s":
            return f"{value:.3g} s" if value < 600 else f"{value / 60:.0f} min"
        case _:
            return f"{value:.0f}" if value == int(value) else f"{value:.3g}"
