"""What `merlin restart` and `merlin status` make of a workspace, without engine or agent."""

import contextlib
import errno
import fcntl
import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from merlin_cli import lock, restart, run, status, tally
from merlin_cli.__main__ import main
from merlin_cli.exits import CliError, Exit
from merlin_operator import resume
from merlin_study import nested, outcomelog, wire, workspace
from merlin_study.outcome import Outcome
from merlin_study.plan import Edge, EdgeKind, Lane, Plan, PlannedStep, SampleTable
from merlin_study.taskset import TaskSet

RETRIES = 2


def step(name: str, *edges: Edge, sampled: bool = False) -> PlannedStep:
    return PlannedStep(
        name=name,
        cmd="true",
        restart="",
        shell="/bin/bash",
        lanes=(Lane(queue="merlin", shape="n1", max_retries=RETRIES),),
        sampled=sampled,
        parameters=(),
        edges=edges,
        suffix="",
    )


def a_plan(output_path: str = "", name: str = "x_20260102-030405") -> Plan:
    table = SampleTable(generate="make", file="samples.csv", columns=("A",), level_max_dirs=25)
    steps = (
        step("merlin_info"),
        step("sim", Edge(parent=0, kind=EdgeKind.ALL), sampled=True),
        step("after", Edge(parent=1, kind=EdgeKind.TASK), sampled=True),
        step("sum", Edge(parent=2, kind=EdgeKind.ALL)),
    )
    return Plan(name="x", workspace=name, output_path=output_path, parameters=(), samples=table, steps=steps)


class Log:
    """Writes what an agent would."""

    def __init__(self, info: Path, agent: str) -> None:
        (info / "outcomes").mkdir(parents=True, exist_ok=True)
        self.file, self.agent, self.fence = info / "outcomes" / f"{agent}.jsonl", agent, 0
        self.generation = 0

    def chunk(self, at: int, tasks: TaskSet, attempt: int = 1) -> None:
        """Start a chunk."""
        self.fence += 1
        chunk = wire.Chunk(
            study="uid",
            plan="hash",
            epoch=1,
            fence=self.fence,
            step=at,
            tasks=tasks,
            attempt=attempt,
            fresh=self.generation > 0,
            generation=self.generation,
        )
        self._write(start=wire.Start(agent=self.agent, chunk=chunk))

    def report(
        self,
        at: int,
        *results: tuple[Outcome, TaskSet],
        attempt: int = 1,
        samples: int = 0,
        failures: tuple[wire.Failure, ...] = (),
    ) -> None:
        """Report the chunk that was started last."""
        self._write(
            report=wire.Report(
                agent=self.agent,
                fence=self.fence,
                serial=1,
                step=at,
                attempt=attempt,
                results=tuple(wire.Result(outcome=outcome, code=0, tasks=tasks) for outcome, tasks in results),
                samples=wire.SampleFacts(count=samples, columns=1, digest="d") if samples else None,
                failures=failures,
                final=True,
            )
        )

    def ran(self, at: int, tasks: TaskSet, outcome: Outcome = Outcome.SUCCEEDED, *, samples: int = 0) -> None:
        """Start a chunk and report that it all ended alike."""
        self.chunk(at, tasks)
        self.report(at, (outcome, tasks), samples=samples)

    def _write(self, *, start: wire.Start | None = None, report: wire.Report | None = None) -> None:
        with self.file.open("ab") as file:
            file.write(outcomelog.encode_line(outcomelog.Entry(study="uid", plan="hash", start=start, report=report)))


ONE = TaskSet(first=0, width=1)


def tasks(first: int, width: int) -> TaskSet:
    return TaskSet(first=first, width=width)


def counted(plan: Plan, directory: Path) -> list[tuple[int | None, int, int]]:
    """Total, succeeded and unsuccessful tasks of each step."""
    steps = tally.of_workspace(plan, directory).progress(str(directory)).steps
    return [(step.total, step.succeeded, step.unsuccessful) for step in steps]


def test_before_the_samples_are_measured_their_number_is_unknown(tmp_path: Path) -> None:
    assert counted(a_plan(), tmp_path) == [(1, 0, 0), (None, 0, 0), (None, 0, 0), (1, 0, 0)]


def test_counts_follow_from_the_logs_of_all_agents_in_any_order(tmp_path: Path) -> None:
    second, first = Log(tmp_path / "merlin_info", "a"), Log(tmp_path / "merlin_info", "b")
    first.ran(0, ONE, samples=100)
    first.ran(1, tasks(0, 60))
    second.fence = 2
    second.ran(1, tasks(60, 40))
    second.ran(2, tasks(0, 10))
    assert counted(a_plan(), tmp_path) == [(1, 1, 0), (100, 100, 0), (100, 10, 0), (1, 0, 0)]


def test_a_success_absorbs_a_failure_and_a_restarted_task_is_open_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "merlin_info", "a")
    log.ran(0, ONE, samples=10)
    log.ran(1, tasks(0, 4))
    log.ran(1, tasks(4, 6), Outcome.SOFT_FAILED)
    again = Log(tmp_path / "merlin_info", "b")  # a restart counts its fences from 1
    again.chunk(1, tasks(4, 6))
    assert counted(a_plan(), tmp_path)[1] == (10, 4, 0)
    again.report(1, (Outcome.SUCCEEDED, tasks(4, 5)), (Outcome.SOFT_FAILED, tasks(9, 1)))
    assert counted(a_plan(), tmp_path)[1] == (10, 9, 1)


def test_a_retry_is_no_outcome_until_the_budget_is_spent(tmp_path: Path) -> None:
    log = Log(tmp_path / "merlin_info", "a")
    log.ran(0, ONE, samples=1)
    for attempt in range(1, RETRIES + 2):
        assert counted(a_plan(), tmp_path)[1] == (1, 0, 0)
        log.chunk(1, ONE, attempt)
        log.report(1, (Outcome.RETRY, ONE), attempt=attempt)
    assert counted(a_plan(), tmp_path)[1] == (1, 0, 1)


def test_what_never_runs_because_of_a_hard_failure_is_cancelled(tmp_path: Path) -> None:
    log = Log(tmp_path / "merlin_info", "a")
    log.ran(0, ONE, samples=2)
    log.ran(1, ONE, Outcome.FAILED)
    log.ran(1, tasks(1, 1))
    log.ran(2, tasks(1, 1))
    assert counted(a_plan(), tmp_path) == [(1, 1, 0), (2, 1, 1), (2, 1, 1), (1, 0, 1)]


def test_status_shows_failures_and_warns_of_damaged_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = tmp_path / "merlin_info"
    log = Log(info, "a")
    (info / "plan.json").write_bytes(a_plan().to_json())
    log.ran(0, ONE, samples=2)
    failure = wire.Failure(
        task=1, outcome=Outcome.SOFT_FAILED, code=3, host="h", directory=str(tmp_path / "sim/01"), tail="no licence\n"
    )
    log.chunk(1, tasks(0, 2))
    log.report(1, (Outcome.SUCCEEDED, ONE), (Outcome.SOFT_FAILED, tasks(1, 1)), failures=(failure,))
    log.ran(2, tasks(0, 2))
    log.ran(3, ONE)
    with log.file.open("ab") as file:
        file.write(b"{half a line\n")
    assert main(["status", str(tmp_path)]) == 0
    said = capsys.readouterr()
    lines = [line.rstrip() for line in said.out.splitlines()]
    assert lines[0] == f"{tmp_path.name}: finished; 1 of 6 tasks did not succeed"
    assert lines[3:4] == ["sim              2          1            1"]
    assert lines[-4:] == [
        "sim, task 1: soft-failed, exit code 3",
        f"  in {tmp_path}/sim/01",
        "  | no licence",
        f"Outputs: {tmp_path}",
    ]
    assert said.err == "warning: 1 line of the outcome logs can't be read and were left out\n"


def test_a_million_tasks_are_counted_without_a_look_at_each(tmp_path: Path) -> None:
    """In chunks as the engine makes them now, of which each has a start and a report; one task in 125 failed."""
    log = Log(tmp_path / "merlin_info", "a")
    count, width = 1_000_000, 250
    log.ran(0, ONE, samples=count)
    for first in range(0, count, width):
        log.chunk(1, tasks(first, width))
        failed = TaskSet.of(range(first, first + width, 125))
        done = TaskSet.from_bits(first, tasks(first, width).bits & ~failed.bits)
        assert done is not None
        log.report(1, (Outcome.SUCCEEDED, done), (Outcome.SOFT_FAILED, failed))
    begin = time.process_time()  # 0.4 s alone; beside others a core is slower, and a look at each would take a minute
    assert counted(a_plan(), tmp_path)[1] == (count, 992_000, 8_000)
    assert time.process_time() - begin < 10.0


@pytest.mark.parametrize(
    ("output_path", "directory", "root"),
    [
        ("", "/data/me/x_20260102-030405", "/data/me"),
        ("./studies/", "/data/me/studies/x_20260102-030405", "/data/me"),
        (".", "/x_20260102-030405", "/"),
        ("/data/out", "/data/out/x_20260102-030405", "/data/out"),
    ],
)
def test_a_workspace_in_its_place_keeps_its_plan(output_path: str, directory: str, root: str) -> None:
    plan = a_plan(output_path)
    assert restart.placed(plan, Path(directory)) == (plan, Path(root))
    assert workspace.study_root(plan, root) == directory


@pytest.mark.parametrize(
    ("output_path", "directory"),
    [
        ("", "/data/me/renamed"),
        ("studies", "/data/me/x_20260102-030405"),
        ("../up", "/data/me/x_20260102-030405"),
        ("/data/out", "/archive/x_20260102-030405"),
    ],
)
def test_a_workspace_that_was_moved_or_renamed_is_found_where_it_is(output_path: str, directory: str) -> None:
    plan, root = restart.placed(a_plan(output_path), Path(directory))
    assert workspace.study_root(plan, str(root)) == directory
    assert plan.steps == a_plan().steps


def test_a_damaged_plan_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "merlin_info").mkdir()
    (tmp_path / "merlin_info" / "plan.json").write_text(json.dumps({"version": 99}))
    assert main(["status", str(tmp_path)]) == 4
    assert "is no plan that this version of merlin reads" in capsys.readouterr().err


def a_workspace(directory: Path) -> Path:
    """A workspace that ran once."""
    info = directory / "merlin_info"
    (info / "agents").mkdir(parents=True)
    (info / "plan.json").write_bytes(a_plan(name=directory.name).to_json())
    return directory


def test_only_one_command_works_in_a_workspace(tmp_path: Path) -> None:
    """The second is told whose it is; the lock goes with its holder, and leaves nothing."""
    directory = a_workspace(tmp_path / "ws")
    with lock.held(directory, resume=True):
        for resume in (True, False):
            with pytest.raises(CliError) as refused, lock.held(directory, resume=resume):
                pass
            assert refused.value.code == Exit.CANNOT_RUN
            assert f"another merlin run works in {directory} (pid {os.getpid()})" in str(refused.value)
    assert sorted(file.name for file in (directory / "merlin_info").iterdir()) == ["agents", "plan.json"]
    with lock.held(directory, resume=True):
        pass


def test_a_lock_of_a_command_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    directory = a_workspace(tmp_path / "ws")
    (directory / "merlin_info" / "run.lock").write_text("4711\n")
    with lock.held(directory, resume=True):
        assert (directory / "merlin_info" / "run.lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before, locked after the other command's end: that file is nobody's any more."""
    directory = a_workspace(tmp_path / "ws")
    file = directory / "merlin_info" / "run.lock"
    flocks: list[int] = []
    really = fcntl.flock

    def flock(handle: int, how: int) -> None:
        if not flocks:
            file.unlink()
        flocks.append(handle)
        really(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(directory, resume=True):
        assert file.exists()
        assert len(flocks) == 2


def test_a_directory_that_was_made_only_for_the_lock_goes_again(tmp_path: Path) -> None:
    """A run that never began must not stand in the way of the same command."""
    with lock.held(tmp_path / "ws", resume=False):
        assert (tmp_path / "ws/merlin_info/run.lock").exists()
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(a_workspace(tmp_path / "ws"), resume=True):
        pass


@pytest.mark.parametrize(("age", "works"), [(0.0, True), (8.0, True), (12.0, False)])
def test_a_restart_waits_for_an_agent_that_is_still_at_work(tmp_path: Path, age: float, works: bool) -> None:  # noqa: FBT001
    directory = a_workspace(tmp_path / "ws")
    present = directory / "merlin_info" / "agents" / "host-1-abc"
    present.touch()
    then = present.stat().st_mtime - age
    os.utime(present, (then, then))
    with pytest.raises(CliError) if works else contextlib.nullcontext() as refused, lock.held(directory, resume=True):
        pass
    if refused is not None:
        assert refused.value.code == Exit.CANNOT_RUN
        assert f"an agent is still at work in {directory} (host-1-abc" in str(refused.value)
    assert not (directory / "merlin_info" / "run.lock").exists()


def test_what_a_restart_ran_again_stands_whatever_had_come_of_it_before(tmp_path: Path) -> None:
    """Though the log that tells of the earlier success is the younger file."""
    later, earlier = Log(tmp_path / "merlin_info", "later"), Log(tmp_path / "merlin_info", "earlier")
    earlier.ran(0, ONE, samples=4)
    earlier.ran(1, tasks(0, 4))
    later.fence, later.generation = 10, 1
    later.ran(1, tasks(0, 2), Outcome.SOFT_FAILED)
    later.chunk(1, tasks(2, 1))
    earlier.ran(2, tasks(3, 1))
    os.utime(later.file, (1, 1))
    plan = a_plan()
    assert counted(plan, tmp_path)[1] == (4, 1, 2)
    past = resume.recorded("uid", plan, resume.read_outcomes(tmp_path / "merlin_info"))
    assert [task for task in range(4) if task in past.done[1]] == [3]
    assert past.noted().tokens == ("restart:earlier-1",)


def test_each_task_has_a_row_and_filters_choose_as_upstream_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    info = tmp_path / "merlin_info"
    log, other = Log(info, "a"), Log(info, "b")
    (info / "plan.json").write_bytes(a_plan().to_json())
    log.ran(0, ONE, samples=5)
    log.ran(1, tasks(0, 2))
    other.fence = 20
    other.ran(1, tasks(2, 1), Outcome.FAILED)
    other.chunk(1, tasks(3, 1))

    def rows(*options: str) -> list[list[str]]:
        assert main(["detailed-status", str(tmp_path), *options]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()][1:]

    assert rows("--steps", "sim") == [
        ["sim", "0", "sim/00", "FINISHED", "MERLIN_SUCCESS", "merlin", "a"],
        ["sim", "1", "sim/01", "FINISHED", "MERLIN_SUCCESS", "merlin", "a"],
        ["sim", "2", "sim/02", "FAILED", "MERLIN_SUCCESS", "merlin", "b"],
        ["sim", "3", "sim/03", "RUNNING", "merlin"],
        ["sim", "4", "sim/04", "INITIALIZED", "merlin"],
    ]
    assert [row[:2] for row in rows("--task-status", "FAILED", "CANCELLED")] == [["sim", "2"], ["after", "2"]]
    assert [row[:2] for row in rows("--workers", "b", "--task-status", "RUNNING")] == [["sim", "2"], ["sim", "3"]]
    assert len(rows("--task-queues", "merlin", "--max-tasks", "3")) == 3
    assert main(["detailed-status", str(tmp_path), "--steps", "nonsense"]) == Exit.USAGE
    assert "--steps nonsense: expected steps of the study: after, sim, sum" in capsys.readouterr().err
    assert main(["detailed-status", str(tmp_path), "--dump", str(tmp_path / "rows.csv")]) == Exit.OK
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 5 + 5 + 1


def test_a_specification_means_its_own_runs_and_needs_no_agent_to_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the step's agent can't be asked, on another host for instance; a name that goes on is another study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(nested.SOCKET, str(tmp_path / "none"))
    spec = "description: {name: NAME, description: d}\nstudy: [{name: s, description: d, run: {cmd: x}}]\n"
    for name in ("mine", "mine_too"):
        (tmp_path / f"{name}.yaml").write_text(spec.replace("NAME", name))
        assert run.run_locally(run.Request(f"{name}.yaml", dry=True), Console(file=io.StringIO())) == 0
    [own] = tmp_path.glob("mine_2*")
    assert status._runs(status.Question("mine.yaml")) == [own]
