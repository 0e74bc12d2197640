"""What the operator tells one agent alone: other queues, or to leave; by nobody else's word, and each once."""

from pathlib import Path

from merlin_study import wire
from merlin_study.finale import Finale
from merlin_study.seal import Keyring
from tests.agent.standin import STUDY, Standin, a_plan, a_route, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2)


def tell(operator: Standin, agent: str, *, number: int, **says: object) -> None:
    """Store the operator's word for an agent."""
    word = wire.Assignment.model_validate({"agent": agent, "number": number, **says})
    operator.put(operator.space.assignment("here", agent), word.encode(), scope="agents")


def shows(operator: Standin, agent: str) -> wire.Heartbeat:
    return operator.heartbeats[agent][-1]


def test_an_agent_serves_other_queues_from_then_on(broker: Broker, tmp_path: Path) -> None:
    """And says so, with the number of the word; an older word, repeated by whoever keeps it, changes nothing."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "true")), timing=QUICK)
        name = operator.id_of(operator.agent("--queues", "other", "--name", "block.1"))
        assert name.startswith("block.1-")
        chunk = operator.issue([0])
        tell(operator, name, number=1, queues=["merlin"])
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 1}
        eventually(lambda: (shows(operator, name).queues, shows(operator, name).assigned) == (("merlin",), 1))
        tell(operator, name, number=2, queues=["else"])
        eventually(lambda: shows(operator, name).assigned == 2)
        tell(operator, name, number=1, leave=True)
        tell(operator, name, number=3, queues=[])
        eventually(lambda: shows(operator, name).assigned == 3)
        assert (shows(operator, name).queues, shows(operator, name).leaving) == ((), False)


def test_an_agent_that_is_told_to_leave_finishes_what_runs_and_starts_nothing(broker: Broker, tmp_path: Path) -> None:
    """However long that takes; what it had not started goes to others."""
    script = "touch up; while ! [ -e ../go ]; do sleep 0.05; done"
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", script)), timing=QUICK)
        agent = operator.agent("--drain-grace", "0", slots=1)
        name = operator.id_of(agent)
        running = operator.issue([0])
        eventually((operator.root / "sim" / "up").exists)
        tell(operator, name, number=1, leave=True)
        eventually(lambda: shows(operator, name).leaving)
        waits = operator.issue([0], fresh=True)
        (operator.root / "go").touch()
        assert operator.counts(operator.final(running)) == {("succeeded", 0): 1}
        assert agent.wait(timeout=180) == 0
        assert not operator.starts(waits.fence)


def test_an_agent_that_is_leaving_heeds_signals_as_ever(broker: Broker, tmp_path: Path) -> None:
    """SIGTERM drains it with the usual grace, and what runs is handed back."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "touch up; sleep 600")), timing=QUICK)
        agent = operator.agent("--drain-grace", "0", slots=1)
        name = operator.id_of(agent)
        running = operator.issue([0])
        eventually((operator.root / "sim" / "up").exists)
        tell(operator, name, number=1, leave=True)
        eventually(lambda: shows(operator, name).leaving)
        agent.stop()
        assert operator.counts(operator.final(running)) == {}


def test_only_the_operator_s_word_for_this_agent_counts(broker: Broker, tmp_path: Path) -> None:
    """Neither what an agent's keys make, nor what the operator said to another agent; the first is told."""
    keys, agent_keys = Keyring.generate_pair()
    with Standin(broker, tmp_path, keys=keys, agent_keys=agent_keys) as operator:
        operator.up(a_plan(a_step("sim", "true")), timing=QUICK)
        name = operator.id_of(operator.agent())
        subject = operator.space.assignment("here", name)
        forged = wire.Assignment(agent=name, number=1, leave=True).encode()
        operator.put_raw(subject, agent_keys.seal(forged, scope="agents", context=subject))
        eventually(lambda: shows(operator, name).refused == 1)
        tell(operator, "another", number=1, leave=True)
        elsewhere = operator.space.assignment("here", "another")
        operator.put_raw(subject, keys.seal(forged, scope="agents", context=elsewhere))
        eventually(lambda: shows(operator, name).refused == 2)
        operator.put(subject, wire.Assignment(agent="another", number=9, leave=True).encode(), scope="agents")
        assert operator.counts(operator.final(operator.issue([0]))) == {("succeeded", 0): 1}
        assert not shows(operator, name).leaving


def test_an_agent_of_one_study_leaves_when_that_is_over_and_runs_nothing_of_another(
    broker: Broker, tmp_path: Path
) -> None:
    """The end of another study says nothing to it; what it still runs may end."""
    end = Finale(study=STUDY, plan="p", succeeded=True, finished_at="2026-01-01T00:00:00+00:00", steps=())
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "touch up; while ! [ -e ../go ]; do sleep 0.05; done")), timing=QUICK)
        agent = operator.agent("--study", STUDY)
        name = operator.id_of(agent)
        others = operator.chunk([0], study="another")
        operator.put(operator.space.chunk(a_route(), "another", others.fence), others.encode(), scope="another")
        operator.put(
            operator.space.finale("another"), end.model_copy(update={"study": "another"}).encode(), scope="another"
        )
        running = operator.issue([0])
        eventually((operator.root / "sim" / "up").exists)
        assert not shows(operator, name).leaving
        operator.put(operator.space.finale(STUDY), end.encode())
        eventually(lambda: shows(operator, name).leaving)
        (operator.root / "go").touch()
        assert operator.counts(operator.final(running)) == {("succeeded", 0): 1}
        assert agent.wait(timeout=180) == 0
        assert (operator.waiting(), shows(operator, name).refused) == (1, 0), (
            "the other one's chunk is there for others"
        )
