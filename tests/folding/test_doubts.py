"""Whether a log lacks something, and who is asked: the decisions behind a repair."""

from __future__ import annotations

import asyncio

import pytest

from merlin_agent.retell import AT_ONCE, Line, together
from merlin_operator.core import Core, EngineConfig
from merlin_operator.doubt import Past, complaint, known_fences, sites_to_ask, unaccounted, words
from merlin_operator.repair import PATIENCE, Repairer
from merlin_operator.study import Study
from merlin_operator.verdicts import Judge
from merlin_operator.view import StudyRef
from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.ledger import Ledger
from merlin_study.seal import Keyring
from merlin_study.subjects import ANY_SITE
from merlin_study.taskset import TaskSet
from tests.folding.studies import Shape, plan_of

EPOCH = 1_800_000_000
BASE = wire.first_fence(EPOCH)
BEGUN = Past(started_at=1.0, site="here", workspace="/ws/study")

UNREAD = wire.Recalled(
    agent="b",
    site="here",
    epoch=EPOCH,
    found=False,
    unread="/ws/study/merlin_info/outcomes/a.jsonl: Input/output error",
)


@pytest.fixture
def ledger() -> Ledger:
    """Fence 1 is claimed and over, fence 2 is claimed, nobody knows of more."""
    made = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    made.closed.add_range(BASE, 1)
    chunk = wire.Chunk(study="u", plan="h", epoch=EPOCH, fence=BASE + 1, step=0, tasks=TaskSet.of([0]), attempt=1)
    made.apply(wire.Start(agent="a", chunk=chunk), at=0)
    return made


def word(site: str, *, found: bool, epoch: int = EPOCH) -> wire.Recalled:
    return wire.Recalled(agent=f"agent at {site}", site=site, epoch=epoch, found=found)


@pytest.mark.parametrize(
    ("next_fence", "waiting", "missing"), [(2, [], 0), (3, [2], 0), (3, [], 1), (5, [2], 2), (2, [9], 0), (0, [], 0)]
)
def test_each_fence_that_was_issued_is_in_the_log_or_waits(
    ledger: Ledger, next_fence: int, waiting: list[int], missing: int
) -> None:
    cursor = wire.Cursor(study="u", plan="h", epoch=EPOCH, next_fence=BASE + next_fence)
    assert unaccounted(ledger, cursor, [BASE + each for each in waiting]) == missing


def test_fences_of_an_epoch_are_above_those_of_all_before() -> None:
    assert wire.first_fence(1) == 1
    assert wire.first_fence(EPOCH) > wire.first_fence(EPOCH - 1) + 999_999
    assert [wire.epoch_of(fence) for fence in (1, BASE - 1, BASE, BASE + 999_999)] == [1, EPOCH - 1, EPOCH, EPOCH]


def test_what_is_known_is_named_in_few_ranges() -> None:
    closed = Bitmap()
    closed.add_range(1, 100_000)
    closed.add(TaskSet.of([BASE, BASE + 1, BASE + 7]))
    assert known_fences(closed) == ((1, 100_000), (BASE, BASE + 1), (BASE + 7, BASE + 7))
    assert known_fences(closed, most=2) == ((1, 100_000), (BASE, BASE + 1))


def test_what_was_handed_back_as_it_was_is_asked_for_again() -> None:
    """Somebody else may have claimed it before the broker was put back, and run it."""
    closed = Bitmap()
    closed.add_range(1, 6)
    closed.add(TaskSet.of([BASE, BASE + 2]))
    assert known_fences(closed, returned={3, BASE + 2, 99}) == ((1, 2), (4, 6), (BASE, BASE))


@pytest.mark.parametrize(
    ("past", "site", "words", "asked"),
    [
        (Past(), ANY_SITE, [], ["here", "there"]),
        (Past(), ANY_SITE, [word("here", found=False)], ["there"]),
        (Past(), ANY_SITE, [word("here", found=False), word("there", found=False)], []),
        (Past(), ANY_SITE, [word("there", found=True)], []),
        (Past(), "here", [word("here", found=False)], []),
        (BEGUN, ANY_SITE, [], ["here"]),
        (BEGUN, "here", [word("here", found=False)], ["here"]),
        (BEGUN, "here", [word("here", found=True, epoch=EPOCH - 1)], ["here"]),
        (BEGUN, "here", [word("here", found=True)], []),
    ],
)
def test_a_missing_workspace_is_believed_only_of_a_study_that_never_began(
    past: Past, site: str, words: list[wire.Recalled], asked: list[str]
) -> None:
    ledger = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    for each in words:
        ledger.apply(each, at=0)
    assert sites_to_ask(ledger, EPOCH, past, reading="", site=site, live=["here", "there"]) == asked


def test_a_study_that_waits_says_for_what() -> None:
    assert sites_to_ask(
        Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml())), 2, Past(), reading="", site=ANY_SITE, live=[]
    ) == [ANY_SITE]
    assert "of site here has to read that in the workspace /ws/study: start one" in complaint(BEGUN, "here", [])
    assert "agent a sees no workspace /ws/study" in complaint(BEGUN, "here", ["b", "a"])


def _line(fence: int, first: int, end: int, *, step: int = 1, serial: int = 0) -> Line:
    return (
        Line(fence, serial, "a.jsonl", 0, 1, step, first, end) if serial == 0 else Line(fence, serial, "a.jsonl", 0, 1)
    )


def test_a_task_is_told_by_fence() -> None:
    """Fences without a common task may be told side by side; what holds tasks of an earlier one waits until that is told."""
    lines = [
        _line(1, 0, 4),
        _line(1, 0, 0, serial=1),
        _line(2, 4, 8),
        _line(3, 0, 4, step=2),
        _line(4, 3, 4),
        _line(5, 9, 10),
    ]
    told = [[fence[0].fence for fence in group] for group in together(lines)]
    assert told == [[1, 2, 3], [4, 5]]
    assert [len(fence) for group in together(lines) for fence in group] == [2, 1, 1, 1, 1]


def test_a_fence_whose_claim_is_not_recorded_is_told_alone() -> None:
    lines = [_line(1, 0, 4), _line(2, 0, 0, serial=1), _line(3, 4, 8)]
    assert [[fence[0].fence for fence in group] for group in together(lines)] == [[1], [2], [3]]


def test_no_more_than_some_are_told_side_by_side() -> None:
    lines = [_line(each, each, each + 1) for each in range(1, 2 * AT_ONCE + 2)]
    assert [len(group) for group in together(lines)] == [AT_ONCE, AT_ONCE, 1]


def test_what_cannot_be_read_is_no_missing_workspace() -> None:
    """Neither is the study taken for one that never began, nor is its user told to delete it."""
    ledger = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    ledger.apply(UNREAD, at=0)
    ledger.apply(word("here", found=False), at=0)  # another agent, which sees none, knows no better
    assert sites_to_ask(ledger, EPOCH, Past(), reading="", site="here", live=["here"]) == ["here"]
    assert sites_to_ask(ledger, EPOCH, Past(), reading="", site=ANY_SITE, live=["here"]) == ["here"]
    assert ledger.recalled == {"here": UNREAD}
    said = complaint(BEGUN, "here", ["b"], {"b": UNREAD.unread})
    assert said.startswith("/ws/study/merlin_info/outcomes/a.jsonl: Input/output error: ")
    assert "delete" not in said
    ledger.apply(wire.Recalled(agent="b", site="here", epoch=EPOCH, found=False), at=0)
    assert not ledger.recalled["here"].unread, "the same agent may find out more"


def test_a_word_to_another_reader_of_the_log_is_none_to_this_one() -> None:
    """What it speaks of may have been lost behind its back: that one is gone, and this one has never seen it."""

    def asked(ledger: Ledger, *, by: str) -> list[str]:
        return sites_to_ask(ledger, EPOCH, BEGUN, reading=by, site="here", live=["here"])

    first, late = (
        wire.Recalled(agent=agent, site="here", epoch=EPOCH, found=True, reading="first") for agent in ("a", "b")
    )
    ledger = Ledger(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
    ledger.apply(first, at=0)
    assert asked(ledger, by="first") == []
    assert asked(ledger, by="second") == ["here"]
    ledger.apply(late, at=0)  # asked by the first one, too
    assert asked(ledger, by="second") == ["here"]
    ledger.apply(UNREAD, at=0)
    ledger.apply(first.model_copy(update={"reading": "second", "found": False}), at=0)
    assert words(ledger, EPOCH, "second")["here"].agent == "a", "what was unread to another says nothing to this one"


def test_a_log_that_is_read_from_its_beginning_is_another_reading() -> None:
    study = Study(StudyRef("ns", "s", "u"), 1)
    before = study.reading
    study.start_over()
    assert study.reading not in ("", before)
    assert Study(StudyRef("ns", "s", "u"), 1).reading not in ("", before, study.reading)


def test_an_agent_that_gets_on_with_telling_is_not_followed_by_another() -> None:
    async def scenario() -> None:
        core = Core(EngineConfig("ns", "nats://127.0.0.1:1", {}, Keyring.generate()))
        repairer = Repairer(core, Judge(core))
        study = Study(StudyRef("ns", "s", "u"), 1)
        study.adopt(plan_of(Shape(((False, (), ()),), {}, 1).yaml()))
        study.synced, study.epoch, study.announced = True, EPOCH, EPOCH
        study.word = wire.Control(study="u", epoch=EPOCH)
        core.studies["u"] = study

        async def asked(now: float) -> str:
            for agent in "ab":
                core.fleet.hear(wire.Heartbeat(agent=agent, site="here", host=agent, pid=1, version="0", slots=1), now)
            core.look(now)
            await repairer.repair(now)
            return study.recall.agent if study.recall is not None else ""

        now = 1000.0
        assert await asked(now) == "a"
        for _ in range(4):
            study.folded, now = study.folded + 1, now + 0.9 * PATIENCE
            assert await asked(now) == "a"
        assert await asked(now + 0.5 * PATIENCE) == "a"
        assert await asked(now + 1.1 * PATIENCE) == "b"

    asyncio.run(scenario())
