"""Which chunks come next: a pure decision over ledgers, agents and what is out already.

Nothing is published where no agent serves it, and never more than agents will drain within the window: at least two
chunks a slot, else what the measured rate and the tasks' own run times let them empty in ``window`` seconds. A step's first tasks
travel one by one, two for each slot until one of them has ended.
Once it is known how long they take, chunks are sized by guided self-scheduling (the step's tasks left divided by four
times the slots), so the end of a step comes in small pieces and no slot idles, and hold between a quarter of a second and
ten seconds of work: tasks of more than five seconds travel one by one, short ones by up to `MAX_CHUNK`. Rests, retries and downstream steps
travel in the urgent band. Studies that compete for one route take turns by task-seconds served while they compete
(`merlin_operator.shares`); one of a higher priority goes before, and what others have out takes no room from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from merlin_operator.shares import Clocks, Share
from merlin_study import subjects, wire
from merlin_study.backlog import Waiting
from merlin_study.ledger import MAX_LOSSES, Ledger
from merlin_study.plan import Lane
from merlin_study.steptasks import lowest
from merlin_study.taskset import TaskSet

MAX_CHUNK: Final = 1 << 16
"""Tasks of one chunk at most, however short they are: a mask of them is 8 KiB, so a report of 64 KiB can tell several
outcomes of all of them, and 10⁸ tasks are 1,526 chunks."""
FIRST_CHUNK: Final = 1
"""Tasks of a chunk before it is known how long a step's tasks take: it could be days."""
CHUNK_SECONDS: Final = 10.0
"""Measured work of one chunk at most: what a loss costs, and what one agent may keep from others."""
LEAST_SECONDS: Final = 0.25
"""Measured work that is worth a chunk of its own: below it the chunk costs more than an idle slot at the end."""
SCAN_CHUNK: Final = 1 << 12
"""Tasks whose marks one chunk has looked at: neighbours, so that they share directories; a few seconds on a busy file system."""
SUSPECT_LOSSES: Final = MAX_LOSSES - 2
"""Holders lost in turn with a task after which it goes alone: of those that ran beside it, one may be what takes agents with it, and
a site may have one agent, which all of them come back to. The last two losses tell which."""
LEAST_MEAN: Final = 1e-6
"""Seconds that a task takes at least, so that one can divide by it."""
MAX_BATCH: Final = 200
"""Chunks published at once; a batch of JetStream holds 1,000 messages."""
URGENT: Final = "urgent"
BULK: Final = "bulk"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the agents of a queue and shape can take: ``slots`` in all, and tasks a second as measured (0: not yet)."""

    slots: int
    rate: float = 0.0


@dataclass(slots=True)
class Candidate:
    """A study that wants to issue. Of equal ``priority``, the one whose ``share`` was served less goes first.

    ``most``: tasks that may be in chunks that are out (None: no limit). ``rehearse``: as in `wire.Chunk`.
    """

    uid: str
    plan_hash: str
    epoch: int
    ledger: Ledger
    site: str
    share: Share = field(default_factory=Share)
    priority: int = 0
    most: int | None = None
    rehearse: float | None = None

    @property
    def allowance(self) -> int:
        """How many more tasks may go out."""
        if self.most is None:
            return MAX_CHUNK
        return max(0, self.most - sum(fence.open.bit_count() for fence in self.ledger.fences.values()))


@dataclass(frozen=True, slots=True)
class Issue:
    """A chunk and the route that it is published on."""

    route: subjects.Route
    chunk: wire.Chunk


@dataclass(slots=True)
class _Room:
    """What is out and unstarted on one queue and shape, of studies of one priority.

    ``seconds``: of work, as measured; ``untried``: chunks of steps of which no task has ended yet, which are in none of these seconds.
    """

    chunks: int = 0
    tasks: int = 0
    seconds: float = 0.0
    untried: int = 0


@dataclass(slots=True)
class Unroller:
    """One round of decisions; `next_chunks` fills it."""

    capacity: Mapping[tuple[str, str, str], Capacity]
    window: float
    room: dict[tuple[str, str, str], dict[int, _Room]] = field(default_factory=dict)
    denied: dict[tuple[str, str], int] = field(default_factory=dict)
    """By queue and shape: the highest priority of a study of any site that would publish more, and has no room."""
    competing: set[str] = field(default_factory=set)
    """The studies that published something, or would where there were room."""

    suspects: set[tuple[str, tuple[str, str, str]]] = field(default_factory=set)
    """By study, the routes on which a chunk is out that `SUSPECT_LOSSES` holders were lost with: no second one goes beside it."""

    def count_out(self, candidate: Candidate) -> None:
        """Count the chunks of a study that are published and not started."""
        for fence in candidate.ledger.fences.values():
            self._suspect(candidate, fence.chunk)
            if fence.holder is None:
                self._count(candidate, fence.chunk)

    def _count(self, candidate: Candidate, chunk: wire.Chunk) -> None:
        rooms = self.room.setdefault(self._key(candidate, candidate.ledger.lane(chunk)), {})
        room = rooms.setdefault(candidate.priority, _Room())
        room.chunks += 1
        room.tasks += len(chunk.tasks)
        if not chunk.scan:
            mean = candidate.ledger.runtimes.mean(chunk.step)
            room.untried += mean is None
            room.seconds += len(chunk.tasks) * (mean or 0.0)

    def _suspect(self, candidate: Candidate, chunk: wire.Chunk) -> None:
        if len(chunk.lost) >= SUSPECT_LOSSES:
            self.suspects.add((candidate.uid, self._key(candidate, candidate.ledger.lane(chunk))))

    @staticmethod
    def _key(candidate: Candidate, lane: Lane) -> tuple[str, str, str]:
        return candidate.site, lane.queue, lane.shape

    def _is_served(self, key: tuple[str, str, str]) -> bool:
        capacity = self.capacity.get(key)
        return capacity is not None and capacity.slots > 0

    def wanted(self, candidate: Candidate, now: float) -> frozenset[tuple[str, str, str]]:
        """Return the routes that have agents and on which the study would publish something, had they room."""
        ledger, keys = candidate.ledger, set()
        if candidate.allowance < 1:
            return frozenset()
        if (waiting := ledger.due(now)) is not None:
            ledger.put_back(waiting)
            keys.add(self._key(candidate, ledger.geometry.lane(waiting.step, waiting.tasks.first)))
        for step, tasks in ledger.scan.ahead(1) if ledger.scan.waits else ():
            keys.add(self._key(candidate, ledger.geometry.lane(step, tasks.first)))
        for step in ledger.dag.downstream_first:
            for number, lane in enumerate(ledger.plan.steps[step].lanes) if ledger.steps[step].available else ():
                key = self._key(candidate, lane)
                if key not in keys and ledger.steps[step].next_tasks(1, number, ledger.geometry.runs(step, number)):
                    keys.add(key)
        return frozenset(key for key in keys if self._is_served(key))

    def has_room(self, key: tuple[str, str, str], priority: int = 0, *, tried: bool = True) -> bool:
        """Whether a study of this priority may publish another chunk for this site, queue and shape.

        Beyond two chunks a slot, what is out may take agents the window to drain, by the tasks a second that are done and by how
        long these tasks take: right after a step of short tasks the rate says nothing of one of long tasks. Of steps that were not
        ``tried`` there are no more than two chunks a slot.

        What studies of lower priority have out takes no room from it, or a full window of theirs would go first. A study
        that is bound to a site waits for those of higher priority that any site may take: `ranks` would withdraw it at once.
        """
        capacity = self.capacity.get(key)
        if capacity is None or capacity.slots < 1:
            return False
        site, queue, shape = key
        if site != subjects.ANY_SITE and self.denied.get((queue, shape), priority) > priority:
            return False
        rooms = [room for other, room in self.room.get(key, {}).items() if other >= priority]
        if sum(room.chunks for room in rooms) < 2 * capacity.slots:
            return True
        if not tried and sum(room.untried for room in rooms) >= 2 * capacity.slots:
            return False
        drains = sum(room.tasks for room in rooms) < capacity.rate * self.window
        return drains and sum(room.seconds for room in rooms) < capacity.slots * self.window

    def _deny(self, candidate: Candidate, key: tuple[str, str, str]) -> None:
        """Note that a study has tasks for which there is no room; one that bounds what is in flight waits its turn, as in `ranks`."""
        if self._is_served(key):
            self.competing.add(candidate.uid)
        site, *route = key
        if site != subjects.ANY_SITE or candidate.most is not None or key not in self.capacity:
            return
        queue, shape = route
        self.denied[queue, shape] = max(candidate.priority, self.denied.get((queue, shape), candidate.priority))

    def take(self, candidate: Candidate, now: float) -> Issue | None:
        """Return the study's next chunk, or None where nothing may or need be issued."""
        if candidate.allowance < 1:
            return None
        return self._take_waiting(candidate, now) or self._take_scan(candidate) or self._take_ready(candidate)

    def _take_scan(self, candidate: Candidate) -> Issue | None:
        """Have an agent look at marks."""
        ledger = candidate.ledger
        for step, tasks in ledger.scan.ahead(min(SCAN_CHUNK, candidate.allowance)) if ledger.scan.waits else ():
            key = self._key(candidate, ledger.geometry.lane(step, tasks.first))
            if self.has_room(key, candidate.priority):
                return self._issue(candidate, step, tasks, URGENT, None, scan=True)
            self._deny(candidate, key)
        return None

    def _take_waiting(self, candidate: Candidate, now: float) -> Issue | None:
        ledger, passed = candidate.ledger, []
        issue = None
        while issue is None and (waiting := ledger.due(now)) is not None:
            key = self._key(candidate, ledger.geometry.lane(waiting.step, waiting.tasks.first))
            if len(waiting.lost) >= SUSPECT_LOSSES and (candidate.uid, key) in self.suspects:
                passed.append(waiting)
                continue
            if not self.has_room(key, candidate.priority, tried=_is_tried(ledger, waiting.step)):
                self._deny(candidate, key)
                passed.append(waiting)
                continue
            left = ledger.steps[waiting.step].handed_out - len(ledger.steps[waiting.step].final)
            size = min(self._size(ledger, waiting.step, self.capacity[key], left), candidate.allowance)
            # One of these may kill its agents; to an eighth at each loss, so that it is alone before `MAX_LOSSES`.
            tasks, rest = _split(waiting.tasks, max(1, min(size, MAX_CHUNK >> 3 * len(waiting.lost))))
            if rest is not None:
                passed.append(waiting.of(rest))
            issue = self._issue(candidate, waiting.step, tasks, URGENT, waiting)
        for waiting in passed:
            ledger.put_back(waiting)
        return issue

    def _take_ready(self, candidate: Candidate) -> Issue | None:
        ledger = candidate.ledger
        for step in ledger.dag.downstream_first:
            if not ledger.steps[step].available:
                continue
            for number, lane in enumerate(ledger.plan.steps[step].lanes):
                key, runs = self._key(candidate, lane), ledger.geometry.runs(step, number)
                if not self.has_room(key, candidate.priority, tried=_is_tried(ledger, step)):
                    if ledger.steps[step].next_tasks(1, number, runs) is not None:
                        self._deny(candidate, key)
                    continue
                left = (ledger.steps[step].total or 0) - ledger.steps[step].handed_out
                size = min(self._size(ledger, step, self.capacity[key], left), candidate.allowance)
                tasks = ledger.steps[step].next_tasks(size, number, runs)
                if tasks is not None:
                    return self._issue(candidate, step, tasks, URGENT if step in ledger.dag.downstream else BULK, None)
        return None

    @staticmethod
    def _size(ledger: Ledger, step: int, capacity: Capacity, left: int) -> int:
        """Return how many tasks the step's next chunk should hold, where ``left`` are to be issued."""
        size = -(-left // (4 * capacity.slots))
        mean = ledger.runtimes.mean(step)
        if mean is None:
            return FIRST_CHUNK
        mean = max(mean, LEAST_MEAN)
        size = min(max(size, int(LEAST_SECONDS / mean)), int(CHUNK_SECONDS / mean))
        return max(1, min(size, MAX_CHUNK))

    def _issue(
        self,
        candidate: Candidate,
        step: int,
        tasks: TaskSet,
        band: str,
        waiting: Waiting | None,
        *,
        scan: bool = False,
    ) -> Issue:
        ledger = candidate.ledger
        chunk = wire.Chunk(
            study=candidate.uid,
            plan=candidate.plan_hash,
            epoch=candidate.epoch,
            fence=ledger.next_fence,
            step=step,
            tasks=tasks,
            attempt=waiting.attempt if waiting is not None else 1,
            samples=ledger.geometry.samples,
            restart=waiting.restart if waiting is not None else False,
            lost=waiting.lost if waiting is not None else (),
            fresh=not scan and ledger.is_fresh(step, tasks),
            generation=ledger.generation,
            rehearse=candidate.rehearse,
            scan=scan,
        )
        ledger.issue(chunk)
        self._count(candidate, chunk)
        self._suspect(candidate, chunk)
        mean = ledger.runtimes.mean(step)
        candidate.share.served += 0.0 if scan else len(tasks) * (1.0 if mean is None else max(mean, LEAST_MEAN))
        if candidate.priority:
            band = URGENT if candidate.priority > 0 else BULK
        return Issue(subjects.Route(*self._key(candidate, ledger.lane(chunk)), band), chunk)


def _is_tried(ledger: Ledger, step: int) -> bool:
    return ledger.runtimes.mean(step) is not None


def _split(tasks: TaskSet, most: int) -> tuple[TaskSet, TaskSet | None]:
    """Return the ``most`` lowest tasks of a set, and the rest."""
    taken = lowest(tasks.bits, most)
    first = TaskSet.from_bits(tasks.first, taken)
    assert first is not None
    return first, TaskSet.from_bits(tasks.first, tasks.bits & ~taken)


def next_chunks(
    candidates: list[Candidate],
    capacity: Mapping[tuple[str, str, str], Capacity],
    *,
    window: float,
    now: float,
    clocks: Clocks | None = None,
) -> Iterator[Issue]:
    """Yield the chunks to publish now, each noted as issued in its ledger, in the order of publication.

    Args:
        candidates: the studies that may issue; each ``share`` is brought up to date.
        capacity: what live agents can take, by (site, queue, shape).
        window: how far ahead of the agents to publish, in seconds of measured work.
        now: Unix seconds by the broker's clock, for retries.
        clocks: what the rounds before left, brought up to date; None for a round of its own.
    """
    unroller, clocks = Unroller(capacity, window), Clocks() if clocks is None else clocks
    for candidate in candidates:
        unroller.count_out(candidate)
    entered = _enter(unroller, candidates, clocks, now)
    hungry = [(-each.priority, each.share.served, at) for at, each in enumerate(candidates)]
    heapq.heapify(hungry)
    issued = 0
    while hungry and issued < MAX_BATCH:
        _, served, at = heapq.heappop(hungry)
        candidate = candidates[at]
        issue = unroller.take(candidate, now)
        if issue is not None:
            route = issue.route
            clocks.tick(served, candidate.priority, (route.site, route.queue, route.shape))
            unroller.competing.add(candidate.uid)
            heapq.heappush(hungry, (-candidate.priority, candidate.share.served, at))
            issued += 1
            yield issue
    left = {candidates[at].uid for _, _, at in hungry}
    clocks.competing = frozenset(unroller.competing | left & entered)


def _enter(unroller: Unroller, candidates: list[Candidate], clocks: Clocks, now: float) -> frozenset[str]:
    """Let those compete that have something to publish now and had nothing in the last round; return all who do."""
    competing = set()
    for candidate in candidates:
        is_same = candidate.share.among == (candidate.priority, candidate.site)
        if candidate.uid not in clocks.competing or not is_same:
            wanted = unroller.wanted(candidate, now)
            if not wanted:
                continue
            clocks.enter(candidate.share, candidate.priority, wanted)
        competing.add(candidate.uid)
    return frozenset(competing)
