"""What agents count of their tasks reaches the operator's counters whole, once, and never runs backwards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from merlin_agent import measure
from merlin_operator import measures
from merlin_study import wire
from merlin_study.outcome import Outcome


def beat(agent: str, told: measure.Measures, *, site: str = "hpc", refused: int = 0) -> wire.Heartbeat:
    message = wire.Heartbeat(
        agent=agent, site=site, host="h", pid=1, version="0", slots=1, figures=told.told(), refused=refused
    )
    return wire.Heartbeat.model_validate_json(message.encode())


def test_a_heartbeat_without_figures_is_still_one() -> None:
    """An agent of an earlier version tells none."""
    old = b'{"agent":"a","site":"s","host":"h","pid":1,"version":"0","slots":1}'
    assert wire.Heartbeat.model_validate_json(old).figures == ()


def test_each_duration_is_in_the_bucket_that_it_fits() -> None:
    told = measure.Measures()
    for seconds in (0.01, 0.5, 1.0, 90_000.0):
        told.note("q", Outcome.SUCCEEDED, ran=seconds, waited=None)
    (figures,) = told.told()
    assert figures.ran.counts == (1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert figures.ran.seconds == 90_001.51
    assert sum(figures.waited.counts) == 0
    assert figures.outcomes == {Outcome.SUCCEEDED: 4}


def test_clocks_that_differ_never_make_a_wait_negative() -> None:
    told = measure.Measures()
    told.note("q", Outcome.SUCCEEDED, ran=1.0, waited=-0.2)
    assert told.told()[0].waited.seconds == 0


def test_queues_beyond_the_bound_are_told_together() -> None:
    told = measure.Measures()
    for number in range(100):
        told.note(f"q{number}", Outcome.SUCCEEDED, ran=1.0, waited=1.0)
    figures = told.told()
    assert len(figures) == wire.MAX_QUEUES_TOLD + 1
    assert figures[-1].queue == measure.OTHER
    assert sum(each.outcomes[Outcome.SUCCEEDED] for each in figures) == 100


def test_the_broker_says_when_it_stored_a_chunk_and_how_many_wait_behind_it() -> None:
    plain = "$JS.ACK.tasks.consumer.1.22.3.1700000000500000000.7"
    with_domain = "$JS.ACK.hub.hash.tasks.consumer.1.22.3.1700000000500000000.7.token"
    assert measure.published_at(plain) == 1_700_000_000.5
    assert measure.published_at(with_domain) == 1_700_000_000.5
    assert measure.behind(plain) == measure.behind(with_domain) == 7
    for other in ("", "_INBOX.abc", "$JS.ACK.tasks.consumer.1.22.3.later.7", "$JS.ACK.a.b"):
        assert measure.published_at(other) is None
    for other in ("", "_INBOX.abc", "$JS.ACK.tasks.consumer.1.22.3.1700000000500000000.-1", "$JS.ACK.a.b"):
        assert measure.behind(other) == 0


def test_an_agent_that_starts_anew_adds_to_what_stands() -> None:
    """It has a new name and counts from zero; the one before it takes nothing along."""
    tally = measures.Tally()
    for name in ("first", "second"):
        told = measure.Measures()
        tally.hear(beat(name, told))
        for _ in range(3):
            told.note("q", Outcome.SUCCEEDED, ran=2.0, waited=0.5)
            tally.hear(beat(name, told))
    figures = tally.figures["hpc", "q"]
    assert figures.outcomes == {Outcome.SUCCEEDED: 6}
    assert (figures.ran.seconds, figures.waited.seconds) == (12.0, 3.0)


def test_what_an_agent_told_first_was_counted_by_the_operator_before() -> None:
    told = measure.Measures()
    told.note("q", Outcome.FAILED, ran=2.0, waited=0.5)
    tally = measures.Tally()
    tally.hear(beat("a", told, refused=5))
    assert (tally.figures["hpc", "q"].outcomes.total(), tally.refused) == (0, 0)
    told.note("q", Outcome.FAILED, ran=2.0, waited=0.5)
    tally.hear(beat("a", told, refused=6))
    assert (tally.figures["hpc", "q"].outcomes.total(), tally.refused) == (1, 1)


def test_a_total_that_fell_began_again_at_zero() -> None:
    tally, before, after = measures.Tally(), measure.Measures(), measure.Measures()
    tally.hear(beat("a", before))
    for _ in range(5):
        before.note("q", Outcome.SUCCEEDED, ran=1.0, waited=0.0)
    after.note("q", Outcome.SUCCEEDED, ran=1.0, waited=0.0)
    tally.hear(beat("a", before))
    tally.hear(beat("a", after))
    assert tally.figures["hpc", "q"].outcomes.total() == 6


RUNS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("pq"), st.floats(0, 1e5)), max_size=60)


@given(runs=RUNS, heard=st.sets(st.integers(0, 60)))
def test_heartbeats_may_be_lost_and_the_sums_only_grow(runs: list[tuple[int, str, float]], heard: set[int]) -> None:
    """Whatever heartbeats arrive in between, after the last one of each agent every task is counted exactly once."""
    tally, agents = measures.Tally(), [measure.Measures() for _ in range(4)]
    for number, agent in enumerate(agents):
        tally.hear(beat(f"a{number}", agent))
    last = 0
    for at, (number, queue, seconds) in enumerate(runs):
        agents[number].note(queue, Outcome.SUCCEEDED, ran=seconds, waited=seconds)
        if at in heard:
            tally.hear(beat(f"a{number}", agents[number]))
        count = sum(sum(figures.ran.counts) for figures in tally.figures.values())
        assert count >= last
        last = count
    for number, agent in enumerate(agents):
        tally.hear(beat(f"a{number}", agent))
    assert sum(figures.outcomes.total() for figures in tally.figures.values()) == len(runs)
    assert sum(sum(figures.waited.counts) for figures in tally.figures.values()) == len(runs)


def test_losses_are_told_by_site_from_zero_on_and_beyond_the_bound_together() -> None:
    tally = measures.Tally()
    tally.hear(beat("a", measure.Measures()))
    assert tally.lost == {"hpc": 0}, "a rate needs a series before the first loss"
    for number in range(2 * measures.MAX_SITES):
        tally.lose(f"s{number}")
    assert len(tally.lost) == measures.MAX_SITES + 1
    assert (tally.lost["s0"], tally.lost[measures.OTHER]) == (1, measures.MAX_SITES + 1)


def test_sites_and_queues_beyond_the_bound_count_together() -> None:
    tally = measures.Tally()
    for number in range(2 * measures.MAX_PAIRS):
        told = measure.Measures()
        tally.hear(beat(f"a{number}", told, site=f"s{number}"))
        told.note("q", Outcome.SUCCEEDED, ran=1.0, waited=1.0)
        tally.hear(beat(f"a{number}", told, site=f"s{number}"))
    assert len(tally.figures) == measures.MAX_PAIRS + 1
    assert tally.figures[measures.OTHER, measures.OTHER].outcomes.total() == measures.MAX_PAIRS
