"""Debian's Prometheus on 127.0.0.1: promtool for what can be judged from files, a server for what has to be scraped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ground import Process, eventually, free_port
from tests.ground.needs import missing

PACKAGE = "prometheus"


def require() -> None:
    """Install it where this user may; else skip the test (fail it under CI)."""
    if shutil.which("promtool") and shutil.which("prometheus"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        missing("prometheus and promtool are not installed, and this user may not install Debian's package")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q"]
    # RUNLEVEL: the package's own service, which listens on every address, stays off.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", PACKAGE]):
        done = subprocess.run([*apt, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"prometheus could not be installed: {done.stderr.strip()}")


def promtool(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; its exit code is the caller's to judge."""
    require()
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


class Prometheus:
    """A server that scrapes one target every second."""

    def __init__(self, directory: Path, *, target: str, rules: Path) -> None:
        """Keep where it lives; nothing runs yet."""
        require()
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._config = directory / "prometheus.yml"
        self._settings = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": "merlin", "honor_labels": True, "static_configs": [{"targets": [target]}]},
            ],
        }
        argv = ["prometheus", f"--config.file={self._config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        self.process = Process(argv, log=directory / "prometheus.log")

    def __enter__(self) -> Self:
        """Start it and wait until it answers."""
        self._config.write_text(json.dumps(self._settings))  # JSON is YAML
        self.process.start()
        eventually(self._ready, timeout=30, message="Prometheus is ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.process.stop()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def now(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query; ``value`` is (time, text)."""
        return self._ask("query", query=expression)

    def over(self, expression: str, *, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """Return the series of a range query; ``values`` are (time, text)."""
        return self._ask("query_range", query=expression, start=str(start), end=str(end), step=str(step))

    def values(self, metric: str, label: str) -> list[str]:
        """Return the values of a label, as a dashboard's variable asks for them."""
        found: list[str] = self._get(f"label/{label}/values", {"match[]": metric})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return the alerting rules with their health."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _ask(self, kind: str, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(kind, query)["result"]
        return found

    def _get(self, path: str, query: dict[str, str]) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as got:
                return json.load(got)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error


def points(series: Sequence[dict[str, Any]]) -> list[float]:
    """Return every value of a range query's answer that is a number."""
    found = [float(value) for each in series for _, value in each["values"]]
    return [value for value in found if value == value]  # noqa: PLR0124 NaN is unequal to itself
