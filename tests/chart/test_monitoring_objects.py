"""ServiceMonitor, PodMonitor and PrometheusRule against the Prometheus operator's own definitions, version 0.80.1.

The models come from a package that is generated from those definitions; its first three numbers are their version.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1
from pydantic import BaseModel, ValidationError

from tests.chart.rendering import CHART, Helm, Manifest

MODELS: dict[str, type[BaseModel]] = {
    "ServiceMonitor": v1.ServiceMonitor,
    "PodMonitor": v1.PodMonitor,
    "PrometheusRule": v1.PrometheusRule,
}


def told(manifest: Manifest) -> Manifest:
    """Return what the definition knows of a manifest: what it lacks is a key that the API server would refuse or drop."""
    known: dict[str, Any] = (
        MODELS[manifest["kind"]]
        .model_validate(manifest)
        .model_dump(by_alias=True, exclude_unset=True, mode="json", exclude={"metadata"})
    )
    return {**known, "metadata": manifest["metadata"]}


def monitors(helm: Helm, case: str) -> dict[str, Manifest]:
    found = [each for each in helm.render(case=case) if each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {each["apiVersion"] for each in found} == {"monitoring.coreos.com/v1"}
    return {each["kind"]: each for each in found}


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("monitoring-values.yaml", {"ServiceMonitor", "PrometheusRule"}),
        ("pod-monitor-values.yaml", {"PodMonitor"}),
    ],
)
def test_the_definitions_know_every_key(helm: Helm, case: str, kinds: set[str]) -> None:
    found = monitors(helm, case)
    assert found.keys() == kinds
    for manifest in found.values():
        assert told(manifest) == manifest


def test_what_they_do_not_know_would_be_seen(helm: Helm) -> None:
    monitor = monitors(helm, "monitoring-values.yaml")["ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    for wrong in ({"interval": "1 minute"}, {"port": 8080}):
        monitor["spec"]["endpoints"] = [endpoint | wrong]
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            told(monitor)
    monitor["spec"]["endpoints"] = [endpoint | {"intervall": "1m"}]
    assert told(monitor) != monitor


def test_both_monitors_find_the_operator_and_nothing_else(helm: Helm) -> None:
    """By the labels and the port's name of its Service, or of its pod."""
    for case, kind, target in (
        ("monitoring-values.yaml", "ServiceMonitor", "Service"),
        ("pod-monitor-values.yaml", "PodMonitor", "Deployment"),
    ):
        rendered, monitor = helm.render(case=case), monitors(helm, case)[kind]
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        objects = [each for each in rendered if each["kind"] == target]
        if target == "Deployment":
            objects = [each["spec"]["template"] for each in objects]
        (one,) = [each for each in objects if wanted <= each["metadata"]["labels"].items()]
        (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        ports = one["spec"].get("ports") or one["spec"]["containers"][0]["ports"]
        assert endpoint["port"] in [port["name"] for port in ports]
        assert endpoint["honorLabels"] is True


def test_a_rule_is_the_file_s_to_the_letter(helm: Helm) -> None:
    rules = yaml.safe_load((CHART / "rules" / "merlin.yaml").read_text())
    assert monitors(helm, "monitoring-values.yaml")["PrometheusRule"]["spec"] == rules


def test_both_monitors_together_would_count_everything_twice(helm: Helm) -> None:
    settings = (
        "--set",
        "image.repository=registry.example.org/merlin,metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true",
    )
    done = helm.run("template", "merlin", CHART, "--kube-version", "1.35.4", *settings, check=False)
    assert done.returncode != 0
    assert "choose one" in done.stderr
