"""What a failure here is told with: how the operator stands, and what the Studies say."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.cluster.site import Site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add them to the report of a test that failed on a site."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if call.when == "call" and report.failed and isinstance(site, Site):
        report.sections.append(("operator", f"{site.operator.describe()}\n{site.operator.tail(80)}"))
        told = site.control_plane.kubectl("get", "studies", "-n", site.namespace, "-o", "yaml", check=False)
        agents = site.control_plane.kubectl("get", "allocations", "-n", site.namespace, "-o", "yaml", check=False)
        report.sections.append(("studies", told.stdout[-20_000:]))
        report.sections.append(("allocations", f"processes {site.agent_pids()}\n{agents.stdout[-10_000:]}"))
    return report
