"""A study's past from its workspace alone: what the agents' outcome logs say, told to a new log.

``merlin restart DIR`` has no broker that remembers. The successes that the outcome logs record are appended to the new
log as if one agent had just reported them; everything else runs again, as upstream's restart does (it skips directories
with ``MERLIN_FINISHED``). Sets of tasks, not tasks: a window of the bitmap is one report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merlin_study import generations, outcomelog, wire
from merlin_study.bitmap import Bitmap
from merlin_study.dag import Dag
from merlin_study.ledger import RESTART
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan
from merlin_study.reopen import WINDOW
from merlin_study.workspace import OUTCOMES

HERALD: Final = "restart"
"""Who the entries are from."""


def read_outcomes(info: Path) -> Iterator[outcomelog.Entry | generations.Anew]:
    """Yield what all outcome logs below ``merlin_info`` tell."""
    paths = sorted((info / OUTCOMES).glob("*.jsonl"))
    yield from generations.told(outcomelog.decode_lines(path.read_bytes()).entries for path in paths)


@dataclass
class Past:
    """What a workspace records: each step's tasks that succeeded, what is known of the samples, and the last generation."""

    done: list[Bitmap]
    facts: wire.SampleFacts | None = None
    generation: int = 0

    def noted(self) -> wire.Noted:
        """Return the new log's first verdict: it goes on where the restarts of the old one ended."""
        return wire.Noted(tokens=tuple(f"{RESTART}earlier-{each}" for each in range(1, self.generation + 1)))


def recorded(study: str, plan: Plan, told: Iterable[outcomelog.Entry | generations.Anew]) -> Past:
    """Return what stands of what the logs tell.

    The study counts, not the plan's hash: a workspace that was moved has a plan with other paths and the same tasks.
    """
    past = Past([Bitmap() for _ in plan.steps])
    for each in told:
        if isinstance(each, generations.Anew):
            if each.study == study and each.step < len(past.done):
                past.done[each.step].remove(each.tasks)
            continue
        if each.start is not None:
            past.generation = max(past.generation, each.start.chunk.generation)
        report = each.report
        if report is None or each.study != study or report.step >= len(past.done):
            continue
        if report.step == plan.info_step:
            past.facts = report.samples or past.facts
        for result in report.results:
            if result.outcome is Outcome.SUCCEEDED:
                past.done[report.step].add(result.tasks)
    return past


def entries(study: str, plan: Plan, past: Past) -> Iterator[wire.Start | wire.Report]:
    """Yield a start and a final report for each set of tasks that succeeded, fences counted from 1."""
    fence, facts = 0, past.facts
    for step, tasks in enumerate(past.done):
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
                samples=facts if step == plan.info_step else None,
                final=True,
            )
