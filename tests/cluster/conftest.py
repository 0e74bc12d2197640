"""What a failure here is told with: how the operator stands, and what the Studies say."""

from __future__ import annotations

import contextlib
import subprocess
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
        for kind in ("studies", "allocations"):
            with contextlib.suppress(
                OSError, subprocess.SubprocessError
            ):  # what is told is no reason to fail otherwise
                found = site.control_plane.kubectl("get", kind, "-n", site.namespace, "-o", "yaml", check=False)
                report.sections.append((kind, found.stdout[-20_000:]))
        report.sections.append(("agents", f"processes {site.agent_pids()}"))
    return report
