"""`parse_spec`: what becomes a model, what is refused, and the very sentences that users see."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from merlin_study.errors import SpecError
from merlin_study.loader import load_yaml
from merlin_study.parse import parse_spec
from merlin_study.translate import QUOTE
from merlin_study.writer import dump_quoted, to_document

HELLO = """
description: {name: hello, description: a study}
batch: {type: slurm, queue: pdebug, nodes: all, walltime: 10:00:00}
env:
  variables: {OUTPUT_PATH: ./studies, N: 3, X: .75, LIST: [1, two]}
  labels: {OUT: out, FLAG: yes}
global.parameters:
  GREET: {values: [hello, 1.50, yes], label: GREET.%%}
  WORLD: {values: [a, b, c], label: WORLD.%%}
study:
  - name: sim
    description: simulates
    run: {cmd: echo $(GREET), cores per task: 1, nodes: $(N), max_retries: 2, walltime: 00:30:00, exclusive: yes}
  - name: collect
    description: collects
    run: {cmd: ls, depends: [sim_*], shell: /usr/bin/env python3, priority: 0.5}
merlin:
  resources:
    workers:
      $(KIND): {args: -c 4, steps: [sim], nodes: null, batch: null, machines: [borax]}
      other:
  samples: {generate: {cmd: make}, file: s.npy, column_labels: [A, B]}
user: {any: {thing: [1, {2.5: x}]}}
"""


def hello(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A valid study but for changes: a path such as ``study/0/run/cmd`` gets a value, or with None loses its key."""
    raw: dict[str, Any] = copy.deepcopy(load_yaml(HELLO.replace("2.5", "'2.5'"), source="hello"))
    for path, value in (changes or {}).items():
        *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        at: Any = raw
        for parent in parents:
            at = at[parent]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return raw


def faults(raw: Any, **options: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(raw, **options)
    return [str(fault) for fault in caught.value.faults]


def reason(raw: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(raw)
    return caught.value.faults[0].reason


def test_an_upstream_file_becomes_a_frozen_model() -> None:
    """Keys with spaces and dots, numbers, tokens, nulls and defaults."""
    spec, warnings = parse_spec(hello())
    assert warnings == []
    assert spec.description.name == "hello"
    assert (spec.batch.walltime, spec.batch.nodes, spec.batch.shell) == (36000, "all", "/bin/bash")
    assert spec.env.variables == {"OUTPUT_PATH": "./studies", "N": 3, "X": 0.75, "LIST": (1, "two")}
    assert spec.global_parameters["GREET"].values == ("hello", 1.5, True)
    sim, collect = spec.study
    assert (sim.run.cores_per_task, sim.run.nodes, sim.run.max_retries, sim.run.retry_delay) == (1, "$(N)", 2, 1)
    assert (sim.run.task_queue, sim.run.shell, collect.run.depends) == ("merlin", None, ("sim_*",))
    assert spec.merlin.resources.workers["other"].steps == ("all",)
    assert spec.merlin.samples is not None
    assert (spec.merlin.samples.level_max_dirs, spec.merlin.samples.column_labels) == (25, ("A", "B"))
    with pytest.raises(ValidationError):
        spec.suspend = True  # type: ignore[misc] # what mypy refuses, pydantic refuses too


def test_a_study_survives_the_way_through_a_manifest() -> None:
    """What `merlin convert` writes parses to the same study, values spelled as upstream substitutes them."""
    spec, _ = parse_spec(hello())
    document = to_document(spec)
    assert document["env"]["variables"] == {"OUTPUT_PATH": "./studies", "N": "3", "X": "0.75", "LIST": "[1, 'two']"}
    assert document["global.parameters"]["GREET"]["values"] == ["hello", "1.5", "True"]
    assert document["study"][0]["run"]["cores per task"] == 1
    assert "retry_delay" not in document["study"][0]["run"]
    again, _ = parse_spec(load_yaml(dump_quoted(document), source="x"))
    assert again.study == spec.study
    assert to_document(again) == document


def test_a_token_where_no_text_fits_means_what_its_value_means_to_yaml() -> None:
    """Upstream replaces variables in the text and reads it again; so a number, a list or a truth value may be one."""
    env = {
        "WIDTH": 7,
        "W": "$(WIDTH)",
        "FLAG": "yes",
        "LIST": ["x", 2],
        "Text": "[C, D]",
        "OCTAL": "010",
        "BAD": "a: b: c",
    }
    spec, _ = parse_spec(
        hello(
            {
                "env/variables": env,
                "vars": {"OCTAL": "011"},
                "merlin/samples/level_max_dirs": "$(W)",
                "merlin/samples/column_labels": "$(TEXT)",
                "merlin/resources/overlap": "$(FLAG)",
                "global.parameters": {"A": {"values": "$(LIST)", "label": "A.%%"}},
                "priority": "$(OCTAL)",
                "study/0/run/nodes": "$(WIDTH)",
            }
        )
    )
    assert spec.merlin.samples is not None
    assert (spec.merlin.samples.level_max_dirs, spec.merlin.samples.column_labels) == (7, ("C", "D"))
    assert spec.merlin.resources.overlap is True
    assert spec.global_parameters["A"].values == ("x", 2)
    assert spec.priority == 9
    assert spec.study[0].run.nodes == "$(WIDTH)", "the compiler replaces what may stay a token"
    assert faults(hello({"merlin/samples/level_max_dirs": "$(NONE)"})) == [
        "spec.merlin.samples.level_max_dirs: expected a whole number, found '$(NONE)' (string)"
    ]
    assert faults(hello({"env/variables": env, "suspend": "$(BAD)"}))[0].startswith(
        "spec.suspend: expected true or false"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description": None}, "spec.description: is required: what the study is called and for"),
        ({"description/name": None}, "spec.description.name: is required: name of the study"),
        ({"description/description": ""}, "spec.description.description: expected text that is not empty, found '' (string)"),
        ({"study": []}, "spec.study: expected at least one step, found none"),
        ({"study/1/run/cmd": None}, "spec.study[1].run.cmd: is required: body of the script"),
        ({"study/1/run/cmd": 3}, "spec.study[1].run.cmd: expected a string, found 3 (integer); quote it"),
        ({"study/1/run": "ls"}, "spec.study[1].run: expected a mapping, found 'ls' (string)"),
        ({"study/1": 7}, "spec.study[1]: expected a mapping, found 7 (integer)"),
        ({"study/1/run/depends": "sim"}, "spec.study[1].run.depends: expected a list, found 'sim' (string); write [sim]"),
        ({"study/0/run/nodes": 0}, "spec.study[0].run.nodes: expected a whole number from 1 to 1000000, one token such as $(NAME), found 0 (integer)"),
        ({"study/0/run/nodes": "2"}, "spec.study[0].run.nodes: expected a whole number from 1 to 1000000, one token such as $(NAME), found '2' (string); remove the quotes"),
        ({"study/0/run/nodes": True}, "spec.study[0].run.nodes: expected a whole number from 1 to 1000000, one token such as $(NAME), found true (boolean)"),
        ({"study/0/run/cores per task": 2.5}, "spec.study[0].run.cores per task: expected a whole number from 1 to 1000000, one token such as $(NAME), found 2.5 (number)"),
        ({"study/0/run/priority": "soon"}, "spec.study[0].run.priority: expected a number from 0 to 1, one token such as $(NAME) or one of held, minimal, low, medium, high, expedited, found 'soon' (string)"),
        ({"merlin/samples/level_max_dirs": 0}, "spec.merlin.samples.level_max_dirs: expected at least 1, found 0 (integer)"),
        ({"merlin/samples/file": None}, "spec.merlin.samples.file: is required: path of the table"),
        ({"merlin/samples/column_labels": ["A", False]}, "spec.merlin.samples.column_labels[1]: expected a string, found false (boolean); quote it, or use `merlin convert` (YAML reads a bare yes, no, on, off and, with kubectl, y and n as booleans)"),
        ({"merlin/samples/column_labels": ["A", "A"]}, "spec.merlin.samples.column_labels[1]: 'A' stands twice; columns need different names"),
        ({"merlin/samples/column_labels": ["GREET"]}, "spec.merlin.samples.column_labels[0]: 'GREET' is a parameter too; rename one of them"),
        ({"env/variables/N": True}, "spec.env.variables.N: expected a string, number or list, found true (boolean); quote it, or let `merlin convert` do so (YAML reads a bare yes, no, on, off and, with kubectl, y and n as booleans)"),
        ({"env/variables/N": {}}, "spec.env.variables.N: expected a string, number or list, found a mapping of 0"),
        ({"env/variables/N": float("inf")}, "spec.env.variables.N: expected a finite number, found inf (number); quote it if the text is meant"),
        ({"env/variables/false": 1}, "spec.env.variables.false: expected a name, found what YAML made of a bare word; quote it, or use `merlin convert` (YAML reads a bare yes, no, on, off and, with kubectl, y and n as booleans)"),
        ({"env/variables/WORKSPACE": "x"}, "spec.env.variables.WORKSPACE: 'WORKSPACE' is filled in by the system; take another name"),
        ({"env/variables/a b": "x"}, "spec.env.variables.a b: 'a b' cannot be referred to as $(NAME); use letters, digits and '_'"),
        ({"vars": {"OUTPUTPATH": "x"}}, "spec.vars.OUTPUTPATH: env.variables has no 'OUTPUTPATH' to override (did you mean 'OUTPUT_PATH'?)"),
        ({"global.parameters/GREET/values": ["x"]}, "spec.global.parameters: all lists of values need one length, since they are zipped, found 1 for GREET; 3 for WORLD"),
        ({"batch/type": "slrum"}, "spec.batch.type: expected one of local, slurm, flux, lsf, lsf-srun, pbs, found 'slrum' (did you mean 'slurm'?)"),
        ({"failurePolicy": "failfast"}, "spec.failurePolicy: expected one of ContinueOnSoftFail, FailFast, found 'failfast' (string) (did you mean 'FailFast'?)"),
        ({"suspend": "true"}, "spec.suspend: expected true or false, found 'true' (string); remove the quotes"),
        ({"priority": 1.5}, "spec.priority: expected a whole number, found 1.5 (number)"),
        ({"maxInFlight": 0}, "spec.maxInFlight: expected at least 1, found 0 (integer)"),
        ({"rehearse": "1"}, "spec.rehearse: expected a number, found '1' (string)"),
        ({"site": "Rzgenie!"}, "spec.site: expected lower-case letters, digits and '-', with a letter or digit at both ends, found 'Rzgenie!' (string)"),
        ({"site": "any"}, "spec.site: 'any' stands for no site; leave the key out to let the first agent decide"),
        ({"study/0/run/cmd": "a\0b"}, "spec.study[0].run.cmd: holds a NUL byte, which no file or script can; remove it"),
        ({"study/0/run/cmd": "\ud800"}, "spec.study[0].run.cmd: holds half of a surrogate pair, which is no character; remove it"),
        ({"study/0/run/cmd": "x" * 262_145}, "spec.study[0].run.cmd: expected at most 262144 characters, found '" + "x" * 37 + "...' (string) of 262145; put long text into a file"),
        ({"study/0/run/dpends": ["x"]}, "spec.study[0].run.dpends: unknown key (did you mean 'depends'?)"),
        ({"study/0/run/cores per taks": 1}, "spec.study[0].run.cores per taks: unknown key (did you mean 'cores per task'?)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_fault_names_path_expectation_finding_and_cure(changes: dict[str, Any], message: str) -> None:
    assert faults(hello(changes)) == [message]


def test_all_faults_are_found_at_once() -> None:
    """From all four passes: one submission, every mistake."""
    raw = hello(
        {"description/name": None, "study/0/run/cmd": 4, "study/0/extra": 1, "batch/type": "x", "study/1/name": "sim"}
    )
    raw["env"]["variables"][1] = "x"
    assert [line.split(": ")[0] for line in faults(raw)] == [
        "spec.env.variables",
        "spec.study[0].extra",
        "spec.description.name",
        "spec.study[0].run.cmd",
        "spec.study[1].name",
        "spec.study[1].run.depends[0]",
        "spec.batch.type",
    ]


def test_keys_that_yaml_typed_are_refused_with_the_cure() -> None:
    raw = load_yaml(HELLO.replace("{2.5: x}", "2").replace("N: 3", "NO: 3"), source="x")
    assert faults(raw) == [
        f"spec.env.variables: expected a string as key, found false (boolean){QUOTE}",
    ]
    assert faults(load_yaml(HELLO, source="x")) == [
        "spec.user.any.thing[1]: expected a string as key, found 2.5 (number); quote it"
    ]


def test_unknown_keys_are_dropped_with_a_warning_where_upstream_warns() -> None:
    raw = hello({"study/0/run/dpends": ["x"], "description/author": "me"})
    spec, warnings = parse_spec(raw, unknown="warn")
    assert spec == parse_spec(hello())[0]
    assert warnings == [
        "spec.description.author: unknown key, dropped",
        "spec.study[0].run.dpends: unknown key, dropped (did you mean 'depends'?)",
    ]
    assert raw["description"]["author"] == "me"


def test_python_names_of_keys_are_unknown() -> None:
    """Only what the CRD takes is taken; a model's own names are for code."""
    raw = hello()
    raw["study"][0]["run"]["cores_per_task"] = 1
    assert faults(raw) == ["spec.study[0].run.cores_per_task: unknown key (did you mean 'cores per task'?)"]


def test_scripts_together_have_a_limit() -> None:
    raw = hello({"study/0/run/cmd": "x" * 250_000, "study/1/run/cmd": "x" * 160_000})
    assert faults(raw) == [
        "spec.study: expected at most 400000 characters in all scripts together, found 410004; put long scripts into files"
    ]


def test_many_faults_are_counted_not_listed() -> None:
    raw = hello({"study": [{"name": f"s{i}", "description": "d", "run": {}} for i in range(150)]})
    found = faults(raw)
    assert len(found) == 101
    assert found[-1] == "spec: and 50 faults more"


def test_a_fault_is_one_line_whatever_it_quotes() -> None:
    assert faults(hello({"study/1/run/depends": ["a\nb"]})) == ["spec.study[1].run.depends[0]: no step named 'a\\nb'"]


def test_reasons_tell_programs_what_the_sentence_tells_people() -> None:
    assert reason(hello({"study/0/run/cmd": None})) == "InvalidSpec"
    assert reason(hello({"nope": 1})) == "UnknownField"
    assert reason(hello({"study/1/run/depends": ["simm"]})) == "UnknownDependency"
    assert reason(hello({"study/0/run/depends": ["collect"]})) == "CycleDetected"
    assert reason(hello({"study/1/name": "SIM"})) == "DuplicateStep"
    assert reason(hello({"study/1/name": "../x"})) == "UnsafeName"
    assert reason(hello({"description/name": "a/b"})) == "UnsafeName"
    assert reason(hello({"global.parameters/GREET/values": ["x"]})) == "UnequalParameters"


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_what_is_no_mapping_is_no_spec(raw: Any) -> None:
    assert faults(raw)[0].startswith("spec: expected a mapping, found ")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.booleans(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
places = st.sampled_from(
    [
        *("description", "batch", "env", "global.parameters", "study", "merlin", "user", "vars", "files", "restart"),
        *("description/name", "env/variables", "env/labels", "env/dependencies", "batch/type", "batch/nodes"),
        *("study/0", "study/0/name", "study/0/run", "study/0/run/depends", "study/0/run/cmd"),
        *("study/0/run/walltime", "study/0/run/exclusive", "study/0/run/priority", "study/0/run/batch"),
        *("merlin/resources", "merlin/resources/workers", "merlin/samples", "merlin/samples/column_labels"),
        *("global.parameters/GREET", "global.parameters/GREET/values", "global.parameters/GREET/label"),
    ]
)


@given(st.lists(st.tuples(places, anything), min_size=1, max_size=2, unique_by=lambda pair: pair[0].count("/")))
def test_nothing_but_spec_errors_comes_out_whatever_goes_in(changes: list[tuple[str, Any]]) -> None:
    """No input crashes the parser, and no sentence of pydantic's reaches a user."""
    raw = hello()
    for path, value in sorted(changes, key=lambda pair: -pair[0].count("/")):
        at: Any = raw
        *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        for parent in parents:
            at = at[parent]
        at[last] = value
    try:
        parse_spec(raw)
    except SpecError as error:
        for fault in error.faults:
            assert fault.path.startswith("spec")
            assert not any(word in fault.message for word in ("Input should", "valid ", "validation", "pydantic"))
