"""Debian's Prometheus on 127.0.0.1: promtool for what can be judged from files, a server for what has to be scraped."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ground import Process, eventually, free_port
from tests.ground.needs import ROOT, debian


def require() -> None:
    """Install it where this user may; else skip the test (fail it under CI)."""
    debian(["prometheus"], ["prometheus", "promtool"])


def promtool(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; its exit code is the caller's to judge."""
    require()
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


class Prometheus:
    """A server that scrapes one target every second."""

    def __init__(
        self, directory: Path, *, target: str, rules: Path, path: str = "/metrics", prefix: Sequence[str] = ()
    ) -> None:
        """Keep where it lives; nothing runs yet.

        Args:
            directory: for its configuration, log and data.
            target: host and port.
            rules: the file of alerts.
            path: what is scraped there.
            prefix: words before every command, which has to become the one that it starts (nsenter …): the server then
                runs where they lead, and is asked from there.
        """
        require()
        self._prefix = tuple(prefix)
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._config = directory / "prometheus.yml"
        self._settings = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": "merlin",
                    "honor_labels": True,
                    "metrics_path": path,
                    "static_configs": [{"targets": [target]}],
                },
            ],
        }
        argv = [*prefix, "prometheus", f"--config.file={self._config}", f"--storage.tsdb.path={directory / 'tsdb'}"]
        argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        self.process = Process(argv, log=directory / "prometheus.log")

    def __enter__(self) -> Self:
        """Start it and wait until it answers."""
        self._config.write_text(json.dumps(self._settings))  # JSON is YAML
        self.process.start()
        eventually(self._ready, message="Prometheus is ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.process.stop()

    def _ready(self) -> bool:
        return self._fetch("/-/ready")[0] == 200

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
        status, text = self._fetch(f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200, f"{query}: {text}"
        return json.loads(text)["data"]

    def _fetch(self, path: str) -> tuple[int, str]:
        """Return the status and the body of an answer; 0 where there is none."""
        if not self._prefix:
            return fetch(self.url + path)
        done = subprocess.run(
            [*self._prefix, sys.executable, "-m", __spec__.name, self.url + path],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=180,
        )  # fmt: skip
        status, _, text = done.stdout.partition("\n")
        return int(status), text


def fetch(url: str) -> tuple[int, str]:
    """Return the status and the body of an answer; 0 and the reason where there is none."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def points(series: Sequence[dict[str, Any]]) -> list[float]:
    """Return every value of a range query's answer that is a number."""
    found = [float(value) for each in series for _, value in each["values"]]
    return [value for value in found if value == value]  # noqa: PLR0124 NaN is unequal to itself


if __name__ == "__main__":
    print(*fetch(sys.argv[1]), sep="\n")
