"""Where tasks of several hosts run: which hosts, when all of what a task needs there is kept for it, and what comes after it.

    chunk ─► placed (hosts chosen, each asked to keep cores) ─► all kept ─► started ─► over ─► the next one, or given back

Placing is in turn: no task of several hosts overtakes another. What hosts keep for a task that is over goes to the next one of the same
size without a gap, in which smaller tasks would take the cores and have to end first. Decisions only: hosts are asked through `Node`, and
everything is called from the event loop.

Hosts are ready one after the other. Once each has said when it will be, as far as its tasks' measured times tell, those that are ready
earlier are lent what they keep until the last one is: they go on with tasks that will have ended by then. When the others are ready, what is
lent is called back. So each placement is lent once and called back once, and its task starts no later than the last of the times that were said, but for
the rest of a task that took longer than was foreseen, and the time that words take.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from merlin_agent.chunkrun import ChunkRun
from merlin_agent.resources import Share
from merlin_study.shape import Shape

if TYPE_CHECKING:
    from merlin_agent.slots import Work


_WORTH: Final = 0.1
"""Seconds for which lending is worth the words."""


class Node(Protocol):
    """A host whose agent keeps cores for us."""

    host: str
    cores: int
    gpus: int

    def keep(self, key: str, needs: Shape) -> None:
        """Have cores and GPUs kept as they become free; `Wide.kept` tells that they are."""

    def lend(self, key: str, turn: int, seconds: float) -> None:
        """Let them be used for so long, and kept again then; `Wide.kept` tells that of this turn. 0: no longer."""

    def release(self, key: str) -> None:
        """Have them given back."""


@dataclass(slots=True)
class _Grant:
    """What one host keeps, or has been asked to."""

    key: str
    host: str
    cores: int
    gpus: int
    kept: bool = False
    turn: int = 0
    """How often it was lent or called back; a host may say of an earlier turn that it keeps it."""
    ready: float | None = None
    """When the host will be ready, as it said; None where it did not."""
    lent: bool = False
    cpus: frozenset[int] = frozenset()
    """Which processors are kept; none where the host is kept whole, or binds nothing."""

    def is_like(self, needs: Shape) -> bool:
        return (self.cores, self.gpus) == (needs.cores, needs.gpus)


@dataclass(eq=False, slots=True)
class _Placement:
    """A task-to-be of a chunk, and the hosts chosen for it."""

    run: ChunkRun
    work: Work
    needs: Shape
    grants: list[_Grant] = field(default_factory=list)
    lent: bool = False
    """Whether anything of it was lent; once is enough."""


Start = Callable[[ChunkRun, "Work", Share], bool]
"""Starts the next task of a chunk over the hosts of a share; False where it has none left."""


class Wide:
    """All tasks of several hosts that an agent has claimed."""

    def __init__(
        self,
        start: Start,
        impossible: Callable[[ChunkRun], None],
        *,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without hosts.

        Args:
            start: See `Start`.
            impossible: Told of a chunk for which there are too few hosts by now.
            most: How many such tasks run at once.
            clock: Seconds.
        """
        self._clock = clock
        self._start, self._impossible, self._most = start, impossible, most
        self.nodes: dict[str, Node] = {}
        self._chunks: tuple[deque[_Placement], ...] = (deque(), deque())
        self._placed: list[_Placement] = []
        self._running: dict[str, _Placement] = {}
        self._grants: dict[str, _Grant] = {}
        self._numbers = itertools.count(1)

    @property
    def waiting(self) -> int:
        """How many tasks have not started."""
        return sum(each.run.left for queue in self._chunks for each in queue)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return len(self._running)

    def hosts(self, *, cores: int, gpus: int) -> int:
        """Return how many hosts have so many cores and GPUs at least."""
        return sum(node.cores >= cores and node.gpus >= gpus for node in self.nodes.values())

    def add(self, run: ChunkRun, work: Work, needs: Shape) -> None:
        """Run a chunk's tasks."""
        run.feed()
        self._chunks[0 if run.urgent else 1].append(_Placement(run, work, needs))
        self.plan()

    def join(self, node: Node) -> None:
        """Use a host from now on."""
        self.nodes[node.host] = node
        self.plan()

    def part(self, node: Node) -> None:
        """A host's agent is gone: nothing more starts there. What runs there goes on for now; see `over_host`."""
        if self.nodes.get(node.host) is not node:
            return
        del self.nodes[node.host]
        for placement in self._placed:
            for grant in placement.grants:
                if grant.host == node.host:
                    del self._grants[grant.key]
            placement.grants = [grant for grant in placement.grants if grant.host != node.host]
        for queue in self._chunks:
            for each in list(queue):
                if not self.can(each.needs):
                    self._impossible(each.run)
        self.plan()

    def over_host(self, host: str) -> frozenset[str]:
        """Return the tasks, by the names of their shares, that run over a host among others."""
        return frozenset(
            task for task, each in self._running.items() if any(grant.host == host for grant in each.grants)
        )

    def kept(self, key: str, turn: int = 0, cpus: frozenset[int] = frozenset()) -> None:
        """A host keeps what it was asked for, at the last word or at an earlier one, on these processors."""
        grant = self._grants.get(key)
        if grant is not None and grant.turn == turn:
            grant.kept, grant.lent, grant.cpus = True, False, cpus
            self._start_what_can()
            self._lend_or_call_back(grant)

    def expects(self, key: str, seconds: float) -> None:
        """A host will keep what it was asked for in so many seconds, as far as it can tell."""
        if (grant := self._grants.get(key)) is not None:
            grant.ready = self._clock() + seconds
            self._lend_or_call_back(grant)

    def _lend_or_call_back(self, grant: _Grant) -> None:
        placement = next((each for each in self._placed if grant in each.grants), None)
        if placement is None or len(placement.grants) < placement.needs.nodes:
            return
        now = self._clock()
        awaited = [each for each in placement.grants if not each.kept and not each.lent]
        if not awaited:
            for each in placement.grants:
                if each.lent:
                    self._lend(each, 0.0)
        elif not placement.lent and all(each.ready is not None for each in awaited):
            last = max(each.ready or now for each in awaited)
            for each in placement.grants:
                if last - (now if each.kept else each.ready or now) > _WORTH:
                    placement.lent = True
                    self._lend(each, last - now)

    def _lend(self, grant: _Grant, seconds: float) -> None:
        grant.turn += 1
        grant.kept, grant.lent = False, seconds > 0
        self.nodes[grant.host].lend(grant.key, grant.turn, seconds)

    def knows(self, key: str) -> bool:
        """Whether a host should keep this."""
        return key in self._grants

    def over(self, task: str) -> None:
        """A task has ended; its name is that of its `Share`."""
        self._plan(spare=self._running.pop(task).grants)

    def plan(self) -> None:
        """Place what can be placed, and give back what nothing needs; call it when a chunk is stopped, too."""
        self._plan(spare=[])

    def _plan(self, *, spare: list[_Grant]) -> None:
        for grant in spare:
            if grant.host not in self.nodes:
                del self._grants[grant.key]
        spare = [grant for grant in spare if grant.host in self.nodes]
        for queue in self._chunks:
            while queue and queue[0].run.left == 0:
                queue.popleft()
        spare += self._withdrawn()
        short = [each for each in self._placed if len(each.grants) < each.needs.nodes]
        for placement in itertools.chain(short, self._next_ones()):
            if not self._fill(placement, spare):
                self._give_back(spare)  # of another size; together with what is free it may do
                if not self._fill(placement, spare):
                    break
            if placement not in self._placed:
                self._placed.append(placement)
        self._give_back(spare)
        self._start_what_can()

    def _give_back(self, spare: list[_Grant]) -> None:
        for grant in spare:
            del self._grants[grant.key]
            self.nodes[grant.host].release(grant.key)
        spare.clear()

    def _withdrawn(self) -> list[_Grant]:
        """Take back what is placed for tasks that will not start."""
        free: list[_Grant] = []
        for placement in reversed(self._placed[:]):
            if self._count(placement.run) > placement.run.left:
                self._placed.remove(placement)
                free += placement.grants
        return free

    def _count(self, run: ChunkRun) -> int:
        return sum(each.run is run for each in self._placed)

    def _next_ones(self) -> Iterator[_Placement]:
        """Yield a new placement for each task that has none, urgent ones first, as long as the last one was placed."""
        for queue in self._chunks:
            for chunk in list(queue):
                while chunk.run.left > self._count(chunk.run):
                    if len(self._placed) + len(self._running) >= self._most:
                        return
                    yield _Placement(chunk.run, chunk.work, chunk.needs)

    def _fill(self, placement: _Placement, spare: list[_Grant]) -> bool:
        """Choose the hosts that a placement lacks; spare ones first, then in their order, so that the last ones stay free."""
        needs = placement.needs
        taken = {grant.host for grant in placement.grants}
        chosen: list[_Grant | Node] = []
        for grant in spare:
            if grant.is_like(needs) and grant.host not in taken and len(taken) < needs.nodes:
                chosen.append(grant)
                taken.add(grant.host)
        for node in self.nodes.values():
            if node.host not in taken and len(taken) < needs.nodes and self._has_room(node, needs):
                chosen.append(node)
                taken.add(node.host)
        if len(taken) < needs.nodes:
            return False
        for each in chosen:
            if isinstance(each, _Grant):
                spare.remove(each)
                placement.grants.append(each)
            else:
                grant = _Grant(f"{next(self._numbers)}", each.host, needs.cores, needs.gpus)
                self._grants[grant.key] = grant
                placement.grants.append(grant)
                each.keep(grant.key, needs)
        return True

    def _has_room(self, node: Node, needs: Shape) -> bool:
        asked = [grant for grant in self._grants.values() if grant.host == node.host]
        cores, gpus = sum(grant.cores for grant in asked), sum(grant.gpus for grant in asked)
        return cores + needs.cores <= node.cores and gpus + needs.gpus <= node.gpus

    def can(self, needs: Shape) -> bool:
        """Whether there are hosts enough for such a task."""
        return self.hosts(cores=needs.cores, gpus=needs.gpus) >= needs.nodes

    def _start_what_can(self) -> None:
        for placement in self._placed[:]:
            if placement not in self._placed:  # what a start that failed has given back
                continue
            if len(placement.grants) == placement.needs.nodes and all(grant.kept for grant in placement.grants):
                self._placed.remove(placement)
                task = f"task-{next(self._numbers)}"
                order = {host: at for at, host in enumerate(self.nodes)}
                hosts = sorted((grant.host for grant in placement.grants), key=lambda host: order.get(host, 0))
                self._running[task] = placement
                pins = tuple((grant.host, grant.cpus) for grant in placement.grants if grant.cpus)
                if not self._start(placement.run, placement.work, Share(0, hosts=tuple(hosts), task=task, pins=pins)):
                    self.over(task)
