"""Hosts on which everything fails: which of them get no work for a while. Pure: time is an argument.

A host with a broken mount or a dead GPU fails its tasks in no time, so it takes more of them than all sound hosts together. It
is told from a script that fails by what other hosts make of the same steps meanwhile: a host is quarantined whose last
chunks in a row all failed, where it would be a chance of less than one in 10⁹ that a host as good as the others had
such a row. Where the others fail alike there is no such chance, and nobody is quarantined; nor is more than half of a site.

What it failed is then judged to be lost with the host, once: it runs again elsewhere. If it fails there too, that stands, and
where most of it does, the host is released. Else it proves itself after a while with one chunk at a time; each that fails doubles the while.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.taskset import TaskSet

LEAST_CHUNKS: Final = 5
"""Chunks in a row of which everything failed, at least."""
CHANCE: Final = 1e-9
"""How probable such a row may be on a host like the others: 10⁸ tasks make a tenth of a mistake."""
PERIOD: Final = 600.0
"""Seconds of a first quarantine."""
LONGEST: Final = 4 * 3600.0
FORGOTTEN: Final = 3600.0
"""Seconds after its end that a quarantine is remembered of a host that is not heard of."""
_RECENT: Final = 512
"""Reports on a step that are remembered."""
_STREAK: Final = 4096
"""Reports of one host's row that are remembered, and can be excused."""
_WINDOW: Final = 1 << 16
_AT_ONCE: Final = 24
"""Sets of one verdict: with masks of 8 KiB each a quarter of what a message may have."""

Place = tuple[str, str]
"""A site and a host of it."""
Step = tuple[str, int]
"""A study and a step of it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a report said of the tasks of a chunk that ended on a host; ``at`` in Unix seconds by the broker's clock."""

    place: Place
    step: Step
    fence: int
    attempt: int
    at: float
    succeeded: tuple[TaskSet, ...] = ()
    failed: tuple[TaskSet, ...] = ()
    seconds: float = 0.0


Spared = Callable[[int, TaskSet, int], TaskSet | None]
"""Those of a step's tasks, failed in a chunk of a fence, that are not dropped since; None: all are."""


def _all(step: int, tasks: TaskSet, fence: int) -> TaskSet | None:
    """Spare everything: for a study of which nothing was dropped."""
    del step, fence
    return tasks


@dataclass(slots=True)
class _Group:
    """What a host failed of one step at one attempt; ``fence``: the newest of its chunks."""

    tasks: Bitmap = field(default_factory=Bitmap)
    seconds: float = 0.0
    fence: int = 0

    def add(self, told: Told, failed: Iterable[TaskSet]) -> None:
        self.seconds += told.seconds
        self.fence = max(self.fence, told.fence)
        for each in failed:
            self.tasks.add(each)

    def seconds_of(self, some: TaskSet) -> float:
        return self.seconds * len(some) / len(self.tasks)


@dataclass(slots=True)
class _Trial:
    """What other hosts made of the tasks that a host was excused for."""

    tasks: dict[Step, Bitmap] = field(default_factory=lambda: defaultdict(Bitmap))
    succeeded: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Row:
    """What a host failed since its last success; ``fences`` counts its chunks, by step."""

    since: float
    told: deque[Told] = field(default_factory=lambda: deque(maxlen=_STREAK))
    fences: dict[Step, set[int]] = field(default_factory=dict)

    def add(self, told: Told) -> None:
        self.told.append(told)
        self.fences.setdefault(told.step, set()).add(told.fence)

    @property
    def chunks(self) -> int:
        return sum(map(len, self.fences.values()))


class Watch:
    """The evidence on all hosts of a namespace, and who is quarantined (``held``)."""

    def __init__(self, *, least: int = LEAST_CHUNKS, period: float = PERIOD) -> None:
        """``least``: chunks in a row, 0 to quarantine nobody; ``period``: seconds of a first quarantine."""
        self.held: dict[Place, wire.Quarantine] = {}
        self._least, self._period = least, period
        self._rows: dict[Place, _Row] = {}
        self._recent: dict[Step, deque[tuple[float, Place, bool]]] = {}
        self._good: dict[Step, tuple[tuple[float, Place], ...]] = {}
        """The last successes of two hosts, the later one first."""
        self._trials: dict[Place, _Trial] = {}
        self._due: dict[tuple[str, Place], list[Told]] = {}

    def tell(self, told: Told) -> None:
        """Take note of a report."""
        if not self._least or not (told.succeeded or told.failed):
            return
        fresh = self._tried(told)
        if told.place in self.held:
            self._tell_held(told, fresh)
        elif told.succeeded:
            self._rows.pop(told.place, None)
            self._note(told, good=True)
        elif fresh:
            self._rows.setdefault(told.place, _Row(told.at)).add(replace(told, failed=fresh))
            self._note(told, good=False)

    def _tried(self, told: Told) -> tuple[TaskSet, ...]:
        """Settle trials of other hosts; return what failed and speaks against this one."""
        failed = list(told.failed)
        for place, trial in self._trials.items():
            tasks = trial.tasks.get(told.step)
            if tasks is None:
                continue
            if place != told.place:
                trial.succeeded += _common(tasks, told.succeeded)
                trial.failed += _common(tasks, told.failed)
            left = (TaskSet.from_bits(each.first, each.bits & ~tasks.read(each.first, each.width)) for each in failed)
            failed = [each for each in left if each is not None]
        return tuple(failed)

    def _tell_held(self, told: Told, fresh: tuple[TaskSet, ...]) -> None:
        quarantine = self.held[told.place]
        proving = told.at >= quarantine.until
        if told.succeeded and proving:
            self._release(told.place)
        elif not told.succeeded:
            if fresh:
                self._excuse([replace(told, failed=fresh)])
            if proving:
                times = quarantine.times + 1
                until = told.at + min(LONGEST, self._period * 2 ** min(times - 1, 16))
                self.held[told.place] = quarantine.model_copy(update={"until": until, "times": times})

    def _note(self, told: Told, *, good: bool) -> None:
        self._recent.setdefault(told.step, deque(maxlen=_RECENT)).append((told.at, told.place, good))
        if good:
            others = (each for each in self._good.get(told.step, ()) if each[1] != told.place)
            self._good[told.step] = ((told.at, told.place), *others)[:2]

    def judge(self, now: float, hosts: AbstractSet[Place]) -> None:
        """Quarantine, release and forget, as it stands at ``now``; ``hosts`` are those with agents that take work."""
        for place, trial in list(self._trials.items()):
            if place in self.held and trial.failed >= self._least and trial.failed > trial.succeeded:
                self._release(place)
        for place in [place for place in self.held if self._forgettable(place, now, hosts)]:
            self._release(place)
        for place, row in sorted(self._rows.items(), key=lambda item: -item[1].chunks):
            if row.chunks < self._least:
                break
            if self._chance(place, row) <= CHANCE and self._may(place, hosts):
                self._hold(place, row, now)

    def _hold(self, place: Place, row: _Row, now: float) -> None:
        tasks = sum(len(each) for told in row.told for each in told.failed)
        why = f"its last {row.chunks} chunks failed, {tasks} tasks, while other hosts succeeded in the same steps"
        self.held[place] = wire.Quarantine(site=place[0], host=place[1], since=now, until=now + self._period, why=why)
        del self._rows[place]
        self._excuse(row.told)

    def _forgettable(self, place: Place, now: float, hosts: AbstractSet[Place]) -> bool:
        """Whether nobody else is left at the site to do the work, or the host is long gone."""
        if place in hosts:
            return not any(other[0] == place[0] and other not in self.held for other in hosts)
        return now > self.held[place].until + FORGOTTEN

    def _may(self, place: Place, hosts: AbstractSet[Place]) -> bool:
        here = {host for host in hosts if host[0] == place[0]}
        return place in here and 2 * (1 + sum(host in self.held for host in here)) <= len(here)

    def _chance(self, place: Place, row: _Row) -> float:
        """Return how probable such a row is on a host like the others."""
        chance = 1.0
        for step, fences in row.fences.items():
            chance *= self._share(step, place, row.since) ** len(fences)
        return chance

    def _share(self, step: Step, place: Place, since: float) -> float:
        """Return how probably a chunk of a step fails on another host, by what was told since then; 1 if nothing was."""
        if not any(at >= since and other != place for at, other in self._good.get(step, ())):
            return 1.0
        counts: dict[Place, list[int]] = defaultdict(lambda: [0, 0])
        turned = False
        for at, other, good in reversed(self._recent.get(step, ())):
            if other == place or other in self.held:
                continue
            if at < since and (turned or not counts):
                break  # what held before says nothing of a time at which others fail, too
            turned = turned or not good
            counts[other][good] += 1
        if not any(good for _, good in counts.values()):
            return 1.0
        return sum((bad + 1) / (bad + good + 2) for bad, good in counts.values()) / len(counts)

    def _excuse(self, row: Iterable[Told]) -> None:
        for told in row:
            trial = self._trials.setdefault(told.place, _Trial())
            for each in told.failed:
                trial.tasks[told.step].add(each)
            self._due.setdefault((told.step[0], told.place), []).append(told)

    def _release(self, place: Place) -> None:
        del self.held[place]
        self._rows.pop(place, None)

    def take(self, study: str, spared: Spared = _all) -> tuple[str, tuple[wire.Excuse, ...]] | None:
        """Return a host and what it failed of a study, to be judged as lost with it; each only once.

        ``spared``: given a step, tasks and the fence that failed them, those of them that are not dropped since.
        """
        key = next((key for key in self._due if key[0] == study), None)
        if key is None:
            return None
        groups: dict[tuple[int, int], _Group] = {}
        for told in self._due.pop(key):
            left = [spared(told.step[1], each, told.fence) for each in told.failed]
            if failed := [each for each in left if each is not None]:
                groups.setdefault((told.step[1], told.attempt), _Group()).add(told, failed)
        excuses = [
            (wire.Excuse(step=step, attempt=attempt, tasks=found, seconds=group.seconds_of(found)), group.fence)
            for (step, attempt), group in sorted(groups.items(), key=lambda item: item[0])
            for found in group.tasks.sets(_WINDOW)
        ]
        for excuse, fence in excuses[_AT_ONCE:]:
            at = (study, excuse.step)
            rest = Told(key[1], at, fence, excuse.attempt, 0.0, failed=(excuse.tasks,), seconds=excuse.seconds)
            self._due.setdefault(key, []).append(rest)
        return (key[1][1], tuple(excuse for excuse, _ in excuses[:_AT_ONCE])) if excuses else None

    @property
    def blamed(self) -> set[str]:
        """The studies of which a host failed something that is still to be taken."""
        return {study for study, _ in self._due}

    def forget(self, studies: AbstractSet[str]) -> None:
        """Forget what was told of studies that are not among these."""
        for by_step in (self._recent, self._good):
            for step in [step for step in by_step if step[0] not in studies]:
                del by_step[step]
        for key in [key for key in self._due if key[0] not in studies]:
            del self._due[key]
        self._rows = {place: kept for place, row in self._rows.items() if (kept := _kept(row, studies)) is not None}
        for trial in self._trials.values():
            for step in [step for step in trial.tasks if step[0] not in studies]:
                del trial.tasks[step]


def _kept(row: _Row, studies: AbstractSet[str]) -> _Row | None:
    """Return what is left of a row without other studies."""
    if all(step[0] in studies for step in row.fences):
        return row
    told = [each for each in row.told if each.step[0] in studies]
    if not told:
        return None
    kept = _Row(told[0].at)
    for each in told:
        kept.add(each)
    return kept


def _common(tasks: Bitmap, sets: Iterable[TaskSet]) -> int:
    return sum((tasks.read(each.first, each.width) & each.bits).bit_count() for each in sets)
