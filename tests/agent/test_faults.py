"""Whatever dies, nothing is lost and nothing that was recorded runs again; real signals on real processes."""

import os
import signal
from pathlib import Path

from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.outcomelog import Entry, decode_lines, encode_line
from merlin_study.plan import SampleTable
from merlin_study.taskset import TaskSet
from tests.agent.standin import Standin, a_parameter, a_plan, a_sampled_plan, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2, lost_after=2.0, presence=0.3, presence_stale=2.0)


def gated(directory: Path, free: str = "") -> str:
    """A script that notes that it runs, and ends once the gate is open; at once where ``free`` is true."""
    wait = f"while [ ! -e {directory}/gate ]; do sleep 0.02; done"
    return f"echo run >> runs\necho $$ > pid\n{f'{free} || ' if free else ''}{wait}"


def open_gate(directory: Path) -> None:
    """Let the tasks end."""
    (directory / "gate").touch()


def pids(operator: Standin) -> dict[str, int]:
    """The tasks of step ``sim`` that have begun, by their directory."""
    found = {}
    for path in operator.root.glob("sim/**/pid"):
        text = path.read_text().strip()
        if text:
            found[str(path.parent.relative_to(operator.root / "sim"))] = int(text)
    return found


def runs(operator: Standin) -> dict[str, int]:
    """How often each task of step ``sim`` has run."""
    return {
        str(path.parent.relative_to(operator.root / "sim")): len(path.read_text().splitlines())
        for path in operator.root.glob("sim/**/runs")
    }


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_agents_tasks_die_and_its_finished_ones_are_adopted(broker: Broker, tmp_path: Path) -> None:
    """The reaper ends the tasks; the next holder runs only what its predecessor had not recorded."""
    plan = a_sampled_plan(tmp_path, 6, gated(tmp_path, free="[ $(MERLIN_SAMPLE_ID) -lt 2 ]"))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        first = operator.agent()
        name = operator.id_of(first)
        lost = operator.issue(range(6), step=1, samples=6)
        eventually(lambda: len(pids(operator)) == 4)
        eventually(lambda: operator.counts(operator.reports(lost.fence)) == {("succeeded", 0): 2})
        presence = operator.root / "merlin_info" / "agents" / name
        assert presence.exists()
        first.kill()
        eventually(lambda: not any(alive(pid) for pid in pids(operator).values()))
        eventually(lambda: not presence.exists())
        open_gate(tmp_path)
        operator.agent()
        again = operator.issue(range(6), step=1, samples=6, lost=(wire.LostHolder(fence=lost.fence, agent=name),))
        assert operator.counts(operator.final(again)) == {("succeeded", 0): 6}
        assert runs(operator) == {"00": 1, "01": 1, "02": 2, "03": 2, "04": 1, "05": 1}


def test_a_new_holder_waits_for_a_lost_one_that_still_lives(broker: Broker, tmp_path: Path) -> None:
    """While the old holder's presence is young, its rest is not run; other chunks have the slots meanwhile."""
    plan = a_sampled_plan(tmp_path, 8, gated(tmp_path, free="true"))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=wire.Timing(heartbeat=0.2, presence_stale=3600))
        info = operator.root / "merlin_info"
        ghost = info / "agents" / "ghost"
        ghost.parent.mkdir(parents=True)
        (info / "outcomes").mkdir()
        ghost.touch()
        waiting = operator.issue(range(4), step=1, samples=8, lost=(wire.LostHolder(fence=77, agent="ghost"),))
        operator.agent(slots=1)
        eventually(lambda: operator.starts(waiting.fence))
        other = operator.issue(range(4, 8), step=1, samples=8)
        assert operator.counts(operator.final(other)) == {("succeeded", 0): 4}
        report = wire.Report(
            agent="ghost",
            fence=77,
            serial=1,
            step=1,
            attempt=1,
            results=(wire.Result(outcome=Outcome.SOFT_FAILED, code=3, tasks=TaskSet(first=0, width=3)),),
        )
        line = encode_line(Entry(study=operator.study, plan=plan.hash, report=report))
        with (info / "outcomes" / "ghost.jsonl").open("ab") as file:
            file.write(line + line[:50])  # it died while it wrote
        eventually(lambda: operator.counts(operator.reports(waiting.fence)) == {("soft-failed", 3): 3})
        assert not set(runs(operator)) & {"00", "01", "02", "03"}
        old = ghost.stat().st_mtime - 7200
        os.utime(ghost, (old, old))
        assert operator.counts(operator.final(waiting)) == {("soft-failed", 3): 3, ("succeeded", 0): 1}
        assert set(runs(operator)) == {"03", "04", "05", "06", "07"}


def test_samples_that_a_lost_holder_made_are_measured_again(broker: Broker, tmp_path: Path) -> None:
    """Its success says not how many there are, so it is not taken over; the file is not made twice."""
    table = SampleTable(
        generate="echo run >> $(MERLIN_INFO)/made; seq 1 7 > $(MERLIN_INFO)/s.csv",
        file="$(MERLIN_INFO)/s.csv",
        columns=("A",),
        level_max_dirs=25,
    )
    plan = a_plan(a_step("sim", ":", sampled=True), samples=table)
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        first = operator.agent()
        name = operator.id_of(first)
        lost = operator.issue(range(1))
        operator.final(lost)
        first.kill()
        operator.agent()
        again = operator.issue(range(1), lost=(wire.LostHolder(fence=lost.fence, agent=name),))
        reports = operator.final(again)
        assert operator.counts(reports) == {("succeeded", 0): 1}
        assert [report.samples.count for report in reports if report.samples] == [7]
        assert (operator.root / "merlin_info" / "made").read_text() == "run\n"


def test_a_second_study_in_a_directory_runs_nothing_and_says_so(broker: Broker, tmp_path: Path) -> None:
    """The first one's markers are there; they say nothing of the second."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "echo run >> runs")), timing=QUICK)
        name = operator.id_of(operator.agent())
        operator.final(operator.issue(range(1)))
        operator.study = "another"
        operator.store_plan(a_plan(a_step("sim", "echo other >> runs")))
        (report,) = operator.final(operator.issue(range(1)))
        told = f"{operator.root}: belongs to study 3f0c8a52; give this one another runId or name"
        assert (report.refused, report.results) == (told, ())
        eventually(lambda: told in operator.heartbeats[name][-1].problems)
        assert (operator.root / "sim" / "runs").read_text() == "run\n"


def test_a_killed_broker_loses_nothing(broker: Broker, tmp_path: Path) -> None:
    """Tasks end while the broker is down; their outcomes are in the log, and reported once it is back."""
    plan = a_sampled_plan(tmp_path, 12, gated(tmp_path, free="[ $(MERLIN_SAMPLE_ID) -lt 4 ]"))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        name = operator.id_of(operator.agent())
        chunk = operator.issue(range(12), step=1, samples=12)
        eventually(lambda: len(pids(operator)) == 6)
        broker.kill()
        open_gate(tmp_path)
        log = operator.root / "merlin_info" / "outcomes" / f"{name}.jsonl"
        eventually(lambda: any(e.report and e.report.final for e in decode_lines(log.read_bytes()).entries))
        assert set(runs(operator).values()) == {1}
        broker.restart()
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 12}
        assert len(operator.starts(chunk.fence)) == 1
        second = operator.issue(range(12), step=1, samples=12, attempt=2)
        assert operator.counts(operator.final(second)) == {("succeeded", 0): 12}
        assert set(runs(operator).values()) == {1}, "the marker keeps a finished task from running again"


def test_a_broker_that_stands_still_is_survived(broker: Broker, tmp_path: Path) -> None:
    """A pause longer than a request's timeout leaves unknown answers; all of them are resolved afterwards."""
    plan = a_sampled_plan(tmp_path, 40, "echo run >> runs")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK, ack_wait=2.0)
        operator.agent()
        chunks = [operator.issue(range(at, at + 4), step=1, samples=40) for at in range(0, 40, 4)]
        eventually(lambda: runs(operator))
        broker.pause()
        signal.sigtimedwait([], 6.5)
        broker.resume()
        for chunk in chunks:
            assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 4}
            assert len(operator.starts(chunk.fence)) == 1
        assert set(runs(operator).values()) == {1}
        eventually(lambda: operator.waiting() == 0)


def test_sigterm_drains(broker: Broker, tmp_path: Path) -> None:
    """What runs ends, what has not started is handed back, and the agent says good-bye."""
    plan = a_sampled_plan(tmp_path, 6, gated(tmp_path))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        agent = operator.agent()
        name = operator.id_of(agent)
        chunk = operator.issue(range(6), step=1, samples=6)
        eventually(lambda: len(pids(operator)) == 2)
        agent.signal(signal.SIGTERM)
        eventually(lambda: operator.heartbeats[name][-1].leaving)
        late = operator.issue(range(6), step=1, samples=6)
        open_gate(tmp_path)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 2}
        assert agent.wait(180) == 0
        eventually(lambda: operator.heartbeats[name][-1].left)
        assert operator.heartbeats[name][-1].holds == ()
        assert not operator.starts(late.fence)
        assert not list((operator.root / "merlin_info" / "agents").iterdir())


def test_a_drain_ends_what_outlasts_its_grace_and_hands_it_back(broker: Broker, tmp_path: Path) -> None:
    """No result is recorded for a task that the agent itself ended."""
    plan = a_plan(a_step("sim", f"trap '' TERM; {gated(tmp_path)}"))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        agent = operator.agent()
        name = operator.id_of(agent)
        chunk = operator.issue(range(1))
        eventually(lambda: pids(operator))
        agent.signal(signal.SIGTERM)
        eventually(lambda: operator.heartbeats[name][-1].leaving)
        agent.signal(signal.SIGTERM)
        reports = operator.final(chunk)
        assert [report.results for report in reports] == [()]
        assert agent.wait(180) == 0
        assert not any(alive(pid) for pid in pids(operator).values())


def test_the_end_of_the_lifeline_ends_the_agent(broker: Broker, tmp_path: Path) -> None:
    """Standard input is /dev/null here, so it ends at once."""
    with Standin(broker, tmp_path) as operator:
        assert operator.agent("--lifeline").wait(180) == 0


def test_cancelling_ends_what_runs_and_drops_what_waits(broker: Broker, tmp_path: Path) -> None:
    """Whole process groups end; the rest of the study is acknowledged and never run."""
    plan = a_plan(
        a_step("sim", f"sleep 600 &\necho $! > child\n{gated(tmp_path)}", parameters=("X",)),
        parameters=(a_parameter("X", "0", "1", "2", "3"),),
    )
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        operator.agent()
        chunk, other = operator.issue(range(3)), operator.issue([3])
        eventually(lambda: len(pids(operator)) == 2)
        children = [int(path.read_text()) for path in operator.root.glob("sim/*/child")]
        operator.cancel()
        assert operator.counts(operator.final(chunk)) == {("cancelled", -15): 2}
        eventually(lambda: operator.waiting() == 0)
        eventually(lambda: not any(map(alive, children)))
        assert not operator.starts(other.fence)
        assert len(runs(operator)) == 2


def test_a_workspace_that_cannot_be_written_is_nobodys_failure(broker: Broker, tmp_path: Path) -> None:
    """The tasks are handed back without results, and the heartbeat says why."""
    plan = a_plan(a_step("sim", ":"), a_step("fine", ":"))
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        agent = operator.agent()
        name = operator.id_of(agent)
        assert operator.final(operator.issue(range(1), step=1))
        (operator.root / "sim").write_text("a file where a directory should be")
        chunk = operator.issue(range(1))
        assert operator.counts(operator.final(chunk)) == {}
        eventually(lambda: any("can't be written" in text for text in operator.heartbeats[name][-1].problems))
        (operator.root / "sim").unlink()
        again = operator.issue(range(1))
        assert operator.counts(operator.final(again)) == {("succeeded", 0): 1}


def test_a_word_that_was_missed_is_heard_after_the_connection_is_back(broker: Broker, tmp_path: Path) -> None:
    """Cancelled while the agent was cut off: the running task ends all the same."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", gated(tmp_path))), timing=QUICK)
        agent = operator.agent()
        operator.id_of(agent)
        chunk = operator.issue(range(1))
        eventually(lambda: pids(operator))
        agent.pause()
        broker.kill()
        broker.restart()
        eventually(lambda: operator.client.is_connected)
        operator.cancel()
        agent.resume()
        assert operator.counts(operator.final(chunk)) == {("cancelled", -15): 1}


def test_an_agent_waits_for_a_broker_and_says_what_is_wrong(broker: Broker, tmp_path: Path) -> None:
    """Unreachable, then the wrong credentials, then the right ones: it was never restarted."""
    with Standin(broker, tmp_path) as operator:
        operator.open_streams()
        wrong = tmp_path / "wrong.json"
        wrong.write_text('{"token": "not this one"}')
        wrong.chmod(0o600)
        stranger = operator.agent("--credentials", str(wrong))
        eventually(lambda: "check that the credentials file is the one for this server" in stranger.tail())
        assert "not this one" not in stranger.tail()
        broker.kill()
        agent = operator.agent()
        eventually(lambda: f"expected a NATS server at {broker.url}, found: " in agent.tail())
        eventually(lambda: "check --server and that this host may reach it" in agent.tail())
        broker.restart()
        operator.id_of(agent)
        assert stranger.alive
