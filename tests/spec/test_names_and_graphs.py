"""The checks that parser and compiler share: names, dependencies, circles, lists."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merlin_study.checks import (
    check_batch_type,
    check_step_name,
    check_study_name,
    duplicate_faults,
    find_cycles,
    graph_faults,
    parameter_faults,
    parse_depends,
)
from merlin_study.errors import Fault, SpecError, did_you_mean
from merlin_study.workspace import safe_name


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "/", "/etc", "a/b", "", "-rf", "$-rf", "a\nb", "a\0b", "a\x7f", "x" * 201, "é" * 101, "ü", "💥", "merlin_info", "merlin info", "Merlin_Info", ".$.", "\ud800"],
    ids=ascii,
)  # fmt: skip
def test_names_that_could_leave_the_workspace_are_unsafe(name: str) -> None:
    fault = check_step_name(name, "p")
    assert fault is not None
    assert (fault.path, fault.reason) == ("p", "UnsafeName")
    assert fault.message.isprintable()


@pytest.mark.parametrize(
    "name", ["sim", "post-process", "a b", "v1.2", "...", "x*", "été", "run_$(N)", "$(N)", "x" * 200]
)
def test_names_that_upstream_takes_are_taken(name: str) -> None:
    assert check_step_name(name, "p") is None
    assert check_study_name(name, "p") is None


@given(st.text())
def test_a_name_that_passes_is_one_directory_of_its_own(name: str) -> None:
    if check_step_name(name, "p") is None and "$(" not in name:
        assert safe_name(name) not in {"", ".", "..", "merlin_info"}
        assert "/" not in safe_name(name)


def test_an_unsafe_name_says_why() -> None:
    assert str(check_step_name("../x", "spec.study[0].name")) == (
        "spec.study[0].name: '../x' cannot be the name of a step: '/' would lead to another directory; "
        "use letters, digits, '_', '-' and '.'"
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [("s", ("s", False)), ("s_*", ("s", True)), ("s*", ("s", True)), ("s_", ("s_", False)), ("a*b", ("a*b", False)), ("_*", ("", True))],
)  # fmt: skip
def test_both_forms_of_a_funnel_are_read(text: str, read: tuple[str, bool]) -> None:
    assert parse_depends(text) == read


def lines(faults: list[Fault]) -> list[str]:
    return [f"{fault.reason} {fault}" for fault in faults]


def test_doubles_are_names_and_directories_that_are_the_same() -> None:
    assert lines(duplicate_faults(["sim", "a b", "sim", "Sim", "a_b", "", ""])) == [
        "DuplicateStep spec.study[2].name: another step is called 'sim' already; names are unique",
        "DuplicateStep spec.study[3].name: 'Sim' and 'sim' differ only by case; take another name",
        "DuplicateStep spec.study[4].name: 'a_b' and 'a b' would share the directory 'a_b'; take another name",
    ]


def test_unknown_and_repeated_dependencies_are_named() -> None:
    assert lines(graph_faults(["sim", "post", "end"], [[], ["simm_*", "sim"], ["post", "post", "nothing"]])) == [
        "UnknownDependency spec.study[1].run.depends[0]: no step named 'simm' (did you mean 'sim'?)",
        "InvalidSpec spec.study[2].run.depends[1]: 'post' stands twice; remove one",
        "UnknownDependency spec.study[2].run.depends[2]: no step named 'nothing'",
    ]


def test_a_dependency_is_not_judged_while_names_hold_tokens() -> None:
    assert graph_faults(["sim_$(N)", "post"], [[], ["sim_4"]]) == []
    assert graph_faults(["sim", "post"], [[], ["$(WHICH)"]]) == []


def test_circles_are_named_from_their_first_step() -> None:
    names = ["first", "c", "a", "b", "x", "y", "self"]
    circle = "each of these steps waits for the next, so none can start"
    depends = [["b"], ["b"], ["c_*"], ["a*"], ["y", "c"], ["x"], ["self_*"]]
    assert lines(graph_faults(names, depends)) == [
        "CycleDetected spec.study[6].run.depends[0]: the step 'self' waits for itself; remove it",
        f"CycleDetected spec.study[1].run.depends: {circle}: c -> b -> a -> c; remove one dependency",
        f"CycleDetected spec.study[4].run.depends: {circle}: x -> y -> x; remove one dependency",
    ]


def test_a_long_circle_is_shown_in_part() -> None:
    names = [f"s{i}" for i in range(5000)]
    (fault,) = graph_faults(names, [[f"s{(i + 1) % 5000}"] for i in range(5000)])
    assert "s0 -> s1 -> s2" in fault.message
    assert fault.message.endswith("s11 -> ...; remove one dependency")


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1)), min_size=n, max_size=n)))
def test_circles_are_found_exactly_where_no_order_exists(graph: list[set[int]]) -> None:
    """Against the plain definition: take away what waits for nothing until nothing is left."""
    edges = {str(i): [str(j) for j in sorted(parents)] for i, parents in enumerate(graph)}
    left = dict(edges)
    while ready := [name for name, parents in left.items() if not any(parent in left for parent in parents)]:
        for name in ready:
            del left[name]
    cycles = find_cycles(edges, order=list(edges))
    assert bool(cycles) == bool(left)
    for cycle in cycles:
        assert all(after in edges[name] for name, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def test_unequal_lists_are_named_with_their_lengths() -> None:
    zipped = "all lists of values need one length, since they are zipped"
    assert lines(parameter_faults({"A": 2, "B": 3, "C": 3, "D": 0})) == [
        "InvalidSpec spec.global.parameters.D.values: expected at least one value, found an empty list",
        f"UnequalParameters spec.global.parameters: {zipped}, found 0 for D; 2 for A; 3 for B, C",
    ]
    assert parameter_faults({"A": 2, "B": 2}) == parameter_faults({}) == []


def test_batch_types_may_be_tokens() -> None:
    assert check_batch_type("$(TYPE)", "p") is check_batch_type("pbs", "p") is None
    assert check_batch_type("sge", "p") is not None


def test_hints_find_what_users_mistake() -> None:
    known = ["depends", "cores per task", "task_queue"]
    assert did_you_mean("dependz", known) == " (did you mean 'depends'?)"
    assert did_you_mean("coresPerTask", known) == " (did you mean 'cores per task'?)"
    assert did_you_mean("task-queue", known) == " (did you mean 'task_queue'?)"
    assert did_you_mean("zebra", known) == did_you_mean("depends", known) == did_you_mean("x", []) == ""


def test_an_error_carries_its_faults_and_at_least_one() -> None:
    error = SpecError([Fault("a.b", "is wrong"), Fault("", "all is wrong")])
    assert str(error) == "a.b: is wrong\nall is wrong"
    assert pickle.loads(pickle.dumps(error)).faults == error.faults
    with pytest.raises(AssertionError):
        SpecError([])
