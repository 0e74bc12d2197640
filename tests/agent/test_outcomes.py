"""What a script does decides its outcome; what lies in its directory is as upstream's."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from merlin_study import wire
from merlin_study.plan import Plan, SampleTable
from tests.agent.standin import Standin, a_parameter, a_plan, a_route, a_sampled_plan, a_step
from tests.ground import Broker, eventually

CODES = {
    "0": ("succeeded", 0),
    "1": ("soft-failed", 1),
    "100": ("restart", 100),
    "101": ("soft-failed", 101),
    "102": ("failed", 102),
    "104": ("retry", 104),
    "105": ("cancelled", 105),
    "106": ("soft-failed", 106),
    "kill": ("soft-failed", -9),
}


def test_exit_codes_become_outcomes(broker: Broker, tmp_path: Path) -> None:
    """Each code is told with its outcome; what did not succeed leaves no marker and is told in full."""
    script = "echo 'why \\377 not' | tr a b >&2; printf '\\377' >&2\n[ $(X) = kill ] && kill -9 $$\nexit $(X)"
    plan = a_plan(a_step("sim", script, parameters=("X",)), parameters=(a_parameter("X", *CODES),))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        reports = operator.final(operator.issue(range(len(CODES))))
        assert operator.counts(reports) == Counter(CODES.values())
        told = {failure.task: failure for report in reports for failure in report.failures}
        assert {task: (failure.outcome.value, failure.code) for task, failure in told.items()} == {
            task: ends for task, ends in enumerate(CODES.values()) if ends != ("succeeded", 0)
        }
        assert told[1].directory == str(operator.root / "sim" / "X.1")
        assert told[1].tail.startswith("why ")
        assert told[1].tail.endswith("\ufffd")
        assert [path.parent.name for path in operator.root.rglob("MERLIN_FINISHED")] == ["X.0"]


def test_a_task_that_outlasts_its_walltime_is_ended_with_all_its_children(broker: Broker, tmp_path: Path) -> None:
    """TERM first, KILL after the grace; the outcome is timed-out whatever the code."""
    script = "sleep 600 & echo $! > child; [ $(X) = deaf ] && trap '' TERM; wait; while true; do sleep 1; done"
    plan = a_plan(a_step("sim", script, parameters=("X",), walltime=1), parameters=(a_parameter("X", "meek", "deaf"),))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        reports = operator.final(operator.issue(range(2)))
        assert operator.counts(reports) == {("timed-out", -15): 1, ("timed-out", -9): 1}
        for path in operator.root.glob("sim/*/child"):
            child = Path("/proc") / path.read_text().strip()
            eventually(lambda child=child: not child.exists())  # type: ignore[misc]


def test_each_combination_has_its_own_walltime(broker: Broker, tmp_path: Path) -> None:
    """The step is routed by the longest; each task is ended by the limit of its own combination."""
    step = a_step("sim", "sleep 3", parameters=("X",), walltime=60)
    plan = a_plan(step.model_copy(update={"varies": {"walltime": "$(X)"}}), parameters=(a_parameter("X", "1", "60"),))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        reports = operator.final(operator.issue(range(2)))
        assert operator.counts(reports) == {("timed-out", -15): 1, ("succeeded", 0): 1}
        assert [path.parent.name for path in operator.root.rglob("MERLIN_FINISHED")] == ["X.60"]


def test_what_a_step_leaves_running_is_not_waited_for(broker: Broker, tmp_path: Path) -> None:
    """The leader's end is the task's; a daemon lives on, as upstream."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "sleep 600 > /dev/null 2>&1 &\necho $! > child")))
        operator.agent()
        operator.final(operator.issue(range(1)))
        child = int((operator.root / "sim" / "child").read_text())
        eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")  # as soon as it is executed
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("shell", "cmd", "ends", "says"),
    [
        ("/usr/bin/env python3", "print('hi')", ("succeeded", 0), ""),
        ("/bin/sh -e", "false; exit 0", ("soft-failed", 1), ""),
        ("/no/such/shell", ":", ("soft-failed", 127), "expected the interpreter of its first line, found no such file"),
        ("/etc", ":", ("soft-failed", 126), "can't be executed with '/etc'"),
    ],
)
def test_the_first_line_decides_what_runs_the_script(
    broker: Broker, tmp_path: Path, shell: str, cmd: str, ends: tuple[str, int], says: str
) -> None:
    """Any interpreter works; one that is missing is the step's failure with the shell's codes."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", cmd, shell=shell)))
        operator.agent()
        reports = operator.final(operator.issue(range(1)))
        assert operator.counts(reports) == {ends: 1}
        assert says in (operator.root / "sim" / "sim.err").read_text()


def test_a_restart_runs_the_restart_script_where_there_is_one(broker: Broker, tmp_path: Path) -> None:
    """Both scripts write to the same files; without a restart script the usual one runs again."""
    plan = a_plan(
        a_step("sim", "echo first; exit 100", restart="echo again", suffix=".slurm"), a_step("other", "echo $(none)")
    )
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("restart", 100): 1}
        again = operator.issue(range(1), restart=True, attempt=2)
        assert operator.counts(operator.final(again)) == {("succeeded", 0): 1}
        directory = operator.root / "sim"
        assert (directory / "sim.slurm.out").read_text() == "first\n"
        assert (directory / "sim.restart.slurm.out").read_text() == "again\n"
        assert (directory / "sim.restart.slurm.sh").read_text() == "#!/bin/bash\n\necho again\n"
        assert operator.counts(operator.final(operator.issue(range(1), step=1, restart=True))) == {("succeeded", 0): 1}


def test_tasks_inherit_the_agents_environment_without_its_own_variables(broker: Broker, tmp_path: Path) -> None:
    """What the batch script set up is there; how the agent reaches the broker is not."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "env; yes | head -1 > /dev/null; echo ${PIPESTATUS[0]} is SIGPIPE")))
        operator.agent(env={"LOADED": "modules", "MERLIN_AGENT_QUEUES": "merlin"})
        operator.final(operator.issue(range(1)))
        text = (operator.root / "sim" / "sim.out").read_text()
        assert "LOADED=modules\n" in text
        assert "MERLIN_AGENT" not in text
        assert "141 is SIGPIPE\n" in text


def test_an_agent_may_come_before_the_operator(broker: Broker, tmp_path: Path) -> None:
    """It waits for the streams, the offer and the consumers; an urgent chunk comes before bulk ones."""
    with Standin(broker, tmp_path) as operator:
        operator.id_of(operator.agent("--idle-exit", "60"))
        operator.up(a_plan(a_step("sim", ":")))
        chunk = operator.issue(range(1), a_route(band="urgent"))
        assert operator.counts(operator.final(chunk, timeout=180)) == {("succeeded", 0): 1}


def test_an_idle_agent_leaves_when_told_so(broker: Broker, tmp_path: Path) -> None:
    """With ``--idle-exit`` it drains by itself."""
    with Standin(broker, tmp_path) as operator:
        assert operator.agent("--idle-exit", "0.3").wait(180) == 0


def test_samples_fill_in_the_script_and_lie_in_levels(broker: Broker, tmp_path: Path) -> None:
    """30 samples at most 25 a directory: two levels, with each sample's own values."""
    plan = a_sampled_plan(tmp_path, 30, "echo $(A) $(b) $(MERLIN_SAMPLE_ID) $(MERLIN_SAMPLE_PATH)")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        (measured,) = operator.final(operator.issue(range(1)))
        assert measured.samples is not None
        assert (measured.samples.count, measured.samples.columns) == (30, 2)
        operator.final(operator.issue(range(30), step=1, samples=30))
        assert (operator.root / "sim/01/04/sim.out").read_text() == "29 841 29 01/04\n"
        assert len(list(operator.root.rglob("MERLIN_FINISHED"))) == 30


def generating(cmd: str, columns: tuple[str, ...] = ("A", "B"), file: str = "$(MERLIN_INFO)/made.csv") -> Plan:
    """A plan that makes its samples."""
    return a_plan(samples=SampleTable(generate=cmd, file=file, columns=columns, level_max_dirs=25))


def test_samples_are_generated_once(broker: Broker, tmp_path: Path) -> None:
    """The command runs in the workspace, with script and output in merlin_info; a file that is there stays."""
    with Standin(broker, tmp_path) as operator:
        operator.up(generating("echo making; pwd > where; echo 1,2 > $(MERLIN_INFO)/made.csv"))
        operator.agent()
        for _ in range(2):
            (report,) = operator.final(operator.issue(range(1)))
            assert report.samples is not None
            assert (report.samples.count, report.samples.columns) == (1, 2)
        assert (operator.root / "where").read_text() == f"{operator.root}\n"
        info = operator.root / "merlin_info"
        assert (info / "cmd.sh").read_text().startswith("#!/bin/sh\n\necho making")
        assert (info / "cmd.out").read_text() == "making\n"
        assert (info / "cmd.err").read_text() == ""


def test_half_a_table_is_not_taken_for_a_whole_one(broker: Broker, tmp_path: Path) -> None:
    """A command that fails, or an agent that dies while it runs, leaves a file that nothing uses; the next turn makes it anew."""
    with Standin(broker, tmp_path) as operator:
        operator.up(generating("echo 1,2 >> $(MERLIN_INFO)/made.csv; [ -e $(MERLIN_INFO)/go ]"))
        operator.agent()
        (failed,) = operator.final(operator.issue(range(1)))
        info = operator.root / "merlin_info"
        assert failed.samples is None
        assert (info / "made.csv.incomplete").exists()
        assert not (info / "made.csv").exists()
        (info / "go").touch()
        (info / "made.csv").write_text("half of\n")
        (info / "samples.begun").touch()
        (report,) = operator.final(operator.issue(range(1)))
        assert report.samples is not None
        assert (info / "made.csv").read_text() == "1,2\n"
        assert not (info / "samples.begun").exists()


@pytest.mark.parametrize(
    ("cmd", "says"),
    [
        ("true", "expected the sample file, found none"),
        (": > $(MERLIN_INFO)/made.csv", "expected at least one sample, found none"),
        ("printf '1,2\\n3\\n' > $(MERLIN_INFO)/made.csv", "made.csv:2: expected 2 columns as in line 1, found 1"),
        (
            "echo 1 > $(MERLIN_INFO)/made.csv",
            "expected 2 columns, one a label of merlin.samples.column_labels, found 1",
        ),
    ],
)
def test_samples_that_cannot_be_used_fail_the_first_step(broker: Broker, tmp_path: Path, cmd: str, says: str) -> None:
    """The message is in the failure and in cmd.err."""
    with Standin(broker, tmp_path) as operator:
        operator.up(generating(cmd))
        operator.agent()
        (report,) = operator.final(operator.issue(range(1)))
        (failure,) = report.failures
        assert operator.counts([report]) == {("failed", 1): 1}
        assert says in failure.tail
        assert says in (operator.root / "merlin_info" / "cmd.err").read_text()


def test_a_failing_generator_keeps_its_own_code(broker: Broker, tmp_path: Path) -> None:
    """Its standard error is told."""
    with Standin(broker, tmp_path) as operator:
        operator.up(generating("echo no numpy >&2; exit 3"))
        operator.agent()
        (report,) = operator.final(operator.issue(range(1)))
        assert operator.counts([report]) == {("soft-failed", 3): 1}
        assert isinstance(report.failures[0], wire.Failure)
        assert report.failures[0].tail == "no numpy\n"


def test_samples_that_changed_after_they_were_measured_are_refused(broker: Broker, tmp_path: Path) -> None:
    """Tasks would run with other values than the study knows of."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_sampled_plan(tmp_path, 3, ":"))
        operator.agent()
        (report,) = operator.final(operator.issue(range(5), step=1, samples=5))
        assert "expected 5 samples, found 3" in report.refused
