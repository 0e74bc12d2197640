"""What kubectl applied has met nobody's environment: the agent's own completes it."""

from pathlib import Path

from merlin_study import wire
from tests.agent.standin import Standin, a_plan, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2, presence=0.3, presence_stale=2.0)


def test_the_agent_s_environment_completes_what_a_study_left_open(broker: Broker, tmp_path: Path) -> None:
    """In the place of the workspace, in the interpreter and in variables; the script itself is its shell's, unset names too."""
    sampled = a_step("sim", "echo '$(WHERE)' $(WHERE) '$UNSET_HERE'", shell="$INTERPRETER -u")
    plan = a_plan(sampled, output_path="$PLACE/out", variables={"WHERE": "~/in/$PLACE"})
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        operator.agent(env={"PLACE": str(tmp_path), "INTERPRETER": "/bin/sh"})
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("succeeded", 0): 1}
    study = tmp_path / "out" / plan.workspace
    assert (study / "sim" / "sim.out").read_text() == f"{tmp_path}/in/{tmp_path} {tmp_path}/in/{tmp_path} $UNSET_HERE\n"
    assert (study / "sim" / "sim.sh").read_text().startswith("#!/bin/sh -u\n")


def test_a_workspace_whose_place_nobody_knows_is_not_made(broker: Broker, tmp_path: Path) -> None:
    """Upstream makes a directory called ``$PLACE``; an agent hands the chunk back, and says what is missing."""
    plan = a_plan(a_step("sim", "true"), output_path="$NO_SUCH_PLACE/out")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan, timing=QUICK)
        operator.agent()
        report = operator.final(operator.issue(range(1)))[-1]
        assert report.refused.startswith("OUTPUT_PATH $NO_SUCH_PLACE/out: holds a variable that is not set")
        eventually(lambda: operator.waiting() == 0)
    assert not list(tmp_path.rglob("*NO_SUCH*"))
