"""Metric families as every module of metrics makes them: one prefix, and a histogram from buckets that were counted here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from merlin_operator.measures import Spread


def gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    """Return a gauge of one series."""
    family = GaugeMetricFamily(f"merlin_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def counter(name: str, text: str, value: float) -> Metric:
    """Return a counter of one series; `_total` is added to its name."""
    family = CounterMetricFamily(f"merlin_{name}", text)
    family.add_metric([], value)
    return family


def add(family: HistogramMetricFamily, labels: Sequence[str], spread: Spread) -> None:
    """Add a series to a histogram."""
    bounds = [*map(floatToGoString, spread.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(spread.counts), strict=True))
    family.add_metric(list(labels), buckets, sum_value=spread.seconds)
