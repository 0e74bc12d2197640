"""The operator's word on a study, as agents obey it: by fence, so that what is issued later runs; and full disks."""

from __future__ import annotations

from pathlib import Path

from merlin_study import wire
from tests.agent.standin import STUDY, Standin, a_plan, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2, lost_after=60, presence=1, presence_stale=10)


def test_what_is_dropped_hands_back_what_has_not_begun_and_later_chunks_run(broker: Broker, tmp_path: Path) -> None:
    """One of two tasks runs on one slot: it ends by itself, the other comes back; so does a chunk of that time that comes late."""
    with Standin(broker, tmp_path) as operator:
        plan = a_plan(a_step("sim", "echo run >> runs; while [ ! -e go ]; do sleep 0.1; done", parameters=()))
        operator.up(plan, timing=QUICK)
        operator.agent("--slots", "1")
        first, late = operator.issue(range(1)), operator.chunk(range(1))
        eventually((operator.root / "sim" / "runs").exists)
        operator.word(drop_below=late.fence + 1)
        operator.publish(late)
        (operator.root / "sim" / "go").touch()
        assert operator.counts(operator.final(first)) == {("succeeded", 0): 1}
        assert operator.counts(operator.final(late)) == {}
        again = operator.issue(range(1), fresh=True)
        assert operator.counts(operator.final(again)) == {("succeeded", 0): 1}
        assert (operator.root / "sim" / "runs").read_text() == "run\nrun\n"


def test_what_is_cancelled_ends_and_the_study_can_be_taken_up_again(broker: Broker, tmp_path: Path) -> None:
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "touch up; [ -e go ] || sleep 600")), timing=QUICK)
        operator.agent()
        first = operator.issue(range(1))
        eventually((operator.root / "sim" / "up").exists)
        operator.word(drop_below=first.fence + 1, kill_below=first.fence + 1)
        assert operator.counts(operator.final(first)) == {("cancelled", -15): 1}
        (operator.root / "sim" / "go").touch()
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("succeeded", 0): 1}


def test_only_agents_of_a_study_leave_when_it_lets_them_go(broker: Broker, tmp_path: Path) -> None:
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "true")), timing=QUICK)
        shared, own = operator.agent(), operator.agent("--study", STUDY)
        name = operator.id_of(shared)
        operator.id_of(own)
        operator.word(retired=True)
        assert own.wait(timeout=180) == 0
        operator.word()
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("succeeded", 0): 1}
        assert not operator.heartbeats[name][-1].leaving


def test_agents_that_were_started_for_studies_of_a_name_leave_at_the_word_of_one(
    broker: Broker, tmp_path: Path
) -> None:
    """As `merlin run-workers` starts them: before any study has a uid, and without having run anything of it."""
    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", "true")), timing=QUICK)
        ours, theirs = operator.agent("--study-name", "mine"), operator.agent("--study-name", "another")
        operator.id_of(ours)
        name = operator.id_of(theirs)
        operator.word(retired=True, name="mine")
        assert ours.wait(timeout=180) == 0
        assert not operator.heartbeats[name][-1].leaving


def test_a_task_that_fails_where_the_disk_is_full_is_handed_back_and_told(broker: Broker, tmp_path: Path) -> None:
    """ENOSPC from the kernel itself, through /dev/full in the place where the agent looks for room."""
    with Standin(broker, tmp_path) as operator:
        script = "[ -e ../room ] && exit 0; ln -sfn /dev/full .merlin_room; echo 'no space' >&2; exit 3"
        operator.up(a_plan(a_step("sim", script)), timing=QUICK)
        name = operator.id_of(operator.agent())
        assert operator.counts(operator.final(operator.issue(range(1)))) == {}
        eventually(lambda: operator.heartbeats[name][-1].full == (STUDY,))
        assert "No space left on device; free some space" in operator.heartbeats[name][-1].problems[-1]
        (operator.root / "room").touch()
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("succeeded", 0): 1}
        eventually(lambda: operator.heartbeats[name][-1].full == ())
