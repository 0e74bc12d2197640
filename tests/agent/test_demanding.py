"""What to take, from numbers: pure."""

import pytest

from merlin_agent import demand
from merlin_agent.demand import Backoff, Host, Load, Mean
from merlin_study.wire import Consumer


@pytest.mark.parametrize(
    ("load", "wanted"),
    [
        (Load(slots=2, busy=0, ready=0, mean=None), 2),
        (Load(slots=2, busy=1, ready=0, mean=None), 1),
        (Load(slots=2, busy=1, ready=1, mean=None), 0),
        (Load(slots=2, busy=2, ready=0, mean=None), 0),
        (Load(slots=2, busy=2, ready=0, mean=3600.0), 0),
        (Load(slots=2, busy=2, ready=0, mean=2.5), 0),
        (Load(slots=2, busy=2, ready=0, mean=1.0), 1),
        (Load(slots=2, busy=2, ready=1, mean=1.0), 0),
        (Load(slots=2, busy=2, ready=0, mean=1.0, plenty=True), 2),
        (Load(slots=2, busy=2, ready=1, mean=1.0, plenty=True), 1),
        (Load(slots=2, busy=2, ready=2, mean=1.0, plenty=True), 0),
        (Load(slots=2, busy=1, ready=2, mean=1.0, plenty=True), 1),
        (Load(slots=2, busy=0, ready=2, mean=1.0, plenty=True), 2),
        (Load(slots=2, busy=2, ready=0, mean=2.5, plenty=True), 0),
        (Load(slots=2, busy=2, ready=0, mean=None, plenty=True), 0),
        (Load(slots=2, busy=1, ready=0, mean=60.0, plenty=True), 1),
        (Load(slots=128, busy=128, ready=0, mean=1.0), 32),
        (Load(slots=128, busy=128, ready=0, mean=1.0, plenty=True), 128),
        (Load(slots=2, busy=2, ready=0, mean=0.1), 5),
        (Load(slots=2, busy=2, ready=5, mean=0.1), 0),
        (Load(slots=128, busy=0, ready=100, mean=600.0), 28),
    ],
)
def test_chunks_are_claimed_for_free_slots_and_short_tasks_ahead(load: Load, wanted: int) -> None:
    """A quarter of a second of them, or one in all, or one for each slot where more chunks wait; none of unknown and long ones.

    What is ready counts for the free slots first: they will take it.
    """
    assert demand.room(load) == wanted


@pytest.mark.parametrize(
    ("load", "held", "width", "wanted"),
    [
        (Load(slots=2, busy=0, ready=0, mean=None), 0, 1.0, 2),
        (Load(slots=2, busy=0, ready=0, mean=None), 0, 100.0, 1),
        (Load(slots=2, busy=0, ready=0, mean=None), 1, 100.0, 0),
        (Load(slots=2, busy=2, ready=10, mean=0.1), 0, 100.0, 1),
        (Load(slots=2, busy=2, ready=10, mean=0.1), 1, 100.0, 0),
        (Load(slots=2, busy=2, ready=10, mean=60.0), 0, 100.0, 0),
        (Load(slots=4096, busy=0, ready=0, mean=None), 0, 1.0, demand.MOST_AT_ONCE),
    ],
)
def test_at_most_one_chunk_is_fetched_ahead(load: Load, held: int, width: float, wanted: int) -> None:
    """And only where the slots will need it within two seconds."""
    assert demand.to_fetch(load, held=held, width=width) == wanted


def a_consumer(name: str = "c", *, queue: str = "q", shape: str = "n1-c1-g0-m0-w0", band: str = "bulk") -> Consumer:
    """An offered consumer."""
    return Consumer.model_validate({"name": name, "queue": queue, "shape": shape, "band": band})


@pytest.mark.parametrize(
    ("consumer", "queues", "left", "fits"),
    [
        (a_consumer(), (), 1.0, True),
        (a_consumer(), ("q", "r"), 1.0, True),
        (a_consumer(), ("r",), 1.0, False),
        (a_consumer(shape="n2-c1-g0-m0-w0"), (), 1.0, False),
        (a_consumer(shape="n1-c4-g1-m0-w0"), (), 1.0, True),
        (a_consumer(shape="n1-c5-g0-m0-w0"), (), 1.0, False),
        (a_consumer(shape="n1-c1-g2-m0-w0"), (), 1.0, False),
        (a_consumer(shape="n1-c1-g0-m16-w0"), (), 1.0, True),
        (a_consumer(shape="n1-c1-g0-m17-w0"), (), 1.0, False),
        (a_consumer(shape="n1-c1-g0-m3-w1"), (), 900.0, True),
        (a_consumer(shape="n1-c1-g0-m0-w1"), (), 60.0, True),
        (a_consumer(shape="n1-c1-g0-m0-w2"), (), 900.0, False),
        (a_consumer(shape="n1-c1-g0-m0-w2"), (), 1500.0, True),
        (a_consumer(shape="n1-c1-g0-m0-w6"), (), 86400.0, False),
        (a_consumer(shape="n1-c1-g0-m0-w6"), (), 90000.0, True),
        (a_consumer(shape="next year's"), (), 1.0, False),
    ],
)
def test_a_consumer_is_served_if_its_shape_queue_and_time_fit(
    consumer: Consumer,
    queues: tuple[str, ...],
    left: float,
    fits: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Cores, GPUs and memory must be there on this one node; of a class of declared walltimes some must fit what is left."""
    assert demand.serves(consumer, host=Host(4, 1, memory=4096), queues=queues, seconds_left=left) is fits


def test_urgent_consumers_come_first_and_each_has_its_turn() -> None:
    """Within a band the order rotates."""
    consumers = [a_consumer("a"), a_consumer("u", band="urgent"), a_consumer("b"), a_consumer("v", band="urgent")]
    assert ["".join(c.name for c in demand.in_order(consumers, turn)) for turn in range(3)] == ["uvab", "vuba", "uvab"]


def test_back_offs_grow_to_a_bound_and_are_forgotten() -> None:
    """From the first wait, doubling."""
    backoff = Backoff(1.0, 3.0)
    untils = []
    for _ in range(4):
        backoff.fail(100.0)
        untils.append(backoff.until)
    assert untils == [101.0, 102.0, 103.0, 103.0]
    backoff.succeed()
    assert backoff.until == 0.0
    backoff.fail(0.0)
    assert backoff.until == 1.0


def test_the_mean_follows_recent_tasks() -> None:
    """A thousand old ones weigh no more than two hundred."""
    mean = Mean()
    mean.add(0.0, 0)
    assert mean.value is None
    mean.add(10.0, 1000)
    assert mean.value == pytest.approx(0.01)
    for _ in range(20):
        mean.add(100.0, 100)
    assert mean.value is not None
    assert mean.value > 0.9


def test_what_one_step_takes_says_nothing_of_another() -> None:
    """Else the agent that generated the samples in no time would claim a whole step of long tasks ahead, and others would idle."""
    means = demand.Means()
    means.add(("s", 0), 0.02, 1)
    assert means.longest({("s", 0)}) == 0.02
    assert means.longest({("s", 1)}) is None
    assert means.longest({("s", 0), ("s", 1)}) is None, "not known as long as one of them is not"
    means.add(("s", 1), 3.0, 2)
    assert means.longest({("s", 0), ("s", 1)}) == 1.5
    assert means.longest(()) is None
