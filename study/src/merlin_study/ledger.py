"""The ledger: a fold of a study's log, entry by entry in the log's order.

The log is all there is to know: ``Bound`` (which site), ``Start`` (who runs a chunk), ``Report`` (what came of it), and
the operator's words: ``Withdrawn`` (a chunk that nobody will start), ``Lost`` (its holder is gone), ``Dropped`` (what waits
is cancelled), ``Restarted`` (what is over runs again), ``Repaired`` (what was lost of the log is told again). Folding the
same log gives the same ledger, wherever and however often; an entry that comes twice changes nothing. Time enters only as
the broker's timestamp of an entry, so the moment at which a retry is due is a function of the log as well.

Rules, per task: success absorbs; what comes after a final outcome is counted and not applied; restarts and retries
spend one budget (`merlin_study.outcome.after_budget`); a loss spends none. A task is in at most one *current* fence; a
fence called lost may still bring successes, nothing else of it counts, because the fence that replaced it will tell. After
`MAX_LOSSES` holders in turn, or hosts of theirs that it ran over, were lost with a task it is failed: whatever it does, it
takes them with it. What failed on a host that fails everything is judged to be lost with it (``Excused``), also where the failure had been final.

It is read in this order, each chapter upon the one before: `merlin_study.late` (what may still come of fences that are gone, and
what a log that was lost takes to be told anew), `merlin_study.outstanding` (chunks go out and come back, and what waits),
`merlin_study.verdicts` (what the operator decides), `merlin_study.told` (what agents tell), and here the log itself.
"""

from __future__ import annotations

from typing import assert_never

from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.told import Told
from merlin_study.verdicts import EXCUSED, MAX_LOSSES, RESTART

__all__ = ["EXCUSED", "MAX_LOSSES", "RESTART", "Ledger"]


class Ledger(Told):
    """The state of one study; see the module for its rules."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.bound: wire.Bound | None = None
        self.first_at: float | None = None

    # What the log says

    def apply(self, entry: wire.Entry, *, at: float) -> None:
        """Fold one entry that the broker stored at ``at`` (Unix seconds)."""
        self._fold_now = at
        self.entries += 1
        if self.first_at is None and isinstance(entry, wire.Bound | wire.Start | wire.Report):
            self.first_at = at
        match entry:
            case wire.Start():
                self._start(entry)
            case wire.Report():
                self._report(entry, at)
            case wire.Bound():
                self.bound = self.bound or entry
            case wire.Recalled():
                self.late.recall(entry)
            case wire.Withdrawn():
                self._withdrawn(entry)
            case _:
                self._verdict(entry)

    def _verdict(
        self, entry: wire.Noted | wire.Lost | wire.Excused | wire.Dropped | wire.Restarted | wire.Repaired
    ) -> None:
        match entry:
            case wire.Noted():
                self._note(entry)
            case wire.Lost():
                self._lose(entry)
            case wire.Dropped():
                self._drop(entry)
            case wire.Restarted() | wire.Excused():
                self._anew(entry)
            case wire.Repaired():
                self._repair(entry)
            case _:
                assert_never(entry)

    # What is asked of it; chunks and what waits: `merlin_study.outstanding`

    @property
    def repaired(self) -> int:
        """The epoch up to which the log says all that happened."""
        return self.late.repaired

    @property
    def recalled(self) -> dict[str, wire.Recalled]:
        """By site, the last word on what its workspace recorded."""
        return self.late.recalled

    @property
    def finished(self) -> bool:
        """Whether every task has a final outcome, and no mark of one is being looked at."""
        return all(step.complete for step in self.steps) and self.scan.idle and not self.scanning

    @property
    def scanning(self) -> bool:
        """Whether marks are still to be looked at."""
        return self.scan.waits or any(fence.chunk.scan for fence in self.fences.values())

    @property
    def still(self) -> bool:
        """Whether it is finished, and nothing that came of it waits for its time."""
        asked = self.stops.stop_asked is not None or self.stops.hard_failed
        return self.finished and not self.fences and not asked
