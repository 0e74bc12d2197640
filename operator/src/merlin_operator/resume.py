"""A study's past from its workspace alone: what the agents' outcome logs say, told to a new log.

``merlin restart DIR`` has no broker that remembers. The successes that the outcome logs record are appended to the new
log as if one agent had just reported them; everything else runs again, as upstream's restart does (it skips directories
with ``MERLIN_FINISHED``). Sets of tasks, not tasks: a window of the bitmap is one report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from merlin_study import outcomelog, wire
from merlin_study.bitmap import Bitmap
from merlin_study.dag import Dag
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.reopen import WINDOW
from merlin_study.workspace import OUTCOMES

HERALD: Final = "restart"
"""Who the entries are from."""


def read_outcomes(info: Path) -> Iterator[outcomelog.Entry]:
    """Yield the entries of all outcome logs below ``merlin_info``."""
    for path in sorted((info / OUTCOMES).glob("*.jsonl")):
        yield from outcomelog.decode_lines(path.read_bytes()).entries


def successes(
    study: str, plan: Plan, entries: Iterable[outcomelog.Entry]
) -> tuple[list[Bitmap], wire.SampleFacts | None]:
    """Return each step's tasks that succeeded, and what is known of the samples.

    The study counts, not the plan's hash: a workspace that was moved has a plan with other paths and the same tasks.
    """
    done = [Bitmap() for _ in plan.steps]
    facts: wire.SampleFacts | None = None
    for entry in entries:
        report = entry.report
        if report is None or entry.study != study or report.step >= len(done):
            continue
        facts = report.samples or facts
        for result in report.results:
            if result.outcome is Outcome.SUCCEEDED:
                done[report.step].add(result.tasks)
    return done, facts


def entries(
    study: str, plan: Plan, done: list[Bitmap], facts: wire.SampleFacts | None
) -> Iterator[wire.Start | wire.Report]:
    """Yield a start and a final report for each set of tasks that succeeded, fences counted from 1."""
    fence = 0
    for step, tasks in enumerate(done):
        for found in tasks.sets(WINDOW):
            fence += 1
            chunk = wire.Chunk(
                study=study,
                plan=plan.hash,
                epoch=1,
                fence=fence,
                step=step,
                tasks=found,
                attempt=1,
                samples=facts.count if facts is not None else Dag(plan).geometry.samples,
            )
            yield wire.Start(agent=HERALD, chunk=chunk)
            yield wire.Report(
                agent=HERALD,
                fence=fence,
                serial=1,
                step=step,
                attempt=1,
                results=(wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=found),),
                samples=facts if step == 0 else None,
                final=True,
            )
