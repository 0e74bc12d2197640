"""What `helm test` runs: a Study of one task, an agent here in the pod that runs it, and the Study's condition at the end."""

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NAMESPACE = (ACCOUNT / "namespace").read_text()
HOST, PORT = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
STUDIES = (
    f"https://{f'[{HOST}]' if ':' in HOST else HOST}:{PORT}/apis/merlin.dev/v1alpha1/namespaces/{NAMESPACE}/studies"
)
QUEUE = "helm-test"
STUDY: dict[str, Any] = {
    "apiVersion": "merlin.dev/v1alpha1",
    "kind": "Study",
    "metadata": {"generateName": "helm-test-"},
    "spec": {
        "description": {"name": "helm-test", "description": "one task"},
        "study": [
            {"name": "say", "description": "one line", "run": {"cmd": "echo it works", "task_queue": QUEUE}},
        ],
    },
}


def ask(method: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the API server."""
    request = urllib.request.Request(
        STUDIES + path,
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def finished(study: dict[str, Any]) -> dict[str, Any] | None:
    """The condition `Succeeded` once nothing more will run."""
    conditions = {each["type"]: each for each in study.get("status", {}).get("conditions", [])}
    return conditions["Succeeded"] if conditions.get("Finished", {}).get("status") == "True" else None


def main() -> int:
    """Run the test; 0 where the study succeeded."""
    name: str = ask("POST", body=STUDY)["metadata"]["name"]
    print(f"created study {name}", flush=True)
    agent = subprocess.Popen(
        [
            "merlin-agent", "--credentials", "/etc/merlin/site.yaml", "--server", os.environ["SERVER"],
            "--queues", QUEUE, "--slots", "1", "--workspace", "/tmp/studies",
        ]
    )  # fmt: skip
    began, result = time.monotonic(), None
    try:
        while result is None and time.monotonic() - began < float(os.environ["TIMEOUT"]) and agent.poll() is None:
            time.sleep(0.5)
            result = finished(ask("GET", f"/{name}"))
    finally:
        ask("DELETE", f"/{name}")
        agent.terminate()
        agent.wait(30)
    print(f"after {time.monotonic() - began:.1f} s: {result}", flush=True)
    return 0 if result and result["status"] == "True" else 1


if __name__ == "__main__":
    sys.exit(main())
