"""What an agent must not run, it does not run, and says so."""

import json
import time
from pathlib import Path

from merlin_study import wire
from merlin_study.seal import Keyring
from tests.agent.standin import STUDY, Standin, a_plan, a_route, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2, presence=0.3, presence_stale=2.0)


def test_what_does_not_open_is_refused_counted_and_terminated(broker: Broker, tmp_path: Path) -> None:
    """Forged, moved, altered and foreign chunks never run; an honest one after them does."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "echo run >> runs")), timing=QUICK)
        name = operator.id_of(operator.agent())
        space, route = operator.space, a_route()
        forged = operator.chunk(range(1))
        subject = space.chunk(route, STUDY, forged.fence)
        operator.put_raw(subject, Keyring.generate().seal(forged.encode(), scope=STUDY, context=subject))
        moved = operator.chunk(range(1))
        operator.put(space.chunk(route, STUDY, moved.fence), moved.encode(), context="elsewhere")
        liar = operator.chunk(range(1))
        operator.put(space.chunk(route, STUDY, liar.fence + 100), liar.encode())
        operator.put_raw(space.chunk(route, STUDY, 500), b"no envelope")
        operator.put(space.chunk(route, STUDY, 501), b'{"study": 1}')
        eventually(lambda: operator.heartbeats[name][-1].refused == 5)
        assert all("refused" in text for text in operator.heartbeats[name][-1].problems)
        eventually(lambda: operator.waiting() == 0)
        assert not operator.root.exists()
        honest = operator.issue(range(1))
        assert operator.counts(operator.final(honest)) == {("succeeded", 0): 1}
        assert (operator.root / "sim" / "runs").read_text() == "run\n"


def test_what_another_agent_signed_is_no_word_of_the_operator_s(broker: Broker, tmp_path: Path) -> None:
    """A chunk, a plan and a cancel that an agent's key signed: refused and counted; the operator's run, and are believed."""
    operator_keys, agent_keys = Keyring.generate_pair()
    with Standin(broker, tmp_path, keys=operator_keys, agent_keys=agent_keys) as operator:
        plan = a_plan(a_step("sim", "echo run >> runs"))
        operator.up(plan, timing=QUICK)
        name = operator.id_of(operator.agent())
        forged = operator.chunk(range(1))
        subject = operator.space.chunk(a_route(), STUDY, forged.fence)
        operator.put_raw(subject, agent_keys.seal(forged.encode(), scope=STUDY, context=subject))
        eventually(lambda: operator.heartbeats[name][-1].refused == 1)
        assert "not trusted as operator" in operator.heartbeats[name][-1].problems[-1]
        eventually(lambda: operator.waiting() == 0)
        assert not operator.root.exists()
        control = operator.space.control(STUDY)
        word = wire.Control(study=STUDY, cancelled=True).encode()
        operator.put_raw(control, agent_keys.seal(word, scope=STUDY, context=control))
        honest = operator.issue(range(1))
        assert operator.counts(operator.final(honest)) == {("succeeded", 0): 1}
        assert (operator.root / "sim" / "runs").read_text() == "run\n"


def test_a_task_of_more_than_a_day_is_not_even_claimed_where_less_is_left(broker: Broker, tmp_path: Path) -> None:
    """Its consumer says only that it is longer than a day."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 100_000)}
    with Standin(broker, tmp_path) as operator:
        plan = a_plan(a_step("long", "echo run", walltime=200_000), a_step("fits", "echo run", walltime=90_000))
        operator.up(plan, timing=QUICK)
        name = operator.id_of(operator.agent(env=job))
        long = operator.issue(range(1))
        eventually(
            lambda: any("declares a walltime of 200000 s" in each for each in operator.heartbeats[name][-1].problems)
        )
        assert not operator.starts(long.fence)
        fits = operator.issue(range(1), step=1)
        assert operator.counts(operator.final(fits)) == {("succeeded", 0): 1}
        assert not (operator.root / "long").exists()


def test_a_fence_is_claimed_once_however_often_it_comes(broker: Broker, tmp_path: Path) -> None:
    """Copies of a chunk reach two agents; one claims it, the other drops its copy."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "echo run >> runs; sleep 0.5")), timing=QUICK)
        for agent in (operator.agent(), operator.agent()):
            operator.id_of(agent)
        chunk = operator.chunk(range(1))
        for route in (a_route(), a_route(band="urgent"), a_route(), a_route()):
            operator.publish(chunk, route)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 1}
        eventually(lambda: operator.waiting() == 0)
        assert len(operator.starts(chunk.fence)) == 1
        assert (operator.root / "sim" / "runs").read_text() == "run\n"
        assert isinstance(operator.log(chunk.fence)[0], wire.Start)


def test_a_study_of_another_site_is_handed_back(broker: Broker, tmp_path: Path) -> None:
    """The first claim binds the study; an agent elsewhere claims only to say that it can't."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")), timing=QUICK)
        first = operator.agent()
        operator.id_of(first)
        operator.final(operator.issue(range(1)))
        (bound,) = operator.log("bound")
        assert isinstance(bound, wire.Bound)
        mark = json.loads((operator.root / "merlin_info" / "workspace.json").read_text())
        assert (bound.site, bound.mark, bound.workspace) == ("here", mark["mark"], str(operator.root))
        assert (mark["study"], mark["plan"]) == (STUDY, operator.plan.hash if operator.plan else "")
        first.kill()
        elsewhere = tmp_path / "elsewhere"
        operator.offer("there", a_route(site="there"), timing=QUICK)
        operator.agent(site="there", workspace=elsewhere)
        chunk = operator.issue(range(1), a_route(site="there"))
        (report,) = operator.final(chunk)
        assert (report.refused, report.results) == ("bound to site here", ())
        assert not list(elsewhere.iterdir())


def test_an_agent_that_sees_another_file_system_takes_nothing(broker: Broker, tmp_path: Path) -> None:
    """Same site, other disk: the mark is not there, or another study's."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")), timing=QUICK)
        first = operator.agent()
        operator.id_of(first)
        operator.final(operator.issue(range(1)))
        first.kill()
        other = tmp_path / "other"
        second = operator.agent(workspace=other)
        name = operator.id_of(second)
        (report,) = operator.final(operator.issue(range(1)))
        assert "workspace.json: expected the mark" in report.refused
        assert "does not see that file system" in report.refused
        assert not list(other.iterdir())
        eventually(lambda: any("workspace.json" in text for text in operator.heartbeats[name][-1].problems))
        info = other / operator.root.name / "merlin_info"
        info.mkdir(parents=True)
        (info / "workspace.json").write_text('{"study": "x", "mark": "y", "plan": "z"}')
        (report,) = operator.final(operator.issue(range(1)))
        assert "found another one" in report.refused


def test_a_step_that_would_leave_the_workspace_is_refused(broker: Broker, tmp_path: Path) -> None:
    """The agent checks names itself, whatever the plan's compiler let through."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("..", "echo run > runs")), timing=QUICK)
        operator.agent()
        (report,) = operator.final(operator.issue(range(1)))
        assert "no proper directory inside the workspace" in report.refused
        assert not list(tmp_path.rglob("runs"))


def test_a_plan_that_does_not_open_runs_nothing(broker: Broker, tmp_path: Path) -> None:
    """The chunk goes back to the stream, and is run once the right plan is there."""
    with Standin(broker, tmp_path) as operator:
        plan = a_plan(a_step("sim", ":"))
        operator.up(plan, timing=QUICK)
        operator.put_raw(operator.space.plan(STUDY, plan.hash), b"rubbish")
        name = operator.id_of(operator.agent())
        chunk = operator.issue(range(1))
        eventually(lambda: any("envelope" in text for text in operator.heartbeats[name][-1].problems))
        assert not operator.starts(chunk.fence)
        assert not operator.root.exists()
        operator.store_plan(plan)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 1}


def test_only_the_given_study_is_served(broker: Broker, tmp_path: Path) -> None:
    """An agent started for one study leaves the chunks of others to others."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")), timing=QUICK)
        picky = operator.agent("--study", "another")
        operator.id_of(picky)
        chunk = operator.issue(range(1))
        operator.agent()
        operator.final(chunk)
        assert operator.starts(chunk.fence)[0].agent != operator.id_of(picky)
