"""What tasks take of a host: never more than there is, large ones in their turn, each GPU once."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from merlin_agent.chunkrun import ChunkRun, Ended
from merlin_agent.feed import Feed
from merlin_agent.launch import DirectLauncher
from merlin_agent.resources import Pool, Share, by_core, parts
from merlin_agent.slot import Slot
from merlin_agent.slots import Slots, Work
from merlin_study import memory, needs, wire
from merlin_study.needs import Sizes
from merlin_study.outcome import Outcome
from merlin_study.shape import Shape
from merlin_study.taskset import TaskSet
from tests.ground import eventually


def chunk(tasks: int, *, urgent: bool = False, step: int = 0) -> ChunkRun:
    held = TaskSet(first=0, width=tasks)
    return ChunkRun(wire.Chunk(study="s", plan="p", step=step, fence=1, epoch=1, tasks=held, attempt=1), urgent=urgent)


def test_a_pool_gives_each_core_and_each_gpu_once() -> None:
    pool = Pool(4, ("0", "1"))
    one = pool.take(Shape(cores=3, gpus=1))
    assert one == Share(3, ("0",))
    assert pool.take(Shape(cores=2)) is None
    two = pool.take(Shape(cores=1, gpus=1))
    assert two == Share(1, ("1",))
    assert pool.busy == 4
    pool.give(one)
    assert pool.take(Shape(gpus=1)) == Share(1, ("0",))


def test_what_comes_back_twice_is_a_bug_that_is_told() -> None:
    with pytest.raises(AssertionError, match="this is a bug"):
        Pool(1).give(Share(1))


def test_a_task_sees_its_gpus_and_one_without_any_sees_what_the_job_does() -> None:
    visible = Share(1, ("2", "3")).variables()
    names = (b"CUDA_VISIBLE_DEVICES", b"ROCR_VISIBLE_DEVICES", b"ZE_AFFINITY_MASK")
    assert visible == {**dict.fromkeys(names, b"2,3"), b"HIP_VISIBLE_DEVICES": b"0,1"}
    assert Share(1).variables() == {}


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        ({cpu: f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}, [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        ({cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n" for cpu in range(8)}, [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
        (dict.fromkeys(range(8), ""), [{0, 1}, {2, 3}, {4, 5}, {6, 7}]),
    ],
    ids=["n and n+4", "2n and 2n+1", "not told"],
)
def test_threads_of_a_core_go_to_one_task(siblings: dict[int, str], expected: list[set[int]]) -> None:
    assert list(parts(by_core(reversed(range(8)), siblings), 4)) == expected


def test_no_small_task_overtakes_a_large_one_that_waits() -> None:
    """What becomes free is kept for it; else it would wait for as long as there are small ones."""
    feed = Feed(Pool(2))
    small, large, more = chunk(1), chunk(1), chunk(5)
    for run, cores in ((small, 1), (large, 2), (more, 1)):
        feed.add(run, Nothing(), Shape(cores=cores))
    first = feed.take()
    assert first is not None
    assert first.run is small
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(feed.take()))
    thread.start()
    eventually(lambda: feed.idle == 1)
    assert found == []
    second = feed.take(first.share)
    assert second is not None
    assert second.run is large
    feed.close()
    thread.join()


def test_tasks_that_a_slot_gives_back_run_though_none_were_left_meanwhile() -> None:
    """A slot's interpreter may die with tasks that it had not begun."""
    feed, run = Feed(Pool(1)), chunk(8)
    feed.add(run, Nothing(), Shape())
    first = feed.take()
    assert first is not None
    taken = feed.more(run, 3)
    assert taken
    while run.left:
        run.take()
    with feed._condition:
        feed._pool.give(first.share)
        assert feed._first() is None
        feed._pool.take(Shape())
    assert feed.back(run, taken)
    again = feed.take(first.share)
    assert again is not None
    assert again.task == taken[0]


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def learn(feed: Feed, clock: Clock, run: ChunkRun, seconds: float) -> None:
    """Have a step's tasks take so long three times."""
    for _ in range(3):
        found = feed.take()
        assert found is not None
        assert found.run is run
        clock.now += seconds
        with feed._condition:
            feed._pool.give(found.share)
            ended = feed._running.pop(id(found.share))
            feed._durations.note(ended.step, clock.now - ended.began)


@pytest.mark.parametrize("waits", ["a task of several cores", "cores that are kept for another host's task"])
def test_before_a_task_that_waits_only_those_run_that_will_have_ended_by_then(waits: str) -> None:
    """A core idles no longer than it has to, and the task that waits starts no later for it."""
    clock = Clock()
    feed = Feed(Pool(2), clock)
    long, short = chunk(4, step=0), chunk(5, step=1)
    feed.add(long, Nothing(), Shape())
    learn(feed, clock, long, 10.0)
    feed.add(short, Nothing(), Shape())
    long_one = feed.take()
    assert long_one is not None
    assert long_one.run is long
    learn(feed, clock, short, 2.0)  # 6 s of the 11 that the long one may take are over
    kept: list[str] = []
    if waits.startswith("a task"):
        feed.add(chunk(1, step=2), Nothing(), Shape(cores=2))
        feed._queues[1].rotate(1)
    else:
        assert feed.keep("key", Shape(cores=2), lambda key, *_: kept.append(key)) == pytest.approx(5.0)
    fits = feed.take()
    assert fits is not None
    assert fits.run is short, "it takes 2.2 s at most, and 5 are left"
    clock.now += 3.0
    with feed._condition:
        feed._pool.give(fits.share)
        assert feed._first() is None, "2 s are left, too little for another: the core is kept"
        feed._pool.give(long_one.share)
        following = feed._first()
    if waits.startswith("a task"):
        assert following is not None
        assert following.share.cores == 2
    else:
        assert (kept, following) == (["key"], None)


def test_nothing_overtakes_where_nobody_knows_how_long_tasks_take() -> None:
    """Declared walltimes count where no task has been measured."""
    clock = Clock()
    feed = Feed(Pool(3), clock)
    quarter, hour = Shape(walltime_class=1), Shape(walltime_class=2)
    unknown, declared = chunk(1, step=0), chunk(1, step=1)
    feed.add(declared, Nothing(), hour)
    first = feed.take()
    feed.keep("key", Shape(cores=3), lambda *_: None)
    feed.add(unknown, Nothing(), Shape())
    with feed._condition:
        assert feed._first() is None
    short = chunk(1, step=2)
    feed.add(short, Nothing(), quarter)
    found = feed.take()
    assert first is not None
    assert found is not None
    assert found.run is short, "a quarter of an hour at most, before an hour at most"


class Nothing(Work):
    """`slots.Work` that notes what ran beside what."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cores = self.most = 0
        self.gpus: Counter[str] = Counter()
        self.shared = False

    def execute(self, run: ChunkRun, task: int, slot: Slot) -> Ended:
        del run
        with self.lock:
            self.cores += slot.share.cores
            self.most = max(self.most, self.cores)
            self.gpus.update(slot.share.gpus)
            self.shared |= any(count > 1 for count in self.gpus.values())
        time.sleep(0.001)
        with self.lock:
            self.cores -= slot.share.cores
            self.gpus.subtract(slot.share.gpus)
        return Ended(task, Outcome.SUCCEEDED)


@pytest.fixture
def work() -> Iterator[Nothing]:
    work = Nothing()
    yield work
    assert work.cores == 0


def test_a_mixed_load_never_takes_more_than_the_host_has(work: Nothing) -> None:
    ended: list[Ended] = []

    async def scenario() -> None:
        done = asyncio.Event()

        def deliver(batch: list[tuple[ChunkRun, Ended]]) -> None:
            ended.extend(each for _, each in batch)
            if len(ended) == 150:
                done.set()

        slots = Slots(
            4,
            gpus=("0", "1"),
            launcher=DirectLauncher({}),
            watch=lambda _slot, _group: None,
            deliver=deliver,
            grace=0.1,
        )
        slots.start()
        for shape in (Shape(), Shape(cores=4), Shape(cores=3, gpus=1), Shape(gpus=2), Shape(cores=2)):
            slots.feed.add(chunk(30), work, shape)
        async with asyncio.timeout(30):
            await done.wait()
        slots.close()

    asyncio.run(scenario())
    assert work.most == 4
    assert not work.shared


@pytest.mark.parametrize(
    ("sizes", "launched", "expected"),
    [
        (Sizes(), False, Shape()),
        (Sizes(nodes=2, procs=8, cores=3), False, Shape()),
        (Sizes(gpus=2), False, Shape(gpus=2)),
        (Sizes(gpus_per_task=1), False, Shape(gpus=1)),
        (Sizes(procs=4), True, Shape(cores=4)),
        (Sizes(nodes=2), True, Shape(nodes=2)),
        (Sizes(nodes=2, procs=5, cores=2), True, Shape(nodes=2, cores=6)),
        (Sizes(nodes=2, procs=4, gpus=4), True, Shape(nodes=2, cores=2, gpus=2)),
        (Sizes(nodes=2, procs=4, gpus_per_task=1), True, Shape(nodes=2, cores=2, gpus=2)),
        (Sizes(memory=1), False, Shape(memory=1)),
        (Sizes(nodes=2, memory=1025), True, Shape(nodes=2, memory=5)),
    ],
)
def test_a_step_s_sizes_say_what_a_task_takes_of_each_node(sizes: Sizes, launched: bool, expected: Shape) -> None:  # noqa: FBT001 - a column of the table
    assert needs.shape(sizes, launched=launched, walltime=None) == expected


@pytest.mark.parametrize(
    ("shape", "gpus", "cost"),
    [(Shape(), 0, 1), (Shape(cores=4), 0, 4), (Shape(gpus=1), 4, 14), (Shape(cores=20, gpus=1), 4, 20)],
)
def test_a_task_costs_the_larger_of_its_cores_and_its_part_of_the_gpus(shape: Shape, gpus: int, cost: int) -> None:
    """A host of 56 cores and 4 GPUs runs four tasks of a GPU each at once, so each counts for 14 cores."""
    assert shape.cost(cores=56, gpus=gpus) == cost


@pytest.mark.parametrize(
    ("cores", "units", "taken"),
    [(1, 0, 1), (1, 8, 1), (1, 9, 2), (4, 9, 4), (1, 32, 4), (1, 33, 5)],
)
def test_memory_counts_in_the_cores_that_bring_it(cores: int, units: int, taken: int) -> None:
    """A host of four cores and 8 GiB: each brings 2 GiB, eight units; what needs more than there is needs more cores than there are."""
    shape = Shape(cores=cores, memory=units)
    assert shape.on(cores=4, memory=8192).cores == taken
    assert shape.on(cores=4, memory=0).cores == cores, "memory that is not known is not counted"


def test_tasks_never_get_more_memory_than_the_host_has() -> None:
    """Three of 4 GiB do not fit into 8, though there are cores enough."""
    feed, needs = Feed(Pool(4)), Shape(memory=16).on(cores=4, memory=8192)
    feed.add(chunk(3), Nothing(), needs)
    first, second = feed.take(), feed.take()
    with feed._condition:
        assert feed._first() is None
    assert first is not None
    third = feed.take(first.share)
    assert third is not None
    assert second is not None
    assert feed.busy == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("512M", 512), ("4GiB", 4096), ("4 gb", 4096), ("1.5G", 1536), ("1T", 1 << 20), ("100K", 1)],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert memory.mebibytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "4 elephants", "4PB", "1e3"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected an amount of memory such as 4GiB or 512M, found"):
        memory.mebibytes(text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--mem=4G", 4096), ("--overlap --mem 512M --exact", 512), ("--mem-per-cpu=1G", 3072), ("--mem=0", None),
        ("--mem-bind=local", None), ("--overlap", None), ("--mem", None), ("--comment='", None),
    ],
)  # fmt: skip
def test_what_a_step_hands_to_slurm_counts(arguments: str, expected: int | None) -> None:
    assert memory.of_slurm(arguments, 3) == expected
