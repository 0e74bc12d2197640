"""Which chunks stand in the way of a study of higher priority: a pure decision over what is published and not started.

A consumer hands out chunks in the order of their publication. So where a study that could use a route right now finds chunks
of lower priority waiting there in the same band, these are withdrawn, and issued again behind it. Where priorities stay as they are there are
none: what is left of a window goes to the highest priority first. A study that no site has taken yet is overtaken by such
studies only: one that is bound to a site would keep it from all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from merlin_operator.unroll import Candidate
from merlin_study import subjects, wire


def overtaken(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Return, by study, the fences to withdraw."""
    if len({candidate.priority for candidate in candidates}) < 2:
        return {}
    wanted = [(candidate.priority, *key) for candidate in candidates for key in _wants(candidate)]
    found: dict[str, list[int]] = {}
    for candidate in candidates:
        above = [each for each in wanted if each[0] > candidate.priority]
        for number, fence in candidate.ledger.fences.items() if above else ():
            if fence.holder is None and any(_stands_before(candidate, fence.chunk, *each) for each in above):
                found.setdefault(candidate.uid, []).append(number)
    return found


def _wants(candidate: Candidate) -> set[tuple[str, str, str]]:
    """Return (site, queue, shape) of what a study could issue at once. One that bounds what is in flight waits its turn."""
    ledger = candidate.ledger
    if candidate.most is not None:
        return set()
    return {
        (candidate.site, lane.queue, lane.shape)
        for step, tasks in enumerate(ledger.steps)
        if tasks.available
        for number, lane in enumerate(ledger.plan.steps[step].lanes)
        if tasks.next_tasks(1, number, ledger.geometry.runs(step, number)) is not None
    }


def _stands_before(candidate: Candidate, chunk: wire.Chunk, priority: int, site: str, queue: str, shape: str) -> bool:
    ledger = candidate.ledger
    lane = ledger.lane(chunk)
    if (lane.queue, lane.shape) != (queue, shape) or site not in (subjects.ANY_SITE, candidate.site):
        return False
    if priority <= 0:  # then the lower one is below 0, and both are in the bulk band
        return True
    return candidate.priority > 0 or (
        candidate.priority == 0 and (chunk.step in ledger.dag.downstream or chunk.attempt > 1 or bool(chunk.lost))
    )
