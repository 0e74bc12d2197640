"""Which chunks give way to a study of higher priority: those that stand before its own, and none where that gains nothing."""

from __future__ import annotations

import pytest

from merlin_operator.ranks import overtaken
from merlin_operator.unroll import Candidate, Capacity, next_chunks
from merlin_study.ledger import Ledger
from merlin_study.subjects import ANY_SITE
from tests.folding.studies import plan_of

TEXT = """
description: {name: t, description: d}
global.parameters: {G: {values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], label: G.%%}}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", task_queue: QUEUE}}
"""


def candidate(uid: str, priority: int, *, queue: str = "q", most: int | None = None, site: str = "hpc") -> Candidate:
    plan = plan_of(TEXT.replace("QUEUE", queue))
    return Candidate(uid, plan.hash, 1, Ledger(plan), site, priority=priority, most=most)


def issue(*candidates: Candidate) -> list[str]:
    keys = {(each.site, *want) for each in candidates for want in each.ledger.plan.wants}
    capacity = {key: Capacity(2) for key in keys}
    return [each.chunk.study for each in next_chunks(list(candidates), capacity, window=0.0, now=0.0)]


def test_a_lower_study_in_the_same_band_gives_way() -> None:
    for low, high in ((1, 2), (-2, -1), (-1, 0)):
        below = candidate("low", low)
        assert set(issue(below)) == {"low"}
        above = candidate("high", high)
        assert overtaken([below, above]) == {"low": list(below.ledger.fences)}


def test_nobody_gives_way_where_nothing_is_gained() -> None:
    """Another band, another queue, the same priority, a chunk that runs, or a study above that has all it wants."""
    for priority, queue, most in ((5, "q", None), (1, "other", None), (0, "q", None), (5, "other", 3)):
        plain = candidate("plain", 0)
        issue(plain)
        assert not overtaken([plain, candidate("else", priority, queue=queue, most=most)])
    below, above = candidate("low", 1), candidate("high", 2)
    issue(below)
    for fence in below.ledger.fences.values():
        fence.holder = "agent"
    assert not overtaken([below, above])


@pytest.mark.parametrize("site", ["hpc", ANY_SITE])
def test_a_study_that_goes_first_leaves_no_room_that_would_be_taken_back(site: str) -> None:
    """As long as it has more to hand out, no lower one hands out anything; so chunks are withdrawn at a change only."""
    above, below = candidate("high", 2, site=site), candidate("low", 1)
    for _ in range(4):
        assert set(issue(above, below)) <= {"high"}
        assert not overtaken([above, below])
        for number in list(above.ledger.fences)[:1]:
            above.ledger.fences[number].holder = "agent"


def test_a_study_of_any_site_waits_for_none_that_is_bound_to_one() -> None:
    """Agents of other sites may have nothing else to do."""
    above, below = candidate("high", 2), candidate("low", 1, site=ANY_SITE)
    assert set(issue(above, below)) == {"high", "low"}
    assert not overtaken([above, below])


def test_a_study_that_nobody_serves_holds_up_none() -> None:
    above, below = candidate("high", 2, site=ANY_SITE), candidate("low", 1)
    capacity = {("hpc", *want): Capacity(2) for want in below.ledger.plan.wants}
    chunks = next_chunks([above, below], capacity, window=0.0, now=0.0)
    assert {each.chunk.study for each in chunks} == {"low"}


LANES = """
description: {name: t, description: d}
global.parameters:
  G: {values: [1, 2, 3, 4], label: G.%%}
  Q: {values: [q, q, other, other], label: Q.%%}
study:
- {name: a, description: d, run: {cmd: "echo $(G)", task_queue: $(Q)}}
"""


def test_a_study_with_nothing_left_for_a_queue_holds_up_none_there() -> None:
    """Its step has tasks left, all of them for another queue."""
    plan = plan_of(LANES)
    above, below = Candidate("high", plan.hash, 1, Ledger(plan), ANY_SITE, priority=2), candidate("low", 1)
    (shape,) = {shape for _, shape in plan.wants}
    capacity = {(site, "q", shape): Capacity(1) for site in (ANY_SITE, "hpc")}
    found = [each.chunk.study for each in next_chunks([above, below], capacity, window=0.0, now=0.0)]
    assert above.ledger.steps[0].available, "for the other queue"
    assert set(found) == {"high", "low"}


def test_a_study_that_bounds_what_is_in_flight_holds_up_none() -> None:
    """It waits its turn: with room for more, it would hand out no more than it may."""
    above, below = candidate("high", 2, site=ANY_SITE, most=9), candidate("low", 1)
    assert {"high", "low"} == set(issue(above, below))
