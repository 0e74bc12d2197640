"""The CRDs on a real API server: what it takes, what it refuses, and that kubectl reads what we write."""

import json
from typing import Any

import pytest

from merlin_study.errors import SpecError
from merlin_study.loader import load_yaml
from merlin_study.parse import parse_spec
from merlin_study.writer import dump_quoted, to_document
from tests.ground import ControlPlane
from tests.ground.waiting import eventually

pytestmark = pytest.mark.control_plane

HELLO = """
description: {name: hello, description: a study}
batch: {type: local, nodes: all}
env:
  variables: {OUTPUT_PATH: ./studies, N: 3, X: 0.75, LIST: [1, two]}
  labels: {OUT: out}
global.parameters:
  GREET: {values: [hello, hola, 1, true], label: GREET.%%}
study:
  - name: step 1
    description: says hello
    run: {cmd: "echo $(GREET)\\n", cores per task: 1, nodes: $(N), max_retries: 2, exclusive: true}
  - name: step_2
    description: ends
    run: {cmd: print("done"), depends: [step 1_*], shell: /usr/bin/env python3, walltime: "10:00"}
merlin:
  resources: {workers: {$(KIND): {args: -c 4, steps: [all]}}}
  samples: {generate: {cmd: make}, file: s.csv, column_labels: [A, B]}
user: {any: {thing: [1, {x: 2}]}}
vars: {N: 4}
"""


def hello() -> Any:
    return load_yaml(HELLO, source="hello")


def study(name: str, spec: Any) -> str:
    """A manifest as `merlin convert` writes it."""
    return dump_quoted({"apiVersion": "merlin.dev/v1alpha1", "kind": "Study", "metadata": {"name": name}, "spec": spec})


def spec_of(control_plane: ControlPlane, namespace: str, name: str) -> Any:
    return control_plane.get("study", name, "--namespace", namespace)["spec"]


def patch_status(control_plane: ControlPlane, namespace: str, name: str, status: Any, *, check: bool = True) -> str:
    where = ("study", name, "--namespace", namespace, "--subresource=status", "--type=merge")
    done = control_plane.kubectl("patch", *where, "--patch", json.dumps({"status": status}), check=check)
    return done.stderr


def accepted(status: str) -> Any:
    """The condition that makes science immutable, or not."""
    condition = {
        "type": "Accepted",
        "status": status,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "Compiled" if status == "True" else "CycleDetected",
        "message": "",
    }
    return {"conditions": [condition]}


def test_both_are_served_under_their_names(control_plane: ControlPlane) -> None:
    served = control_plane.kubectl("api-resources", "--api-group=merlin.dev", "--no-headers").stdout
    rows = sorted(tuple(line.split()) for line in served.splitlines())
    assert rows == [
        ("allocations", "alloc", "merlin.dev/v1alpha1", "true", "Allocation"),
        ("studies", "stdy", "merlin.dev/v1alpha1", "true", "Study"),
    ]


def test_schemas_are_structural(control_plane: ControlPlane) -> None:
    """Else the API server serves them, but prunes and explains nothing."""
    for name in ("studies.merlin.dev", "allocations.merlin.dev"):
        status: Any = control_plane.get("crd", name)["status"]
        assert not [c for c in status["conditions"] if c["type"] == "NonStructuralSchema" and c["status"] == "True"]

    def explained() -> bool:  # the server writes what it tells of a new resource a moment after it serves it
        told = control_plane.kubectl("explain", "study.spec.study.run.cmd", check=False)
        return "Body of the script" in told.stdout

    assert eventually(explained, interval=0.5)


def test_a_study_is_read_back_as_it_was_applied(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.apply(study("hello", hello()), namespace=namespace)
    assert spec_of(control_plane, namespace, "hello") == hello()
    assert parse_spec(spec_of(control_plane, namespace, "hello")) == parse_spec(hello())


def indented(name: str, text: str) -> str:
    """A manifest as a user makes it by hand from an upstream file."""
    head = f"apiVersion: merlin.dev/v1alpha1\nkind: Study\nmetadata: {{name: {name}}}\nspec:\n"
    return head + "".join(f"  {line}\n" for line in text.splitlines())


def test_an_upstream_file_indented_under_spec_is_a_study(control_plane: ControlPlane, namespace: str) -> None:
    text = HELLO.replace("N: ", "COUNT: ")
    control_plane.apply(indented("verbatim", text), namespace=namespace)
    assert spec_of(control_plane, namespace, "verbatim") == load_yaml(text, source="verbatim")


def test_what_kubectl_misreads_is_refused_with_the_cure(control_plane: ControlPlane, namespace: str) -> None:
    """The key ``N`` becomes ``false``; it is the parser that has to notice, and it names what helps."""
    control_plane.apply(indented("misread", HELLO), namespace=namespace)
    with pytest.raises(SpecError) as caught:
        parse_spec(spec_of(control_plane, namespace, "misread"))
    assert {fault.path for fault in caught.value.faults} == {"spec.env.variables.false", "spec.vars.false"}
    assert "use `merlin convert`" in str(caught.value)


def test_kubectl_reads_what_convert_writes(control_plane: ControlPlane, namespace: str) -> None:
    """Words, numbers and texts that kubectl's YAML would type otherwise, and scripts with every odd line."""
    raw = hello()
    raw["env"]["variables"] = {"N": "n", "Y": 1.0, "Z": "010", "T": 36000, "W": "10:00:00", "E": "1e3", "B": "0x1F"}
    raw["merlin"]["samples"]["column_labels"] = ["x", "y", "n"]
    raw["study"][0]["run"]["cmd"] = "#!/bin/sh\n\tif true; then  # é \U0001f9ea\n\n    echo 'a: b'\nfi\n\n\n"
    raw["study"][1]["run"]["cmd"] = "  leading\n trailing \n\n"
    raw["user"] = {"no": ["", " ", "\n", "\x85\u2028\ufeff", "a\rb", "\\", '"', "null", "~", "=", "<<", "- a", "|\n x"]}
    document = to_document(parse_spec(raw)[0])
    control_plane.apply(study("quoted", document), namespace=namespace)
    assert spec_of(control_plane, namespace, "quoted") == document
    assert document["env"]["variables"]["Y"] == "1.0"


def without(path: str) -> Any:
    """A valid spec without one key."""
    raw = hello()
    *parents, last = path.split("/")
    at = raw
    for parent in parents:
        at = at[int(parent) if parent.isdecimal() else parent]
    del at[last]
    return raw


def having(path: str, value: Any) -> Any:
    """A valid spec with one value changed."""
    raw = hello()
    *parents, last = path.split("/")
    at = raw
    for parent in parents:
        at = at[int(parent) if parent.isdecimal() else parent]
    at[last] = value
    return raw


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (having("study/0/run/dpends", ["x"]), 'unknown field "spec.study[0].run.dpends"'),
        (without("study/0/run/cmd"), "spec.study[0].run.cmd: Required value"),
        (without("description"), "spec.description: Required value"),
        (having("study/1/name", "step 1"), "steps need different names"),
        (having("study/1/name", "STEP 1"), "steps need different names"),
        (having("study/0/name", "../x"), "spec.study[0].name: Invalid value"),
        (having("study/0/name", ".."), "a step's name is its directory in the workspace"),
        (having("study/0/name", "merlin_info"), "a step's name is its directory in the workspace"),
        (having("study/0/run/nodes", "two"), "spec.study[0].run.nodes: Invalid value"),
        (having("study/0/run/nodes", 0), "spec.study[0].run.nodes: Invalid value"),
        (having("study/0/run/cores per task", 0), "spec.study[0].run.cores per task: Invalid value"),
        (having("study/0/run/cmd", 3), "spec.study[0].run.cmd: Invalid value"),
        (having("merlin/samples/column_labels", ["x", True]), "spec.merlin.samples.column_labels[1]: Invalid value"),
        (without("merlin/samples/file"), "samples need a file, or a count in its place"),
        (having("study", []), "spec.study: Invalid value"),
        (having("failurePolicy", "Never"), "spec.failurePolicy: Unsupported value"),
        (having("priority", 1001), "spec.priority: Invalid value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_schema_can_judge_is_refused_at_once(
    control_plane: ControlPlane, namespace: str, spec: Any, message: str
) -> None:
    done = control_plane.apply(study("wrong", spec), namespace=namespace, check=False)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(("name", "fine"), [("a" * 52, True), ("a" * 53, False), ("a.b", False)])
def test_names_of_studies_are_short_labels(control_plane: ControlPlane, namespace: str, name: str, fine: bool) -> None:  # noqa: FBT001 a table's column
    done = control_plane.apply(study(name, hello()), namespace=namespace, check=False)
    assert (done.returncode == 0) == fine, done.stderr
    assert fine or "the name of a Study has" in done.stderr


SCIENCE = [
    having("description/name", "other"),
    having("batch/type", "slurm"),
    having("env/variables/X", 0.5),
    having("env/variables/LIST", [1, "three"]),
    having("env/labels/OUT", True),
    having("global.parameters/GREET/values", ["hello", "hola", 1, False]),
    having("global.parameters/GREET/label", "G.%%"),
    having("study/0/run/cores per task", 2),
    having("study/0/run/exclusive", False),
    having("study", list(reversed(hello()["study"]))),
    having("merlin/samples/level_max_dirs", 7),
    having("user/any", {}),
    having("vars/N", "5"),
    having("site", "here"),
    having("dialect", "Merlin"),
    without("vars"),
    without("user"),
]


def test_science_changes_until_it_is_accepted_and_never_after(control_plane: ControlPlane, namespace: str) -> None:
    """Every field, also those whose values the schema leaves untyped; a refused study may be mended."""

    def replace(spec: Any) -> str:
        done = control_plane.kubectl(
            "replace", "--namespace", namespace, "--filename", "-", stdin=study("fixed", spec), check=False
        )
        assert done.returncode == 0 or "what an accepted study computes cannot change" in done.stderr, done.stderr
        return "changed" if done.returncode == 0 else "refused"

    control_plane.apply(study("fixed", hello()), namespace=namespace)
    assert replace(SCIENCE[0]) == "changed"
    patch_status(control_plane, namespace, "fixed", accepted("False"))
    assert replace(SCIENCE[1]) == "changed"
    assert replace(hello()) == "changed"
    patch_status(control_plane, namespace, "fixed", accepted("True"))
    assert [replace(spec) for spec in SCIENCE] == ["refused"] * len(SCIENCE)
    assert replace(having("suspend", True)) == "changed"
    assert replace(having("priority", 5)) == "changed"
    assert replace(having("restart", {"id": "1", "steps": ["step_2"]})) == "changed"
    assert replace(hello()) == "changed"


def test_status_is_apart_pruned_and_validated(control_plane: ControlPlane, namespace: str) -> None:
    spec = hello()
    manifest = json.loads(json.dumps({"apiVersion": "merlin.dev/v1alpha1", "kind": "Study", "metadata": {"name": "s"}}))
    control_plane.apply(dump_quoted({**manifest, "spec": spec, "status": {"phase": "Lies"}}), namespace=namespace)
    assert "status" not in control_plane.get("study", "s", "--namespace", namespace)
    status = {
        "observedGeneration": 1,
        "phase": "Running",
        "rate": 12.5,
        "agents": 2,
        "doubled": 0,
        "planHash": "ab",
        "counts": {"total": 100_000_000, "done": 7, "allFailed": 1, "running": 3},
        "steps": [{"name": "step 1", "done": 7}],
        "failures": {"first": [{"step": "step 1", "task": 3, "exitCode": 1, "host": "n1", "stderr": "x" * 512}]},
        **accepted("True"),
    }
    patch_status(control_plane, namespace, "s", status)
    assert control_plane.get("study", "s", "--namespace", namespace)["status"] == status
    row = control_plane.kubectl("get", "stdy", "s", "--namespace", namespace, "--no-headers").stdout.split()
    assert row[:-1] == ["s", "Running", "7", "1", "3", "100000000", "12.5"]
    for wrong, message in [
        ({"phase": 3}, "status.phase: Invalid value"),
        ({"counts": {"done": -1}}, "status.counts.done: Invalid value"),
        ({"steps": [{"name": f"s{i}"} for i in range(101)]}, "status.steps: Too many"),
        ({"failures": {"first": [{"step": "s", "task": 0, "stderr": "x" * 513}]}}, "stderr: Too long"),
        ({"conditions": [{"type": "Accepted"}]}, "status.conditions[0].reason: Required value"),
    ]:
        assert message in patch_status(control_plane, namespace, "s", wrong, check=False)
    assert "unknown field" in patch_status(control_plane, namespace, "s", {"tasks": []}, check=False)


def test_a_study_of_the_largest_size_is_taken_server_side(control_plane: ControlPlane, namespace: str) -> None:
    """400,000 characters of scripts in 200 steps; client-side apply would store them twice."""
    raw = hello()
    step = raw["study"][0]
    raw["study"] = [{**step, "name": f"s{i}", "run": {"cmd": f"{'x' * 1999}\n"}} for i in range(200)]
    control_plane.apply(study("large", raw), "--server-side", namespace=namespace)
    assert spec_of(control_plane, namespace, "large") == raw
    patch_status(control_plane, namespace, "large", accepted("True"))
    raw["suspend"] = True
    control_plane.apply(study("large", raw), "--server-side", namespace=namespace)
    raw["study"][7]["run"]["restart"] = "x" * 1
    done = control_plane.apply(study("large", raw), "--server-side", namespace=namespace, check=False)
    assert "all scripts together have at most 400000 characters" in done.stderr


def test_a_large_parameter_table_passes_the_rules_budget(control_plane: ControlPlane, namespace: str) -> None:
    raw = hello()
    raw["global.parameters"] = {f"P{i}": {"values": list(range(2000)), "label": "P.%%"} for i in range(10)}
    control_plane.apply(study("wide", raw), "--server-side", namespace=namespace)
    patch_status(control_plane, namespace, "wide", accepted("True"))
    raw["priority"] = 1
    control_plane.apply(study("wide", raw), "--server-side", namespace=namespace)
    assert spec_of(control_plane, namespace, "wide") == raw


def test_an_allocation_is_what_it_is(control_plane: ControlPlane, namespace: str) -> None:
    spec = {"site": "here", "scheduler": "slurm", "jobId": "4711", "user": "ann"}
    manifest = {"apiVersion": "merlin.dev/v1alpha1", "kind": "Allocation", "metadata": {"name": "slurm-4711"}}
    control_plane.apply(dump_quoted({**manifest, "spec": spec}), namespace=namespace)
    status = {
        "state": "Running",
        "nodes": 2,
        "hosts": ["n1", "n2"],
        "slots": 8,
        "busy": 3,
        "agentCount": 2,
        "agents": [{"name": "a", "host": "n1", "slots": 4}],
        "queues": ["merlin"],
        "endTime": "2026-01-01T00:00:00Z",
    }
    where = ("allocation", "slurm-4711", "--namespace", namespace, "--subresource=status", "--type=merge")
    control_plane.kubectl("patch", *where, "--patch", json.dumps({"status": status}))
    assert control_plane.get("alloc", "slurm-4711", "--namespace", namespace)["status"] == status
    row = control_plane.kubectl("get", "alloc", "--namespace", namespace, "--no-headers").stdout.split()
    assert row[:-1] == ["slurm-4711", "here", "slurm", "4711", "2", "8", "3", "Running"]
    done = control_plane.apply(
        dump_quoted({**manifest, "spec": {**spec, "jobId": "1"}}), namespace=namespace, check=False
    )
    assert "only drain, queues and agents can change" in done.stderr
    wished = {"drain": True, "queues": ["a"], "agents": [{"name": "x", "drain": False, "queues": []}]}
    control_plane.apply(dump_quoted({**manifest, "spec": {**spec, **wished}}), namespace=namespace)
    without = {key: value for key, value in spec.items() if key != "user"}
    done = control_plane.apply(dump_quoted({**manifest, "spec": without}), namespace=namespace, check=False)
    assert "only drain, queues and agents can change" in done.stderr
