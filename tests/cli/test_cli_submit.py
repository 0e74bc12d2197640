"""What a cluster is asked to create, and what a user reads of its answer."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from merlin_cli import kube, submit
from merlin_cli.exits import CliError, Exit
from merlin_cli.run import Request
from merlin_study.errors import SpecError

SPEC = """\
description: {name: My Study, description: a test}
env:
  variables: {N: 1}
study:
  - name: one
    description: says a word
    run: {cmd: "ls $(SPECROOT) $(N)"}
"""


class Recorder:
    """A cluster that keeps what it is given."""

    namespace = "mine"

    def __init__(self) -> None:
        self.created: list[tuple[str, dict[str, Any]]] = []
        self.parts: dict[str, dict[str, Any]] = {}
        self.owners: dict[str, list[str]] = {}

    def whoami(self) -> str:
        """Somebody."""
        return "ada"

    def create(self, namespace: str, body: Mapping[str, Any]) -> str:
        """Keep it."""
        self.created.append((namespace, dict(body)))
        return f"uid-{len(self.created)}"

    def create_part(self, namespace: str, body: Mapping[str, Any]) -> bool:
        """Keep it."""
        del namespace
        return self.parts.setdefault(body["metadata"]["name"], dict(body)) == body

    def own_part(self, namespace: str, name: str, owner: Mapping[str, Any]) -> bool:
        """Note the owner."""
        del namespace
        self.owners.setdefault(name, []).append(owner["uid"])
        return name in self.parts

    def drop_part(self, namespace: str, name: str) -> None:
        """Forget it."""
        del namespace
        del self.parts[name]


def submitted(request: Request) -> tuple[str, dict[str, Any], list[str]]:
    cluster, console = Recorder(), Console(file=io.StringIO(), width=200)
    assert submit.submit(request, console, cluster) == Exit.OK
    assert isinstance(console.file, io.StringIO)
    [(namespace, body)] = cluster.created
    return namespace, body, console.file.getvalue().splitlines()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)
    return file


def test_a_study_is_created_under_its_name_and_stamp(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merlin_cli.place.stamp", lambda: "20260102-030405")
    namespace, body, said = submitted(Request(spec=str(spec), vars=("N=5",)))
    assert namespace == "mine"
    assert body["metadata"] == {"name": "my-study-20260102-030405", "annotations": {"merlin.dev/creator": "ada"}}
    assert body["spec"]["vars"] == {"N": "5"}
    assert [each["name"] for each in body["spec"]["files"]] == ["."]
    assert said == [
        "Created study my-study-20260102-030405 in namespace mine.",
        "  watch it:    kubectl get study/my-study-20260102-030405 -n mine -w",
        "  wait for it: kubectl wait --for=condition=Finished --timeout=-1s study/my-study-20260102-030405 -n mine",
    ]


def test_the_command_line_names_namespace_and_object(spec: Path) -> None:
    namespace, body, _ = submitted(Request(spec=str(spec), namespace="theirs", name="mine-1"))
    assert (namespace, body["metadata"]["name"]) == ("theirs", "mine-1")


def test_a_manifests_own_name_stands(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    head = "apiVersion: merlin.dev/v1alpha1\nkind: Study\nmetadata: {name: n, namespace: ns, labels: {a: b}, uid: u}\nspec:\n"
    file.write_text(head + "".join(f"  {line}\n" for line in SPEC.replace("$(SPECROOT) ", "").splitlines()))
    namespace, body, _ = submitted(Request(spec=str(file)))
    kept = {"labels": {"a": "b"}, "name": "n", "annotations": {"merlin.dev/creator": "ada"}}
    assert (namespace, body["metadata"]) == ("ns", kept)
    assert "vars" not in body["spec"]


def test_a_name_that_no_object_can_have_is_wrong_usage(spec: Path) -> None:
    with pytest.raises(CliError, match="expected at most 52 lower-case letters, digits and '-', for instance my-name"):
        submit.submit(Request(spec=str(spec), name="My Name"), Console(), Recorder())


def test_a_study_that_does_not_compile_never_reaches_the_cluster(spec: Path) -> None:
    spec.write_text(SPEC.replace("$(N)", "$(MERLIN_NONSENSE)"))
    cluster = Recorder()
    with pytest.raises(SpecError, match="MERLIN_NONSENSE"):
        submit.submit(Request(spec=str(spec)), Console(), cluster)
    assert cluster.created == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (422, Exit.REFUSED, "the cluster refused the study: spec.study: too long"),
        (404, Exit.CANNOT_RUN, "install the CRDs"),
        (409, Exit.CANNOT_RUN, "has a study x already"),
        (403, Exit.CANNOT_RUN, "did not take the study (HTTP 403): spec.study: too long"),
    ],
)
def test_a_refusal_is_told_in_the_clusters_words(status: int, code: Exit, words: str) -> None:
    error = kube.not_created(status, '{"message": "spec.study: too long"}', "mine", {"metadata": {"name": "x"}})
    assert error.code == code
    assert words in str(error)


def test_without_a_cluster_the_user_is_told_what_to_set(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent"))
    with pytest.raises(CliError, match="set KUBECONFIG, or run here with --local") as told:
        submit.submit(Request(spec=str(spec)), Console())
    assert told.value.code == Exit.CANNOT_RUN
