"""A real agent runs chunks from a real broker."""

import io
import stat
from pathlib import Path

import pytest

from merlin_cli import logs
from merlin_study import archive
from merlin_study.geometry import Geometry
from merlin_study.workspace import Layout
from tests.agent.standin import Standin, a_parameter, a_plan, a_sampled_plan, a_step
from tests.ground import Broker, eventually


def test_all_tasks_run_once_in_merlins_layout(broker: Broker, tmp_path: Path) -> None:
    """Every task of a chunk leaves its directory with script, output and marker, and is told exactly once."""
    plan = a_plan(
        a_step("sim", "echo $(X) in $(WORKSPACE)\necho again >> count\necho oops >&2", parameters=("X",)),
        parameters=(a_parameter("X", "a", "b", "c"),),
    )
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        chunk = operator.issue(range(3))
        operator.agent()
        reports = operator.final(chunk)
        assert operator.counts(reports) == {("succeeded", 0): 3}
        assert [report.serial for report in reports] == list(range(1, len(reports) + 1))
        assert len(operator.starts(chunk.fence)) == 1
        eventually(lambda: operator.waiting() == 0)
        for value in "abc":
            directory = operator.root / "sim" / f"X.{value}"
            assert sorted(path.name for path in directory.iterdir()) == [
                "MERLIN_FINISHED",
                "count",
                f"sim_X.{value}.err",
                f"sim_X.{value}.out",
                f"sim_X.{value}.sh",
            ]
            script = directory / f"sim_X.{value}.sh"
            assert script.read_text().startswith(f"#!/bin/bash\n\necho {value} in {directory}\n")
            assert stat.S_IMODE(script.stat().st_mode) & 0o700 == 0o700
            assert (directory / f"sim_X.{value}.out").read_text() == f"{value} in {directory}\n"
            assert (directory / f"sim_X.{value}.err").read_text() == "oops\n"
            assert (directory / "count").read_text() == "again\n"
            assert (directory / "MERLIN_FINISHED").read_bytes() == b""
        info = operator.root / "merlin_info"
        assert (info / "study.orig.yaml").read_text() == "description: {}\n"
        assert (info / "plan.json").read_bytes() == plan.to_json()


OBSTACLES = """\
if [ "$(X)" = a ] && [ ! -e before ]; then
  touch before
  rm -f sim_X.*
  mkdir sim_X.a.sh sim_X.a.out
  echo mine > sim_X.a.out/result
  mkfifo sim_X.a.err
  exit 1
fi
echo ran"""


@pytest.mark.parametrize("outputs", ["full", "lean"])
def test_what_a_task_put_in_the_place_of_its_files_is_moved_aside_for_its_next_attempt(
    broker: Broker, tmp_path: Path, outputs: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A directory called as its output, say; neither its retry nor its neighbours are held up, and nothing is lost."""
    plan = a_plan(
        a_step("sim", OBSTACLES, parameters=("X",)), parameters=(a_parameter("X", "a", "b"),), outputs=outputs
    )
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        assert operator.counts(operator.final(operator.issue(range(2)))) == {("succeeded", 0): 1, ("soft-failed", 1): 1}
        logs.show(logs.Wanted(str(operator.root)))
        assert "ran\n" in capfd.readouterr().out
        assert operator.counts(operator.final(operator.issue(range(1), attempt=2))) == {("succeeded", 0): 1}
        directory = operator.root / "sim" / "X.a"
        assert (directory / "sim_X.a.out.1" / "result").read_text() == "mine\n"
        assert (directory / "sim_X.a.err.1").is_fifo() or outputs == "lean"
        assert (directory / "sim_X.a.sh.1").is_dir()
        assert (directory / "sim_X.a.out").read_text() == "ran\n"


def test_what_a_process_says_that_a_task_left_behind_is_no_other_tasks_output(broker: Broker, tmp_path: Path) -> None:
    """Under lean outputs a slot lends one directory to many tasks; a program that the script calls leaves it running unseen."""
    (tmp_path / "program").write_text(f"(while [ ! -e {tmp_path}/gate ]; do sleep 0.02; done; echo late; touch told) &")
    cmd = f"[ $(A) = 0 ] || {{ touch {tmp_path}/gate; sleep 1; }}; echo $(A); [ $(A) = 1 ] || sh {tmp_path}/program"
    plan = a_sampled_plan(tmp_path, 2, cmd).model_copy(update={"outputs": "lean"})
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent(slots=1)
        chunk = operator.issue(range(2), step=1, samples=2)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 2}
        tasks = Layout(str(operator.root), Geometry(plan, 2)).task_logs(1)
        said = {}
        for each in archive.executions(tasks, range(2)):
            into = io.BytesIO()
            each.copy("out", into)
            said[each.ran.task] = into.getvalue()
        assert said == {0: b"0\n", 1: b"1\n"}
