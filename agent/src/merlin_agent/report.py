"""From tasks that ended to reports of at most 64 KiB: equal ends travel as one set, a few failures in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from merlin_agent.chunkrun import Ended
from merlin_study import wire
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

WINDOW: Final = 1 << 18
"""Tasks that one set spans: 32 KiB of mask, 43 KiB as text."""
_BUDGET: Final = wire.MAX_REPORT_BYTES - 2048
"""What the envelope and the report's other fields leave."""


class Pending:
    """What ended since the last report of a chunk."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[Outcome, int], list[int]] = {}
        self._adopted: list[wire.Result] = []
        self._failures: list[wire.Failure] = []
        self._seconds = 0.0
        self._samples: wire.SampleFacts | None = None

    def __bool__(self) -> bool:
        return bool(self._tasks or self._adopted or self._samples or self._failures)

    @property
    def tells_more(self) -> bool:
        """Whether another failure would still be told in full; read by slots, so that they need not look at its output."""
        return len(self._failures) < wire.MAX_EXCEPTIONS

    def add(self, ended: Ended) -> None:
        """Note what became of a task."""
        self._seconds += ended.seconds
        if ended.samples is not None:
            self._samples = ended.samples
        if ended.outcome is not None:
            self._tasks.setdefault((ended.outcome, ended.code), []).append(ended.task)
        if ended.failure is not None and self.tells_more:
            self._failures.append(ended.failure)

    def adopt(self, results: Iterable[wire.Result]) -> None:
        """Note what a lost holder finished."""
        self._adopted.extend(results)

    def reports(
        self, *, agent: str, chunk: wire.Chunk, serial: int, final: bool, refused: str = ""
    ) -> list[wire.Report]:
        """Return the reports to send, numbered from ``serial``, and forget what they tell; at least one if ``final``."""
        results = [*self._adopted, *_results(self._tasks)]
        parts = list(_packed(results, self._failures))
        if final and not parts:
            parts = [((), ())]
        made = [
            wire.Report(
                agent=agent,
                fence=chunk.fence,
                serial=serial + number,
                step=chunk.step,
                attempt=chunk.attempt,
                results=part_results,
                failures=part_failures,
                seconds=self._seconds if number == 0 else 0.0,
                samples=self._samples if number == 0 else None,
                refused=refused[: wire.MAX_TAIL] if number == len(parts) - 1 else "",
                final=final and number == len(parts) - 1,
            )
            for number, (part_results, part_failures) in enumerate(parts)
        ]
        self.__init__()  # type: ignore[misc]
        return made


def _results(tasks: dict[tuple[Outcome, int], list[int]]) -> Iterator[wire.Result]:
    for (outcome, code), indices in tasks.items():
        windows: dict[int, list[int]] = {}
        for index in indices:
            windows.setdefault(index // WINDOW, []).append(index)
        for window in sorted(windows):
            yield wire.Result(outcome=outcome, code=code, tasks=TaskSet.of(windows[window]))


def _packed(
    results: Iterable[wire.Result], failures: Iterable[wire.Failure]
) -> Iterator[tuple[tuple[wire.Result, ...], tuple[wire.Failure, ...]]]:
    """Yield groups that fit a report each, in order."""
    room = _BUDGET
    some_results: list[wire.Result] = []
    some_failures: list[wire.Failure] = []
    items: list[wire.Result | wire.Failure] = [*results, *failures]
    for item in items:
        size = len(item.encode()) + 1
        if size > room and (some_results or some_failures):
            yield tuple(some_results), tuple(some_failures)
            some_results, some_failures, room = [], [], _BUDGET
        if isinstance(item, wire.Result):
            some_results.append(item)
        else:
            some_failures.append(item)
        room -= size
    if some_results or some_failures:
        yield tuple(some_results), tuple(some_failures)
