"""Commands for studies in a cluster, against a real API server: what they change there, and what they say."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merlin_cli.__main__ import main
from merlin_cli.exits import Exit
from merlin_study import nested
from tests.ground import ControlPlane

pytestmark = pytest.mark.control_plane

SPEC = """\
description: {name: Sweep, description: a test}
env:
  variables: {Q: fast}
study:
  - name: sim
    description: simulates
    run: {cmd: "echo $(Q)", task_queue: $(Q)}
  - name: sum
    description: adds up
    run: {cmd: echo, depends: [sim_*], task_queue: slow}
"""
STUDY: dict[str, Any] = {
    "apiVersion": "merlin.dev/v1alpha1",
    "kind": "Study",
    "spec": {
        "description": {"name": "Sweep", "description": "a test"},
        "env": {"variables": {"Q": "fast"}},
        "study": [
            {"name": "sim", "description": "simulates", "run": {"cmd": "echo $(Q)", "task_queue": "$(Q)"}},
            {"name": "sum", "description": "adds", "run": {"cmd": "echo", "depends": ["sim_*"], "task_queue": "slow"}},
        ],
    },
}
GOING = {"phase": "Running", "counts": {"total": 101, "done": 40}, "steps": [
    {"name": "sim", "total": 100, "done": 40, "succeeded": 38, "softFailed": 2, "allFailed": 2, "running": 10},
    {"name": "sum", "total": 1},
], "workspace": "/p/lustre/Sweep_1", "failures": {"first": [
    {"step": "sim", "task": 7, "outcome": "softFailed", "exitCode": 137, "host": "n1", "directory": "sim/07"}]},
}  # fmt: skip


class Place:
    """A namespace with studies in it, and ``merlin`` for it."""

    def __init__(self, plane: ControlPlane, namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.plane, self.namespace, self._capsys = plane, namespace, capsys

    def study(self, name: str, status: dict[str, Any] | None = None, conditions: tuple[str, ...] = ()) -> str:
        """Make a study, with what an operator would have written; return its uid."""
        self.plane.apply(json.dumps({**STUDY, "metadata": {"name": name}}), namespace=self.namespace)
        if status is not None:
            body = copy.deepcopy(status)
            body["conditions"] = [
                {"type": kind, "status": "True", "reason": "R", "message": "why", "lastTransitionTime": "2026-01-02T03:04:05Z"}
                for kind in conditions
            ]  # fmt: skip
            self.write("study", name, body)
        metadata: Any = self.read(name)["metadata"]
        return str(metadata["uid"])

    def write(self, kind: str, name: str, status: dict[str, Any]) -> None:
        """Write a status."""
        self.plane.kubectl(
            *("patch", kind, name, "-n", self.namespace, "--subresource=status", "--type=merge"),
            *("-p", json.dumps({"status": status})),
        )

    def read(self, name: str) -> dict[str, Any]:
        """Return a study."""
        return self.plane.get("study", name, "-n", self.namespace)

    def merlin(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command for this namespace; return exit code, output and what went wrong."""
        self._capsys.readouterr()
        try:
            code = main([*arguments, "-n", self.namespace])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def place(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(control_plane.kubeconfig))
    monkeypatch.delenv(nested.SOCKET, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return Place(control_plane, namespace, capsys)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    file = tmp_path / "sweep.yaml"
    file.write_text(SPEC)
    return str(file)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["suspend"], lambda spec: spec["suspend"] is True),
        (["resume"], lambda spec: spec["suspend"] is False),
        (["cancel"], lambda spec: spec["cancel"] is True),
        (["purge"], lambda spec: len(spec["purge"]) == 16),
        (["restart"], lambda spec: spec["cancel"] is False and set(spec["restart"]) == {"id"}),
    ],
)
def test_a_command_changes_its_switch_and_nothing_else(
    place: Place, command: list[str], expected: Callable[[dict[str, Any]], bool]
) -> None:
    place.study("one")
    before = place.read("one")["spec"]
    code, said, error = place.merlin(*command, "one")
    assert code == Exit.OK, error
    assert said.startswith("study one ")
    after = place.read("one")["spec"]
    assert expected(after)
    assert {key: after[key] for key in before} == before


def test_a_restart_names_tasks_and_takes_back_what_an_earlier_one_named(place: Place) -> None:
    place.study("one")
    options = ("--steps", "sim", "--tasks", "0-9", "--exit-codes", "1", "137", "--dependants")
    assert place.merlin("restart", "one", *options)[0] == Exit.OK
    first = place.read("one")["spec"]["restart"]
    assert first == {
        "id": first["id"], "steps": ["sim"], "tasks": "0-9", "exitCodes": [1, 137], "dependants": True
    }  # fmt: skip
    assert place.merlin("restart", "one")[0] == Exit.OK
    second = place.read("one")["spec"]["restart"]
    assert set(second) == {"id"}
    assert second["id"] != first["id"]


def test_a_study_is_found_by_its_directory(place: Place, tmp_path: Path) -> None:
    uid = place.study("one")
    (tmp_path / "merlin_info").mkdir()
    (tmp_path / "merlin_info" / "workspace.json").write_text(json.dumps({"study": uid, "mark": "m"}))
    code, said, _ = place.merlin("suspend", str(tmp_path))
    assert (code, said.split(";")[0]) == (Exit.OK, "study one starts no further task")
    (tmp_path / "merlin_info" / "workspace.json").write_text(json.dumps({"study": "another"}))
    code, _, error = place.merlin("suspend", str(tmp_path))
    assert code == Exit.USAGE
    assert f"its study (uid another) is not in namespace {place.namespace}" in error


def test_a_specification_means_all_of_its_studies_that_are_not_over(place: Place, spec: str) -> None:
    place.study("old", GOING, ("Finished",))
    place.study("first", GOING)
    place.study("second")
    code, said, error = place.merlin("purge", spec, "-f")
    assert code == Exit.OK, error
    assert sorted(line.split()[1] for line in said.splitlines()) == ["first", "second"]
    assert "purge" not in place.read("old")["spec"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cancel", "absent"], "there is no study absent in namespace"),
        (["cancel", "absent.yaml"], "there is no file or directory absent.yaml"),
        (["cancel", "over"], "study over is over; only `merlin restart over` does something with it"),
        (["restart", "over", "--steps", "nonsense"], "expected steps of study over: sim, sum"),
        (["restart", "refused"], "study refused was refused, so nothing of it runs"),
        (["purge", "over", "--steps", "sim"], "--steps is not supported yet; purge drops all"),
        (["restart", "over", "--slots", "3"], "--slots is for --local"),
        (["restart", "over", "--local"], "are for a cluster"),
        (["monitor", "going", "--sleep", "0"], "expected a number of seconds above 0"),
        (["monitor", "going", "--steps", "nonsense"], "--steps nonsense: expected steps of going: sim, sum"),
        (["query-workers", "--workers", "("], "expected a regular expression"),
        (["queue-info", "--dump", "x.txt"], "expected a file that ends in .csv or .json"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(place: Place, arguments: list[str], words: str) -> None:
    place.study("over", GOING, ("Finished",))
    place.study("refused", {"phase": "Refused"}, ("Finished",))
    place.study("going", GOING)
    before = place.read("over")
    code, _, error = place.merlin(*arguments)
    assert code == Exit.USAGE
    assert words in error
    assert place.read("over") == before


def test_who_may_not_change_a_study_is_told_so(
    place: Place, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.study("one")
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(control_plane.user_kubeconfig("stranger")))
    code, _, error = place.merlin("cancel", "one")
    assert code == Exit.CANNOT_RUN
    assert "ask who set up the cluster for that right" in error


def test_the_status_of_a_study_in_a_cluster_reads_as_one_from_its_workspace(place: Place, spec: str) -> None:
    place.study("older", GOING, ("Finished",))
    place.study("one", GOING, ("Suspended",))
    code, said, _ = place.merlin("status", "one")
    assert code == Exit.OK
    lines = said.splitlines()
    assert lines[0] == "one: not finished; 40 of 101 tasks done (39 %); 2 did not succeed; in sim 40/100"
    assert lines[1] == "  R: why"
    assert ["sim", "100", "38", "2"] in [line.split() for line in lines]
    assert "sim, task 7: soft-failed, signal 9" in lines
    assert "  in /p/lustre/Sweep_1/sim/07" in lines
    assert lines[-1] == "Outputs: /p/lustre/Sweep_1"
    code, said, _ = place.merlin("status", spec)
    assert code == Exit.OK
    assert "The newest of 2; name another by its directory or its own name." in said


def test_a_study_that_no_operator_has_seen_says_so(place: Place) -> None:
    place.study("one")
    code, said, _ = place.merlin("status", "one")
    assert code == Exit.OK
    assert "the operator has not looked at it yet" in said


def test_monitor_returns_when_no_work_remains(place: Place) -> None:
    place.study("over", GOING, ("Finished",))
    place.study("still", GOING | {"steps": [{"name": "sim", "total": 4, "done": 2}]})
    assert place.merlin("monitor", "over")[0] == Exit.FAILURES
    code, _, error = place.merlin("monitor", "still", "--sleep", "0.01")
    assert code == Exit.CANNOT_RUN
    assert "nothing ran for 0.1 s, though work remains; start agents for it" in error


def allocation(name: str, job: str) -> str:
    spec = {"site": "quartz", "scheduler": "slurm", "jobId": job}
    return json.dumps(
        {"apiVersion": "merlin.dev/v1alpha1", "kind": "Allocation", "metadata": {"name": name}, "spec": spec}
    )


def agents(place: Place, name: str, served: dict[str, list[str]], *, more: int = 0) -> None:
    """An allocation, with what the operator would have written of its agents."""
    place.plane.apply(allocation(name, name), namespace=place.namespace)
    told = [{"name": agent, "host": "n", "slots": 1, "busy": 0, "queues": served[agent]} for agent in served]
    queues = sorted({queue for each in served.values() for queue in each})
    place.write("allocation", name, {"agentCount": len(told) + more, "agents": told, "queues": queues})


def wished(place: Place, name: str) -> dict[str, Any]:
    found: Any = place.plane.get("allocation", name, "-n", place.namespace)
    return {key: found["spec"][key] for key in ("drain", "queues", "agents") if key in found["spec"]}


def test_agents_are_told_to_leave_by_what_upstream_filters_by(place: Place, spec: str) -> None:
    """Written into their allocations; what was wished before stands, but of agents that are gone."""
    agents(place, "one", {"sim-n-1": ["fast"], "post-n-2": ["slow"]})
    agents(place, "two", {"post-n-3": ["slow"], "any-n-4": []})
    assert "Told 2 agents to leave" in place.merlin("stop-workers", "--workers", "^post")[1]
    assert wished(place, "one") == {"agents": [{"name": "post-n-2", "drain": True}]}
    agents(place, "one", {"sim-n-1": ["fast"]})
    assert "Told 2 agents to leave" in place.merlin("stop-workers", "--queues", "fast")[1]
    assert wished(place, "one") == {"agents": [{"name": "sim-n-1", "drain": True}]}
    assert {each["name"] for each in wished(place, "two")["agents"]} == {"post-n-3", "any-n-4"}
    assert "Told 3 agents to leave" in place.merlin("stop-workers", "--spec", spec)[1]
    assert "No agent that fits" in place.merlin("stop-workers", "--workers", "x")[1]


def test_queues_of_agents_are_set_added_and_removed(place: Place) -> None:
    agents(place, "one", {"a": ["fast"], "b": ["slow", "late"]})
    assert "Told 2 agents" in place.merlin("queues", "add", "late", "later", "--queues", "slow", "fast")[1]
    queues = {each["name"]: each["queues"] for each in wished(place, "one")["agents"]}
    assert queues == {"a": ["fast", "late", "later"], "b": ["slow", "late", "later"]}
    assert place.merlin("queues", "remove", "late", "--workers", "b")[0] == Exit.OK
    assert place.merlin("queues", "set", "--workers", "a")[0] == Exit.OK
    queues = {each["name"]: each["queues"] for each in wished(place, "one")["agents"]}
    assert queues == {"a": [], "b": ["slow"]}
    for arguments, why in (
        (("remove", "slow", "late", "--workers", "b"), "would serve no queue"),
        (("add",), "expected queues, found none"),
    ):
        code, _, error = place.merlin("queues", *arguments)
        assert (code, why in error) == (Exit.REFUSED if arguments[1:] else Exit.USAGE, True), error
    agents(place, "one", {"a": []})
    assert "serves all queues; name those that it shall serve" in place.merlin("queues", "remove", "x")[2]


def test_agents_beyond_those_that_an_allocation_names_are_told_with_all_others_only(place: Place) -> None:
    agents(place, "many", {"a": ["fast"], "b": ["fast"]}, more=98)
    assert "Told 100 agents to leave" in place.merlin("stop-workers")[1]
    assert wished(place, "many") == {"drain": True}
    code, _, error = place.merlin("queues", "add", "x", "--workers", "a")
    assert (code, "has 98 agents more than its status names" in error) == (Exit.REFUSED, True)


def test_who_may_not_tell_agents_hears_how_they_are_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    agents(place, "12", {"a": ["fast"]})
    rules = "{apiGroups: [merlin.dev], resources: [allocations], verbs: [get, list]}"
    role = (
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: viewer}\n"
        f"rules: [{rules}]\n---\n"
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: viewer}\n"
        "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: viewer}\n"
        "subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: stranger}]\n"
    )
    viewer = place.plane.granted("stranger", role, may="list allocations", namespace=place.namespace)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(viewer))
    code, _, error = place.merlin("stop-workers")
    assert code == Exit.CANNOT_RUN
    assert "HTTP 403" in error
    assert "  scancel 12  # site quartz" in error.splitlines()
    assert not wished(place, "12")


def test_agents_and_queues_are_listed_by_what_upstream_filters_by(place: Place, spec: str, tmp_path: Path) -> None:
    place.study("one", GOING)
    for name, job, queues in (("a", "11", ["fast"]), ("b", "12", ["slow"])):
        place.plane.apply(allocation(name, job), namespace=place.namespace)
        agent = {"name": f"agent-{name}", "host": f"n-{name}", "slots": 4, "busy": 1}
        place.write("allocation", name, {"state": "Running", "queues": queues, "agents": [agent]})
    code, said, _ = place.merlin("query-workers", "--queues", "fast")
    assert (code, [line.split() for line in said.splitlines()][1:]) == (
        Exit.OK, [["agent-a", "n-a", "quartz", "slurm", "11", "1/4", "fast", "Running"]]
    )  # fmt: skip
    assert len(place.merlin("query-workers", "--workers", "agent-[ab]")[1].splitlines()) == 3
    assert len(place.merlin("query-workers", "--spec", spec)[1].splitlines()) == 3
    assert "No agent that fits" in place.merlin("query-workers", "--workers", "x")[1]
    rows = [line.split() for line in place.merlin("queue-info")[1].splitlines()]
    assert rows == [
        ["queue", "studies", "waiting", "running", "retrying", "agents", "slots"],
        ["fast", "1", "50", "10", "0", "1", "4"],
        ["slow", "1", "1", "0", "0", "1", "4"],
    ]
    assert (
        place.merlin("queue-info", "--spec", spec, "--steps", "sum", "--dump", str(tmp_path / "q.json"))[0] == Exit.OK
    )
    assert [row["queue"] for row in json.loads((tmp_path / "q.json").read_text())] == ["slow"]
    assert place.merlin("queue-info", "--specific-queues", "fast", "--dump", str(tmp_path / "q.csv"))[0] == Exit.OK
    assert (tmp_path / "q.csv").read_text().splitlines()[1:] == ["fast,1,50,10,0,1,4"]
