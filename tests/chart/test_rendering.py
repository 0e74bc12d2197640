"""What the chart renders to: refused values, accepted manifests, restricted pods, narrow rights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CASES, CHART, DEFAULT, Helm, Manifest, named, pod_of
from tests.ground import ControlPlane
from tests.ground.needs import ROOT

DOCS = ROOT / "docs" / "chart.md"


def test_the_chart_and_every_case_pass_lint(helm: Helm) -> None:
    for case in CASES:
        helm.run("lint", "--strict", "--kube-version", "1.35.4", CHART, "--values", str(CHART / "ci" / case))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("nats.sevice.type=NodePort", "'sevice' not allowed"),
        ("operatr.logLevel=debug", "'operatr' not allowed"),
        ("operator.image.tg=x", "'tg' not allowed"),
        ("nats.service.type=Ingress", "must be one of"),
        ("nats.externalAddress=nats://example.org:4222", "does not match pattern"),
        ("agents.site=Quartz", "does not match pattern"),
        ("operator.timing.heartbeat=0", "exclusiveMinimum"),
        ("nats.storage.size=10 Gi", "does not match pattern"),
        ("networkPolicy.agentCIDRs={everywhere}", "does not match pattern"),
        ("secrets.existing.agents=mine", "give broker, operator and agents, or none"),
        (
            "nats.service.type=NodePort",
            "networkPolicy.agentCIDRs: expected the networks that agents come from, since nats.service.type NodePort",
        ),
        (
            "operator.timing.heartbeat=30",
            "operator.timing.lostAfter: expected more than two of operator.timing.heartbeat (60 s), found 60 s; raise",
        ),
        (
            "operator.timing.presenceStale=60",
            "operator.timing.presenceStale: expected more than two of operator.timing.presence (60 s), found 60 s; raise",
        ),
        (
            "nats.storage.size=9Gi",
            "nats.maxFileStore: expected less than nats.storage.size (9Gi), found 9Gi; leave about a tenth",
        ),
        ("nats.maxFileStore=10738M", "nats.maxFileStore: expected less than nats.storage.size (10Gi), found 10738M"),
        ("nats.storage.size=9.6G", "nats.maxFileStore: expected less than nats.storage.size (9.6G), found 9Gi"),
        ("nats.maxPayload=512K", "nats.maxPayload: expected 1MB to 64MB, found 512K; "),
        ("nats.maxPayload=1G", "nats.maxPayload: expected 1MB to 64MB, found 1G; "),
        (
            "nats.service.nodePort=30422",
            "nats.service.nodePort: expected null where nats.service.type is ClusterIP, found 30422; set",
        ),
        (
            "nats.service.loadBalancerSourceRanges={192.0.2.0/24}",
            "nats.service.loadBalancerSourceRanges: expected none where nats.service.type is ClusterIP, found 192.0.2.0/24",
        ),
        (
            "image.repository=",
            "image.repository: expected where your cluster pulls the images operator and agent from, found nothing; build",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(helm: Helm, setting: str, says: str) -> None:
    """With its path, what was expected, what was found, and the cure; by the schema as far as that can say it."""
    values = ["--values", str(CHART / "ci" / DEFAULT)]
    done = helm.run("template", "merlin", CHART, "--kube-version", "1.35.4", *values, "--set", setting, check=False)
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize(
    "setting",
    [
        "nats.maxFileStore=10737M",
        "nats.storage.size=9.7G",
        "nats.storage.size=1Ti",
        "nats.maxPayload=64MB",
        "operator.timing.heartbeat=29",
    ],
)
def test_values_at_the_bound_are_accepted(helm: Helm, setting: str) -> None:
    assert helm.render("--set", setting)


@pytest.mark.parametrize("case", CASES)
def test_no_image_has_a_name_that_is_not_the_user_s(helm: Helm, case: str) -> None:
    """Every image but that of nats-server comes from where the values say."""
    values = yaml.safe_load((CHART / "ci" / case).read_text())
    places = set(re.findall(r"'repository': '([^']*)'", str(values)))
    images = [
        each["image"]
        for manifest in helm.render(case=case)
        if (pod := pod_of(manifest))
        for each in pod["spec"]["containers"]
    ]
    ours = [image for image in images if not image.startswith("docker.io/library/nats:")]
    assert len(ours) == len(images) - 1
    assert all(any(image.startswith(place) for place in places) for image in ours)
    assert all(":" in image.rsplit("/", 1)[-1] for image in ours)


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ("nats.service.type=LoadBalancer,networkPolicy.agentCIDRs={192.0.2.0/24}", "Local"),
        ("nats.service.type=NodePort,networkPolicy.agentCIDRs={192.0.2.0/24}", "Local"),
        ("nats.service.type=NodePort,networkPolicy.agentCIDRs={0.0.0.0/0}", "Cluster"),
        ("nats.service.type=LoadBalancer,networkPolicy.enabled=false", "Cluster"),
        (
            "nats.service.type=LoadBalancer,networkPolicy.agentCIDRs={10.0.0.0/8},nats.service.externalTrafficPolicy=Cluster",
            "Cluster",
        ),
        ("nats.service.type=ClusterIP", None),
    ],
)
def test_where_networks_are_told_apart_their_addresses_arrive(helm: Helm, settings: str, policy: str | None) -> None:
    """Otherwise the cluster may put a node's address in the agent's place, and the network policy lets nobody in."""
    service = named(helm.render("--set", settings), "Service", "merlin-nats")
    assert service["spec"].get("externalTrafficPolicy") == policy


def test_an_old_kubernetes_is_refused(helm: Helm) -> None:
    done = helm.run("template", "merlin", CHART, "--kube-version", "1.28.9", check=False)
    assert "incompatible with Kubernetes" in done.stderr


def test_the_definitions_are_those_of_crds(helm: Helm) -> None:
    """That the chart's copies are equal is seen to in tests/repository; they render to the same, too."""
    ours = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    manifests = helm.render()
    for text in ours.values():
        definition = yaml.safe_load(text)
        rendered = named(manifests, "CustomResourceDefinition", definition["metadata"]["name"])
        assert rendered["spec"] == definition["spec"]
        assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    dropped = helm.render("--set", "crds.keep=false")
    assert "annotations" not in named(dropped, "CustomResourceDefinition", "studies.merlin.dev")["metadata"]
    assert not [each for each in helm.render("--set", "crds.install=false") if "Definition" in each["kind"]]


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_accepts_what_a_case_renders_to(
    helm: Helm, control_plane: ControlPlane, namespace: str, case: str
) -> None:
    """Server-side dry run, strict; kinds of the Prometheus operator excepted, which this server does not know."""
    text = [
        yaml.safe_dump(each | {"metadata": each["metadata"] | _placed(each, namespace)})
        for each in helm.render(case=case)
        if not each["apiVersion"].startswith("monitoring.coreos.com/")
    ]
    done = control_plane.apply("---\n".join(text), "--server-side", "--dry-run=server", "--force-conflicts")
    assert done.stdout.count("serverside-applied") == len(text)
    assert "Warning" not in done.stderr


def _placed(manifest: Manifest, namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if "namespace" in manifest["metadata"] else {}


@pytest.mark.parametrize("case", CASES)
def test_every_pod_passes_the_restricted_standard(
    helm: Helm, control_plane: ControlPlane, namespace: str, case: str
) -> None:
    """Judged by the API server's own admission; beyond it: read-only roots, tokens only where they are used."""
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    tokens = set()
    for manifest in helm.render(case=case):
        pod = pod_of(manifest)
        if pod is None:
            continue
        name = manifest["metadata"]["name"]
        body: Manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {**pod["spec"]}}
        body["spec"].pop("priorityClassName", None)  # the class of a case is not there
        claims = manifest.get("spec", {}).get("volumeClaimTemplates", [])
        body["spec"]["volumes"] = [
            *pod["spec"]["volumes"],
            *({"name": each["metadata"]["name"], "emptyDir": {}} for each in claims),
        ]
        control_plane.apply(json.dumps(body), "--dry-run=server", namespace=namespace)
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in pod["spec"]["containers"])
        assert all({"requests", "limits"} <= set(each["resources"]) for each in pod["spec"]["containers"])
        if pod["spec"]["automountServiceAccountToken"]:
            tokens.add(manifest["metadata"]["labels"]["app.kubernetes.io/component"])
    assert tokens == {"operator", "test"} | ({"bootstrap"} if case != "existing-secrets-values.yaml" else set())


@pytest.mark.parametrize("case", CASES)
def test_every_pod_has_a_network_policy(helm: Helm, case: str) -> None:
    """One each, so that a namespace that forbids all else by default will do. A hook's is there before its pod."""
    manifests = helm.render(case=case)
    policies = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    for manifest in manifests:
        pod = pod_of(manifest)
        if pod is None or not policies:
            continue
        labels = pod["metadata"]["labels"].items()
        (policy,) = [each for each in policies if each["spec"]["podSelector"]["matchLabels"].items() <= labels]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        hook, weight = "helm.sh/hook", "helm.sh/hook-weight"
        before, after = (each["metadata"].get("annotations", {}) for each in (policy, manifest))
        assert before.get(hook) == after.get(hook)
        assert int(before.get(weight, -1)) < int(after.get(weight, 0))
    assert bool(policies) == (case != "second-release-values.yaml")


def test_the_job_reaches_the_api_server_alone(helm: Helm) -> None:
    spec = named(helm.render(case="load-balancer-values.yaml"), "NetworkPolicy", "merlin-bootstrap")["spec"]
    assert spec["ingress"] == []
    assert spec["egress"] == [
        {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "198.51.100.1/32"}}]}
    ]


def test_the_test_pod_reaches_what_the_operator_reaches_and_is_reached_by_nobody(helm: Helm) -> None:
    rendered = helm.render(case="load-balancer-values.yaml")
    test, operator = (named(rendered, "NetworkPolicy", f"merlin-{name}")["spec"] for name in ("test", "operator"))
    assert (test["ingress"], test["egress"]) == ([], operator["egress"])


def test_no_role_has_a_wildcard_or_may_list_secrets(helm: Helm) -> None:
    """Secrets: the bootstrap Job makes its own and reads those by name; agents' users read one by name."""
    for role in [each for each in helm.render() if each["kind"] in ("Role", "ClusterRole")]:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]], role["metadata"]["name"]
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["create"] or (
                    rule["resourceNames"] and set(rule["verbs"]) <= {"get", "update"}
                )
    assert not [each for each in helm.render() if each["kind"] == "ClusterRoleBinding"]


def test_the_operator_s_rights_are_those_that_its_tests_run_under(helm: Helm) -> None:
    tried = next(
        each
        for each in yaml.safe_load_all((ROOT / "tests" / "operating" / "role.yaml").read_text())
        if each["kind"] == "Role"
    )
    assert named(helm.render(), "Role", "merlin-operator")["rules"] == tried["rules"]


def test_selectors_name_no_version_and_fit_their_pods(helm: Helm) -> None:
    """A version in a selector would make every upgrade fail."""
    for each in helm.render(case="load-balancer-values.yaml"):
        if each["kind"] in ("Deployment", "StatefulSet"):
            selector = each["spec"]["selector"]["matchLabels"]
            assert "app.kubernetes.io/version" not in selector
            assert selector.items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_the_same_values_render_to_the_same(helm: Helm) -> None:
    """Nothing is drawn at random or looked up, so a GitOps tool sees no changes where there are none."""
    assert helm.text() == helm.text()
    texts = [path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()]
    assert not [
        word for text in texts for word in re.findall(r"\b(?:lookup|rand\w+|genCA|genSelf\w+|now)\b +[\"(.]", text)
    ]


def test_secrets_of_one_s_own_replace_the_bootstrap_job(helm: Helm) -> None:
    manifests = helm.render(case="existing-secrets-values.yaml")
    assert not [each for each in manifests if "bootstrap" in each["metadata"]["name"]]
    used = set(re.findall(r"(?:secretName: |name: )(my-\w+)", helm.text(case="existing-secrets-values.yaml")))
    assert used == {"my-broker", "my-operator", "my-agents"}


def test_the_external_address_is_a_name_in_the_certificate(helm: Helm) -> None:
    job = named(helm.render(case="load-balancer-values.yaml"), "Job", "merlin-bootstrap")
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    hosts = {each.removeprefix("--host=") for each in args if each.startswith("--host=")}
    assert {"nats.example.org", "2001:db8::7", "merlin-nats.team.svc", "127.0.0.1"} <= hosts
    assert "--server=tls://nats.example.org:4222" in args


def _leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> list[str]:
    """Every value's path; a map that the user fills is one value."""
    found = []
    for name, value in values.items():
        properties = schema.get("properties", {}).get(name, {})
        here = f"{path}{name}"
        if isinstance(value, dict) and "properties" in properties and not here.endswith("resources"):
            found += _leaves(value, properties, f"{here}.")
        else:
            found.append(here)
    return found


def test_every_value_is_in_the_schema_and_in_the_docs() -> None:
    """docs/chart.md has one row for each value, and none for others; each has a comment in values.yaml."""
    text = (CHART / "values.yaml").read_text()
    values, schema = yaml.safe_load(text), json.loads((CHART / "values.schema.json").read_text())
    leaves = _leaves(values, schema)
    rows = re.findall(r"^\| `([a-zA-Z.]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(leaves)
    assert text.count("# -- ") == len(leaves)


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "operator" / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert chart["version"] == chart["appVersion"] == version[1]


def test_dockerfiles_differ_in_the_package_only() -> None:
    """One recipe, two images."""
    texts = [
        (ROOT / part / "Dockerfile").read_text().split("\n", 1)[1].replace(part, "PART")
        for part in ("operator", "agent")
    ]
    # What both copy names every package.
    assert texts[0].replace("COPY PART PART\nCOPY agent agent", "") == texts[1].replace(
        "COPY operator operator\nCOPY PART PART", ""
    )


def test_nothing_of_a_test_is_shipped(helm: Helm, tmp_path: Path) -> None:
    """`helm package` leaves the cases out."""
    helm.run("package", CHART, "--destination", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["merlin-0.1.0.tgz"]
    assert "ci/" not in helm.run("show", "all", tmp_path / "merlin-0.1.0.tgz").stdout.split("README")[0][:200]
