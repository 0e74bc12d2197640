"""What may still come of fences that are no longer what the log goes by, and of claims that it has not told yet.

A holder that was called lost may tell of successes later. A log that was lost and is told anew comes fence by fence, not in
the order in which all happened: a later chunk may name as lost whose claim is still to come, a report may come before its claim,
and where a broker was put back to an older state two agents may have claimed one fence. Here is what the ledger has to remember of
each, and what it concludes from that; nothing here changes a task.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

from merlin_study import wire
from merlin_study.bitmap import Bitmap
from merlin_study.fence import Fence
from merlin_study.taskset import TaskSet

_ALL_TOLD: Final = 1 << 31
"""As the number of a fence's last report: none of them is still to come."""
KEPT_RETURNED: Final = 4096
"""Fences that were handed back as they were, of which it is remembered by whom."""


class Late:
    """What the ledger remembers of fences that are lost, claimed twice, or not claimed yet."""

    def __init__(self) -> None:
        self.lost_serials: dict[int, tuple[wire.Chunk, int]] = {}
        """By fence that was called lost, its chunk and the last report that was heard of it."""
        self.superseded: dict[int, list[TaskSet]] = {}
        """Fences whose start has not come, with what later chunks that name them as lost hold: only in a log that was told anew."""
        self.early: dict[int, list[tuple[wire.Report, float]]] = {}
        """By fence, reports whose claim has not come, and when they did: only in a log that is told anew."""
        self.rivals: dict[tuple[int, str], Fence] = {}
        """By fence and agent, who claimed a fence beside its holder: only where a broker that was put back let it be claimed twice."""
        self.returned: dict[int, str] = {}
        """By fence, who handed it back as it was: somebody else may have claimed it before, and run it. The last `KEPT_RETURNED` of them."""
        self.recalled: dict[str, wire.Recalled] = {}
        """By site, the last word on what its workspace recorded."""
        self.repaired = 1
        """The epoch up to which the log says all that happened."""

    @property
    def fleeting(self) -> bool:
        """Whether there is something that no snapshot keeps (`merlin_study.snapshot`): a log is being told anew."""
        return bool(self.early or self.rivals)

    def is_past(self, fence: int) -> bool:
        """Whether a fence is of an epoch of which the log says all."""
        return fence < wire.first_fence(self.repaired)

    # Holders that are lost

    def lose(self, chunk: wire.Chunk, serial: int) -> None:
        """Remember a fence that was called lost, and the last report that was heard of it."""
        self.lost_serials[chunk.fence] = (chunk, serial)

    def infer_lost(self, fence: int, by: wire.Chunk) -> None:
        """Remember of a fence that closed as any other, since all it told came before who names it as lost, that it was lost.

        Which tasks it had is known no more, but that those of later chunks ``by`` are among them.
        """
        chunk, serial = self.lost_serials.get(fence, (by, _ALL_TOLD))
        first = min(by.tasks.first, chunk.tasks.first)
        tasks = TaskSet.from_bits(first, by.tasks.bits_from(first) | chunk.tasks.bits_from(first))
        self.lost_serials[fence] = chunk.model_copy(update={"fence": fence, "tasks": tasks}), serial

    def hear(self, report: wire.Report) -> wire.Chunk | None:
        """Note a report of nobody who holds its fence now; return whose successes it may tell. None: it tells nothing (more).

        So may who was called lost.
        """
        chunk, serial = self.lost_serials.get(report.fence, (None, 0))
        if chunk is None or report.serial <= serial:
            return None
        self.lost_serials[report.fence] = (chunk, report.serial)
        return chunk

    def unexplained(self, step: int, first: int, bits: int) -> int:
        """Count the tasks that no holder was lost with: a lost one may succeed while a later attempt of another runs.

        So may one beside whom another claimed the fence: that one adopts what it finds recorded.
        """
        for chunk in (
            *(chunk for chunk, _ in self.lost_serials.values()),
            *(each.chunk for each in self.rivals.values()),
        ):
            if chunk.step == step:
                bits &= ~chunk.tasks.bits_from(first)
        return bits.bit_count()

    def reopen(self, again: Sequence[Bitmap]) -> None:
        """Forget who was lost with tasks that run ``again`` (a bitmap per step): what a zombie of before tells says nothing of that."""
        for fence, (chunk, _) in list(self.lost_serials.items()):
            if again[chunk.step].read(chunk.tasks.first, chunk.tasks.width) & chunk.tasks.bits:
                del self.lost_serials[fence]

    # A log that is told anew

    def supersede(self, fence: int, by: TaskSet) -> None:
        """Remember that a fence whose claim is still to come was lost, and that a later chunk holds these of its tasks."""
        self.superseded.setdefault(fence, []).append(by)

    def await_claim(self, report: wire.Report, at: float) -> None:
        """Keep a report that came at ``at`` until its claim does."""
        self.early.setdefault(report.fence, []).append((report, at))

    def compete(self, chunk: wire.Chunk, agent: str) -> None:
        """Remember who claimed a fence beside its holder."""
        self.rivals.setdefault((chunk.fence, agent), Fence(chunk, chunk.tasks.bits, agent))

    def beside(self, fence: int) -> list[Fence]:
        """Return what those have of a fence who claimed it beside its holder."""
        return [each for (number, _), each in self.rivals.items() if number == fence] if self.rivals else []

    def heir(self, fence: int) -> Fence | None:
        """Take of those who claimed a fence beside its holder one that goes on, now that this one does not; None where there is none."""
        found = next((each for each in self.beside(fence) if each.open and not each.over), None)
        if found is not None and found.holder is not None:
            del self.rivals[fence, found.holder]
        return found

    def give_back(self, fence: int, agent: str) -> None:
        """Remember who handed a fence back as it was."""
        self.returned[fence] = agent
        if len(self.returned) > KEPT_RETURNED:
            del self.returned[next(iter(self.returned))]

    def was_anothers(self, fence: int, agent: str) -> bool:
        """Whether somebody else than this agent has handed a fence back as it was, so that this one may run it."""
        return self.returned.get(fence, agent) != agent and not self.is_past(fence)

    def close(self, fence: int) -> None:
        """Note that a fence is over; no other claim of one of a past epoch counts then."""
        if self.is_past(fence):
            self.early.pop(fence, None)
        if self.rivals and self.is_past(fence):
            self.rivals = {key: chunk for key, chunk in self.rivals.items() if key[0] != fence}

    def recall(self, entry: wire.Recalled) -> None:
        """Take an agent's word on its site's workspace, unless another one knows better: sees one that it can't read, and this one none."""
        known = self.recalled.get(entry.site)
        asked = (entry.epoch, entry.reading)
        is_other = known is not None and known.agent != entry.agent and (known.epoch, known.reading) == asked
        if known is None or not (is_other and known.unread and not (entry.found or entry.unread)):
            self.recalled[entry.site] = entry

    def repair(self, epoch: int, held: Container[int]) -> None:
        """Take the log as whole up to an epoch: of fences that are not ``held`` no claim is to come."""
        self.repaired = max(self.repaired, epoch)
        self.early.clear()
        self.rivals = {key: chunk for key, chunk in self.rivals.items() if key[0] in held}
        self.superseded.clear()
        self.returned = {fence: agent for fence, agent in self.returned.items() if not self.is_past(fence)}
