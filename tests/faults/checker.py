"""Reads the histories of all processes of a run and proves the promise, or says where it was broken.

From the agents' own words: every execution, when it began and how it ended. From the operators': what was issued when, and
which results each of them knew by then. Then, for every task:

- it has an outcome that an agent told, or as many holders in turn were lost with it as may be;
- it was never issued by an operator that had folded a success of it (no success is accepted twice);
- it ran again only after a try that asked for it or was handed back, or whose failure was judged to be its host's, or where one of
  the two fences names the other as lost: the new holder's (or what followed from that) after the lost one's, or the lost one's after
  it came back to life;
- two executions overlap only in the last case; these are counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merlin_study import wire
from merlin_study.ledger import MAX_LOSSES
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

AGAIN = {None, Outcome.RETRY, Outcome.RESTART, Outcome.LOST}
"""Ends after which a task may run again (None: handed back)."""
Task = tuple[str, int, int]
"""Study, step, index."""


@dataclass
class Execution:
    """One run of a task; ``ended`` None where its agent died first."""

    fence: int
    began: int
    ended: int | None = None
    outcome: str | None = None


@dataclass
class Finding:
    """What a run came to."""

    faults: list[str] = field(default_factory=list)
    executions: int = 0
    repeated: int = 0
    """Executions beyond each task's first."""
    overlaps: int = 0
    """Executions that began while an earlier one might still run, each after a verdict of loss."""
    losses: int = 0
    """Verdicts of loss."""


def read(directory: Path) -> list[dict[str, Any]]:
    """Return the events of all processes by time; a last line that was cut short is left out."""
    events = []
    for path in directory.glob("*.jsonl"):
        lines = path.read_bytes().split(b"\n")
        lines.pop()
        events += [json.loads(line) for line in lines]
    return sorted(events, key=lambda event: int(event["at"]))


def check(events: Iterable[Mapping[str, Any]], totals: Mapping[int, int], *, log_stands: bool = False) -> Finding:
    """Check a run of one study.

    Args:
        events: all events in their order; see `read`.
        totals: how many tasks each step has that has to be complete.
        log_stands: nothing of the broker's log was lost, so an operator that has synced knows all that another one had folded.
    """
    finding = Finding()
    known = list(events)
    chunks = dict(_chunks(known))
    executions = _executions(known)
    excused = _excused(known)
    finding.executions = sum(map(len, executions.values()))
    for task, runs in executions.items():
        _check_task(task, runs, chunks, finding, excused=task[1:] in excused)
    over = _check_operators(known, finding, log_stands=log_stands)
    for fence in _lost_in_all(known):
        if len(chunks[fence].lost) + 1 >= MAX_LOSSES:
            over.add(chunks[fence].step, chunks[fence].tasks)
    for step, total in totals.items():
        missing = total - over[step].bit_count()
        if missing:
            finding.faults.append(f"step {step}: {missing} of {total} tasks have no outcome that stands")
    return finding


def _chunks(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, wire.Chunk]]:
    """Yield what was claimed of each fence; an operator may have planned another chunk that another one forestalled."""
    for event in events:
        if event["event"] == "issued":
            chunk = wire.Chunk.model_validate(event["chunk"])
            yield chunk.fence, chunk
    for event in events:
        if event["event"] == "folded" and event["entry"]["kind"] == "start":
            chunk = wire.Chunk.model_validate(event["entry"]["chunk"])
            yield chunk.fence, chunk


def _executions(events: Iterable[Mapping[str, Any]]) -> dict[Task, list[Execution]]:
    found: dict[Task, list[Execution]] = defaultdict(list)
    running: dict[tuple[Task, int, int], Execution] = {}
    for event in events:
        if event["event"] not in ("began", "ended"):
            continue
        task = (event["study"], event["step"], event["task"])
        key = (task, event["fence"], event["pid"])
        if event["event"] == "began":
            running[key] = Execution(event["fence"], event["at"])
            found[task].append(running[key])
        else:
            running[key].ended, running[key].outcome = event["at"], event["outcome"]
    return found


def _excused(events: Iterable[Mapping[str, Any]]) -> set[tuple[int, int]]:
    """Return (step, index) of tasks whose failure was judged to be their host's."""
    return {
        (excuse["step"], index)
        for event in events
        if event["event"] == "folded" and event["entry"]["kind"] == "excused"
        for excuse in event["entry"]["failed"]
        for index in wire.Excuse.model_validate(excuse).tasks.indices()
    }


def _check_task(
    task: Task, runs: list[Execution], chunks: Mapping[int, wire.Chunk], finding: Finding, *, excused: bool
) -> None:
    for number, later in enumerate(runs[1:], start=1):
        finding.repeated += 1
        for at, earlier in enumerate(runs[:number], start=1):
            over = earlier.ended is not None and earlier.ended <= later.began
            if over and (earlier.outcome in AGAIN or (excused and earlier.outcome != Outcome.SUCCEEDED)):
                continue
            # Who took over from a lost holder may have asked for another try, which follows from that one.
            taken_over = any(earlier.fence in _lost(chunks, each.fence) for each in runs[at : number + 1])
            if not taken_over and later.fence not in _lost(chunks, earlier.fence):
                finding.faults.append(
                    f"task {task}: fence {later.fence} ran it again after fence {earlier.fence} "
                    f"({earlier.outcome if over else 'which may still run'}), without a verdict of loss"
                )
            elif not over:
                finding.overlaps += earlier.ended is not None


def _lost_in_all(events: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the fences whose holder an operator called lost."""
    return {e["entry"]["fence"] for e in events if e["event"] == "folded" and e["entry"]["kind"] == "lost"}


def _lost(chunks: Mapping[int, wire.Chunk], fence: int) -> set[int]:
    """Return the fences that a chunk names as lost."""
    chunk = chunks.get(fence)
    return {each.fence for each in chunk.lost} if chunk is not None else set()


class _Tasks(defaultdict[int, int]):
    """Sets of tasks by step, as bits of one number each: a soak has 10⁵ of them, and hundreds of operators."""

    def __init__(self) -> None:
        super().__init__(int)

    def add(self, step: int, tasks: TaskSet) -> None:
        self[step] |= tasks.bits << tasks.first

    def join(self, other: _Tasks) -> None:
        for step, bits in other.items():
            self[step] |= bits


@dataclass
class _Operator:
    """What one operator process knew at a moment."""

    chunks: set[int] = field(default_factory=set)
    succeeded: _Tasks = field(default_factory=_Tasks)
    over: _Tasks = field(default_factory=_Tasks)
    lost: set[int] = field(default_factory=set)

    def fold(self, entry: wire.Entry) -> None:
        if isinstance(entry, wire.Start):
            self.chunks.add(entry.chunk.fence)
        elif isinstance(entry, wire.Lost):
            self.lost.add(entry.fence)
        elif isinstance(entry, wire.Report) and entry.fence in self.chunks:
            for result in entry.results:
                if result.outcome not in AGAIN:
                    self.over.add(entry.step, result.tasks)
                if result.outcome is Outcome.SUCCEEDED:
                    self.succeeded.add(entry.step, result.tasks)

    def join(self, other: _Operator) -> None:
        self.chunks |= other.chunks
        self.lost |= other.lost
        self.succeeded.join(other.succeeded)
        self.over.join(other.over)


def _check_operators(events: Iterable[Mapping[str, Any]], finding: Finding, *, log_stands: bool) -> _Tasks:
    """Check what each operator issued against what it knew; return the tasks with a final outcome."""
    operators: dict[int, _Operator] = defaultdict(_Operator)
    log, newest = _Operator(), 0
    for event in events:
        operator = operators[event["pid"]]
        if event["event"] == "issued":
            chunk = wire.Chunk.model_validate(event["chunk"])
            again = (chunk.tasks.bits << chunk.tasks.first) & operator.succeeded[chunk.step]
            if again and not chunk.fresh:
                finding.faults.append(
                    f"fence {chunk.fence} was issued with {again.bit_count()} tasks of step {chunk.step} that had succeeded, "
                    f"the first is {(again & -again).bit_length() - 1}"
                )
        elif event["event"] == "folded":
            entry = wire.decode_log(json.dumps(event["entry"]).encode())
            operator.fold(entry)
            if event["sequence"] > newest:
                newest = event["sequence"]
                log.fold(entry)
        elif event["event"] == "synced" and log_stands:
            operator.join(log)
        elif event["event"] == "started over":
            operator.succeeded.clear()  # its log is gone; what it learns anew counts
    known = _Operator()
    for each in (log, *operators.values()) if log_stands else operators.values():
        known.join(each)
    finding.losses = len(known.lost)
    return known.over
