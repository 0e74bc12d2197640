"""Keys and tokens of the language, each with upstream's meaning."""

from __future__ import annotations

import pytest

from merlin_study import samples
from merlin_study.errors import SpecError
from merlin_study.geometry import Geometry
from merlin_study.loader import load_yaml
from merlin_study.plan import EdgeKind, Plan
from merlin_study.workspace import PATHS_FILE, Layout, TaskTokens, UnfillableError, wants_paths
from tests.folding.studies import plan_of

HEAD = "description: {name: n, description: d}\n"


def _study(*runs: str, rest: str = "") -> str:
    steps = "".join(f"- {{name: s{at}, description: d, run: {run}}}\n" for at, run in enumerate(runs))
    return f"{HEAD}study:\n{steps}{rest}"


def _script(plan: Plan, step: int, *, count: int = 0, combination: int = 0) -> str:
    tokens = TaskTokens(Layout("/w/n_1", Geometry(plan, count)), step)
    return tokens.render(tokens.cmd, combination=combination, sample=0, values=())


def test_output_path_is_what_the_user_typed_or_where_the_workspace_lies() -> None:
    typed = plan_of(_study("{cmd: 'ls $(OUTPUT_PATH)'}", rest="env: {variables: {OUTPUT_PATH: ./out}}"))
    assert (typed.output_path, _script(typed, 0)) == ("./out", "ls ./out")
    none = plan_of(_study("{cmd: 'ls $(OUTPUT_PATH)'}"))
    assert (none.output_path, _script(none, 0)) == ("", "ls /w")


def test_output_path_in_maestro_s_dialect_is_the_study_s_own_directory() -> None:
    text = _study(
        "{cmd: 'ls $(OUTPUT_PATH) $(DATA)'}",
        rest="dialect: Maestro\nenv: {variables: {OUTPUT_PATH: ./out, DATA: $(OUTPUT_PATH)/data}}",
    )
    plan = plan_of(text)
    assert plan.output_path == "./out"
    assert _script(plan, 0) == "ls /w/n_1 /w/n_1/data"


@pytest.mark.parametrize(
    ("dialect", "written", "seconds"),
    [("Merlin", '"10"', 10), ("Maestro", '"10"', 600), ("Maestro", "10:00:00", 36000), ("Maestro", '"90s"', 90)],
)
def test_a_bare_walltime_is_seconds_in_merlin_and_minutes_in_maestro(dialect: str, written: str, seconds: int) -> None:
    """An unquoted clock is a number of seconds to YAML 1.1, and stays one in either dialect."""
    plan = plan_of(_study(f"{{cmd: x, walltime: {written}}}", rest=f"dialect: {dialect}"))
    assert plan.steps[0].lanes[0].walltime == seconds


def test_all_exit_codes_are_values() -> None:
    names = ("SUCCESS", "RESTART", "SOFT_FAIL", "HARD_FAIL", "RETRY", "STOP_WORKERS", "RAISE_ERROR")
    plan = plan_of(_study("{cmd: '" + " ".join(f"$(MERLIN_{name})" for name in names) + "'}"))
    assert plan.steps[0].cmd == "0 100 101 102 104 105 106"


@pytest.mark.parametrize("written", ["none", "None", '""'])
def test_a_step_that_asks_for_no_queue_gets_the_one_without_a_name(written: str) -> None:
    assert plan_of(_study(f"{{cmd: x, task_queue: {written}}}")).steps[0].lanes[0].queue == "merlin"


@pytest.mark.parametrize(
    ("dialect", "study", "step", "suffix"),
    [
        ("Merlin", "local", "slurm", ".slurm"),
        ("Merlin", "flux", "local", ""),
        ("Merlin", "flux", "lsf", ".slurm"),
        ("Merlin", "lsf", "", ".slurm"),
        ("Maestro", "lsf", "", ".lsf"),
        ("Maestro", "local", "flux", ".flux"),
    ],
)
def test_a_step_s_own_batch_type_counts_before_the_study_s(dialect: str, study: str, step: str, suffix: str) -> None:
    own = f", batch: {{type: {step}}}" if step else ""
    plan = plan_of(_study(f"{{cmd: x{own}}}", rest=f"dialect: {dialect}\nbatch: {{type: {study}}}"))
    assert plan.steps[0].suffix == suffix


SAMPLES = "merlin: {samples: {file: s.csv, column_labels: [S], level_max_dirs: 3}}"


def test_all_paths_are_upstream_s_list_of_leaves() -> None:
    plan = plan_of(_study("{cmd: 'use $(MERLIN_PATHS_ALL)'}", rest=SAMPLES))
    assert plan.steps[1].edges[0].kind is EdgeKind.ALL, "the number of samples has to be known"
    assert _script(plan, 1, count=4) == "use 0/0 0/1 0/2 1/0"
    assert _script(plan, 1, count=1) == "use "
    assert wants_paths(plan)


def test_paths_too_long_for_a_command_line_are_refused_with_the_file_that_has_them() -> None:
    plan = plan_of(_study("{cmd: 'use $(MERLIN_PATHS_ALL)'}", rest=SAMPLES))
    with pytest.raises(UnfillableError, match=f"/w/n_1/merlin_info/{PATHS_FILE}"):
        _script(plan, 1, count=10**8)
    assert wants_paths(plan_of(_study(f"{{cmd: 'wc $(MERLIN_INFO)/{PATHS_FILE}'}}", rest=SAMPLES)))
    assert not wants_paths(plan_of(_study("{cmd: 'echo $(S)'}", rest=SAMPLES)))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 25, 26, 700])
def test_the_size_of_all_paths_is_known_before_they_are_written(count: int) -> None:
    assert samples.paths_size(count, 25) == len(samples.paths(count, 25) or "")


def test_a_workspace_may_be_named_without_waiting_for_it() -> None:
    """The parameters of the step whose directory it is are inherited, wherever that step stands in the text."""
    text = _study(
        "{cmd: 'ls $(s1.workspace)'}",
        "{cmd: 'echo $(X)'}",
        rest="global.parameters: {X: {values: [1, 2], label: X.%%}}",
    )
    plan = plan_of(text)
    assert [step.name for step in plan.steps] == ["s1", "s0"]
    assert plan.steps[1].parameters == ("X",)
    assert plan.steps[1].edges == ()
    assert _script(plan, 1, combination=1) == "ls /w/n_1/s1/X.2"


def test_workspaces_that_name_each_other_are_refused() -> None:
    with pytest.raises(SpecError, match=r"no such step comes before this one"):
        plan_of(_study("{cmd: 'ls $(s1.workspace)'}", "{cmd: 'ls $(s0.workspace)'}"))


def test_a_parameter_s_value_may_name_the_study_s_places_and_nothing_that_is_filled_in_for_each_task() -> None:
    """As upstream, which replaces these in the whole text; the label's directory stays the same on every machine."""
    head = "env: {variables: {OUTPUT_PATH: ./out}}\nglobal.parameters: {P: {values: ["
    cmd = "{cmd: '$(P) $(P.label)'}"
    plan = plan_of(_study(cmd, rest=f"{head}$(MERLIN_INFO)/$(OUTPUT_PATH)/$(date)], label: P.%%}}}}"))
    assert _script(plan, 0) == "/w/n_1/merlin_info/./out/$(date) P./w/n_1/merlin_info/./out/$(date)"
    assert Layout("/w/n_1", Geometry(plan, 0)).task_dir(0, 0) == "/w/n_1/s0/P.(MERLIN_INFO).out(date)"
    for token in ("P", "COLUMN", "MERLIN_SAMPLE_ID", "MERLIN_PATHS_ALL", "MERLIN_INFOS", "s0.workspace"):
        rest = f"{head}$({token})], label: P.%%}}}}\nmerlin: {{samples: {{file: s.csv, column_labels: [COLUMN]}}}}"
        with pytest.raises(SpecError, match=r"global\.parameters\.P: "):
            plan_of(_study(cmd, rest=rest))


def test_a_parameter_has_the_name_that_its_author_gives_it() -> None:
    table = "global.parameters: {P: {values: [1], label: P.%%, name: pressure of $(V)}, Q: {values: [2], label: Q}}"
    plan = plan_of(_study("{cmd: '$(P.name), $(Q.name)'}", rest=f"env: {{variables: {{V: x}}}}\n{table}"))
    assert _script(plan, 0) == "pressure of x, Q"


def test_columns_may_be_named_by_variables() -> None:
    rest = "env: {variables: {LABEL: S}}\nmerlin: {samples: {file: s.csv, column_labels: [$(LABEL), T]}}"
    plan = plan_of(_study("{cmd: 'echo $(S) $(MERLIN_SAMPLE_VECTOR) $(MERLIN_SAMPLE_NAMES)'}", rest=rest))
    assert plan.samples is not None
    assert plan.samples.columns == ("S", "T")
    assert plan.steps[1].cmd == "echo $(S) $(S) $(T) S T"


def test_the_partial_specification_has_variables_and_labels_expanded_and_nothing_else() -> None:
    """What upstream's does, so that a step can hand it to another ``merlin run``."""
    rest = "env: {variables: {A: 1, B: $(A)2}, labels: {L: $(B)3}}"
    plan = plan_of(_study("{cmd: 'echo $(L)'}", rest=rest))
    partial = load_yaml(plan.provenance["n.partial.yaml"], source="partial")
    assert partial["env"] == {"variables": {"A": 1, "B": 12}, "labels": {"L": 123}}
    assert partial["study"][0]["run"]["cmd"] == "echo $(L)"


def test_variables_that_unfold_without_end_are_refused_before_they_fill_the_memory() -> None:
    """Thirty doublings of ten characters would be ten gigabytes in the operator."""
    doubled = ", ".join(f"V{at}: $(V{at + 1})$(V{at + 1})" for at in range(30))
    with pytest.raises(SpecError, match="at most 1000000 characters"):
        plan_of(_study("{cmd: 'echo $(V0)'}", rest=f"env: {{variables: {{{doubled}, V30: aaaaaaaaaa}}}}"))
    chain = ", ".join(f"V{at}: $(V{at + 1})" for at in range(900))
    with pytest.raises(SpecError, match="through more than 100 other variables"):
        plan_of(_study("{cmd: 'echo $(V0)'}", rest=f"env: {{variables: {{{chain}, V900: a}}}}"))
    with pytest.raises(SpecError, match=r"study\[0\]\.run\.cmd: expected at most"):
        plan_of(_study("{cmd: '" + "$(V)" * 200 + "'}", rest="env: {variables: {V: " + "a" * 10_000 + "}}"))


def test_a_step_whose_name_holds_a_blank_has_a_workspace_and_a_command_of_the_shells_stays() -> None:
    text = "{cmd: 'ls $(s0 x.workspace) $(cat my.workspace)'}"
    plan = plan_of(_study("{cmd: 'true'}", text).replace("name: s0", "name: s0 x"))
    assert _script(plan, 1) == "ls /w/n_1/s0_x $(cat my.workspace)"
