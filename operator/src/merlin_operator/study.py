"""One study in the engine: its plan, its ledger, and how both stand to what the broker holds."""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from merlin_operator.board import Submission
from merlin_operator.control import Control, Switches
from merlin_operator.doubt import Past
from merlin_operator.family import Child, Lineage, Ordered
from merlin_operator.shares import Share
from merlin_operator.stream import Stored
from merlin_operator.view import FailureView, StepView, StudyRef, StudyView
from merlin_study import nested, subjects, wire
from merlin_study.errors import SUBMISSION_REFUSED, Fault
from merlin_study.ledger import RESTART, Ledger
from merlin_study.outcome import Outcome
from merlin_study.plan import Plan

RATE_SECONDS: Final = 60.0
"""The span over which tasks a second are measured."""


SKEW: Final = 5.0
"""Seconds by which the clocks of API server and operator may differ."""

STIRRING: Final = frozenset(
    {
        *("folded", "generation", "synced", "cancelled", "torn", "awaited", "epoch"),
        *("switches", "excuse", "word", "recall", "lacking", "end_told"),
    }
)
"""Fields that decide what is to be done for a study: setting one ends its rest."""


def _new_reading() -> str:
    return secrets.token_hex(8)


@dataclass
class Study:
    """A study that the engine looks after.

    ``synced``: the ledger holds everything that the broker has, and ``cursor`` is the sequence to publish after. Only
    then may chunks be issued. ``lacking``: what is not there, such as a file of the study, so that it can't be synced;
    ``unread``: what is to be compiled once its table of parameters is there. ``pending``: log entries that arrived while the past was still being read.
    """

    ref: StudyRef
    generation: int
    plan: Plan | None = None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    accepted_hash: str = ""
    created: float = 0.0
    spec_site: str = ""
    synced: bool = False
    folded: int = 0
    cursor: int = 0
    epoch: int = 1
    verdict: int = 0
    awaited: int = 0
    share: Share = field(default_factory=Share)
    cancelled: bool = False
    ledger: Ledger | None = None
    pending: deque[Stored] = field(default_factory=deque)
    judged: set[tuple[int, str]] = field(default_factory=set)
    """Fences that were called lost, with whom: another one may hold it then, who had claimed it, too."""
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    still_at: int = -1
    still_since: float = 0.0
    inherited: tuple[int, ...] | None = None
    lineage: Lineage = field(default_factory=Lineage)
    children: dict[str, Child] = field(default_factory=dict)
    orders: dict[str, Ordered] = field(default_factory=dict)
    told: nested.Family | None = None
    switches: Switches = field(default_factory=Switches)
    word: wire.Control | None = None
    withdrawn: set[int] = field(default_factory=set)
    unsure: set[int] = field(default_factory=set)
    """Fences of batches of which nobody knows that they were published, until the next sync has shown it."""
    sync_at: float = 0.0
    """When it is tried again to sync it (monotonic seconds): not at once where the broker did not answer."""
    stale: bool = False
    lacking: str = ""
    unread: Submission | None = None
    entries: int = 0
    """Log entries folded since the ledger was last kept."""
    kept: frozenset[str] = frozenset()
    """What the newest snapshot consists of, by digest."""
    seen: tuple[tuple[object, ...], Ledger | None, StudyView] | None = None
    """What the last view was made from, and that view: among ten thousand studies few change."""
    settled_with: tuple[object, ...] | None = None
    """What stood when the study, which is over, had nothing left to be decided."""
    end_told: bool = False
    ranked: int | None = None
    """The priority under which its unstarted chunks were published; None while that is not known."""
    excuse: wire.Excused | None = None
    """What a quarantined host failed of it, until that is judged."""
    viewed_as: tuple[object, ...] | None = None
    """How it stood when it was last shown, which agents there were, and its rate."""
    stirred: Callable[[], None] | None = None
    """To be called when something is to be done for it again; None while it does not rest (`merlin_operator.roll`)."""
    made: float = math.inf
    """When its object was made, in Unix seconds; infinity for one that only this process has known."""
    past: Past = field(default_factory=Past)
    first: int = 0
    """The sequence of the oldest entry that is known to be in the log."""
    torn: bool = False
    """Whether that one is gone."""
    folded_as: int = 0
    """The hash of the entry that was folded last: each is sealed anew, so no other one is the same."""
    counted: bool = False
    """Whether it was looked for fences that were issued and are nowhere, once in this process."""
    announced: int = 0
    """The epoch that the cursor says."""
    recall: wire.Recall | None = None
    """What an agent is asked to tell, at `recall_site`; `asked` when each agent was (monotonic seconds)."""
    reading: str = field(default_factory=_new_reading)
    """What tells this reading of the log from those of other operators, and from ours of before it was begun anew."""
    recall_site: str = ""
    recall_folded: int = 0
    """The sequence of the log's last entry when it was last looked whether that agent gets on."""
    asked: dict[str, float] = field(default_factory=dict)
    lost: bool = False
    """Whether its log lacks something for sure, where it is in doubt."""
    unheard: bool = False
    """Whether no agent is there that could complete its log, where it is in doubt."""
    lost_log: str = ""
    """What its user has to do before its log is known to be whole."""
    confused: bool = False
    """Whether folding an entry broke, so that the ledger may have half of it: it is to be made anew."""
    unheld: dict[tuple[int, str], float] = field(default_factory=dict)
    """Fences that their living holder does not name, with that one, and since when (monotonic seconds)."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why agents handed back all of a chunk, by agent, the latest last; forgotten once anything of the study has a result."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in STIRRING and self.stirred is not None:
            self.stirred()

    @property
    def active(self) -> bool:
        """Whether there is anything left to do."""
        return self.ledger is not None and not self.cancelled and not self.ledger.finished

    @property
    def over(self) -> bool:
        """Whether every task has an outcome that stands, and nobody asks for another."""
        if self.ledger is None or not self.ledger.finished or self.excuse is not None:
            return False
        return not Control(self.switches, self.ledger, 0.0).asks_restart

    @property
    def ended(self) -> bool:
        """Whether it was cancelled or deleted, so that nothing more may come of it."""
        return self.cancelled or self.switches.cancel

    @property
    def site(self) -> str:
        """The site that the study runs on; `subjects.ANY_SITE` until one is known."""
        if self.ledger is not None and self.ledger.bound is not None:
            return self.ledger.bound.site
        return self.spec_site or subjects.ANY_SITE

    @property
    def broken(self) -> bool:
        """Whether its log may lack something: nothing of it is decided or issued before that is told."""
        return self.ledger is not None and self.ledger.repaired < self.epoch

    @property
    def begun(self) -> bool:
        """Whether any of it was ever claimed, as far as its log or its status says, so that it has a workspace."""
        return self.past.begun or (self.ledger is not None and self.ledger.bound is not None)

    @property
    def restarted(self) -> str:
        """The id of the last restart that is known to have been carried out to its end; empty where none is."""
        request, ledger = self.switches.restart, self.ledger
        if request is None or ledger is None or self.broken or not ledger.finished:
            return self.past.restarted
        return request.id if f"{RESTART}{request.id}" in ledger.honoured else self.past.restarted

    @property
    def abandoned(self) -> bool:
        """Whether it is to be cancelled, and nobody is there who could complete its log before."""
        return self.broken and self.unheard and self.switches.cancel

    def lose_log(self, epoch: int) -> None:
        """Take its log as one that lacks something; ``epoch`` is the time in Unix seconds."""
        self.question_log(epoch)
        self.lost = True

    def question_log(self, epoch: int) -> None:
        """Take its log as one that may lack something: a chunk that is gone was deleted, or its claim was."""
        self.epoch = max(self.epoch + 1, epoch)

    def stand_on(self, *, since: int, made: int) -> None:
        """Take its log as one that stands on its present server since then: of an older study it may lack something.

        Of one that began before the streams were ``made``, it does.
        """
        if self.made < since + SKEW:
            self.epoch = max(self.epoch, since)
        is_older = self.ledger is not None and self.ledger.repaired < made and self.made < made + SKEW
        self.lost = self.broken and (self.lost or is_older)

    def outlive(self) -> None:
        """Note that it is older than the server or stream that its log stands on now."""
        if self.folded or self.cursor:
            self.made = -math.inf

    def adopt(self, plan: Plan) -> None:
        """Take a plan, with an empty ledger."""
        self.plan, self.ledger = plan, Ledger(plan)

    def settled(self, accepted: bool) -> bool:  # noqa: FBT001
        """Whether the plan stands: it was accepted, or something of it is in the broker's hands already."""
        return self.plan is not None and (accepted or self.cursor > 0 or self.folded > 0)

    def doubt(self, now: float, *, patience: float) -> None:
        """Ask for another sync where published chunks wait unstarted and nothing happens (``now`` in monotonic seconds).

        A chunk that somebody terminated or deleted is in no log: only the task stream itself can tell that it is gone.
        """
        waits = self.ledger is not None and any(fence.holder is None for fence in self.ledger.fences.values())
        if not self.synced or not waits or self.folded != self.still_at:
            self.still_at, self.still_since = self.folded, now
        elif now - self.still_since > patience:
            self.synced, self.still_since = False, now

    def forget_told(self) -> None:
        """Forget what was put into last values, for a connection whose broker may have lost them."""
        self.synced, self.kept, self.word, self.end_told, self.told = False, frozenset(), None, False, None
        self.sync_at = 0.0

    def start_over(self) -> None:
        """Forget what was folded; the next sync reads it again. Fences go on, since agents know those that were."""
        self.past = replace(self.past, restarted=self.restarted)
        if self.ledger is not None and (bound := self.ledger.bound) is not None:
            began = self.ledger.first_at or self.created
            self.past = replace(self.past, started_at=began, site=bound.site, workspace=bound.workspace)
        if self.plan is not None:
            next_fence = self.ledger.next_fence if self.ledger is not None else 1
            self.ledger = Ledger(self.plan)
            self.ledger.next_fence = next_fence
        self.synced, self.folded, self.verdict, self.awaited, self.word = False, 0, 0, 0, None
        self.first, self.torn, self.recall, self.confused = 0, False, None, False
        self.reading = _new_reading()
        self.asked.clear()
        self.unheld.clear()
        self.entries, self.kept = 0, frozenset()
        self.judged.clear()
        self.withdrawn.clear()
        self.pending.clear()
        self.samples.clear()
        self.refusals.clear()

    def held(self, ledger: Ledger) -> list[tuple[int, str]]:
        """Return the fences that somebody holds who was not called lost with them, with that one."""
        held = ((number, fence.holder) for number, fence in ledger.fences.items() if fence.holder is not None)
        return [each for each in held if each not in self.judged]

    @property
    def standing(self) -> tuple[object, ...]:
        """All that decides what is to be done for a study (`STIRRING`), but who is there to do it."""
        return tuple(getattr(self, name) for name in STIRRING)

    def is_still(self, now: float, *, kept_after: int) -> bool:
        """Whether nothing of it is out, on its way or due, so that only news of it or of agents can give it something to do.

        Args:
            now: monotonic seconds.
            kept_after: how many entries of a log are folded until a snapshot is due.
        """
        ledger = self.ledger
        if ledger is None:
            return self.unread is None  # else its table is looked for
        is_whole = self.synced and not (self.cancelled or self.pending or self.awaited > self.folded)
        is_due = ledger.fences or self.stale or self.excuse is not None or self.entries >= kept_after
        # What came of children and orders is shown, too, and changes by itself.
        if not is_whole or is_due or self.children or self.orders:
            return False
        if ledger.finished:
            return self.end_told and ledger.still  # a doubt about its log matters once somebody asks for more
        will_be_due = ledger.next_due() is not None or ledger.scanning or self.rate(now) != 0.0
        return not self.broken and not will_be_due and ledger.stops.stop_asked is None and not ledger.stops.hard_failed

    def note_inherited(self) -> None:
        """Remember what stood in the log when it was first read: that was counted before our time."""
        if self.inherited is None:
            self.inherited = self.view(agents=0, waiting_for="", broker_problem="").counted

    def note_progress(self, now: float) -> None:
        """Remember how many tasks are done, for the rate; ``now`` in monotonic seconds."""
        if self.ledger is None:
            return
        if self.samples and self.samples[0][1] == self.samples[-1][1] and self.ledger.finished:
            return
        done = sum(len(step.final) for step in self.ledger.steps)
        if not self.samples or self.samples[-1][0] < now - 1.0:
            self.samples.append((now, done))
        while len(self.samples) > 1 and self.samples[0][0] < now - RATE_SECONDS:
            self.samples.popleft()

    def rate(self, now: float) -> float | None:
        """Return tasks a second over the last minute, or None where that can't be said yet, or no more: of what is finished."""
        if self.ledger is None or not self.samples or self.ledger.finished:
            return None
        first_at, first_done = self.samples[0]
        done = sum(len(step.final) for step in self.ledger.steps)
        if now - first_at < 1.0:
            return None
        return (done - first_done) / (now - first_at)

    def view(
        self,
        *,
        agents: int,
        waiting_for: str,
        broker_problem: str,
        broker_note: str = "",
        clock: float | None = None,
        stopped: bool = False,
        full_on: tuple[str, ...] = (),
    ) -> StudyView:
        """Return the study as its user should see it; the same view as before where nothing has happened."""
        rate, ledger = self.rate(time.monotonic() if clock is None else clock), self.ledger
        seen = (
            *(
                agents,
                waiting_for,
                broker_problem,
                broker_note,
                stopped,
                full_on,
                rate,
                self.folded,
                self.generation,
                self.cancelled,
            ),
            *(self.switches, self.lacking, self.inherited, self.excuse, self.lost, self.lost_log),
            (ledger.next_fence, len(ledger.fences)) if ledger is not None else None,
        )
        if self.seen is None or self.seen[0] != seen or self.children or self.seen[1] is not ledger:
            made = self._view(
                agents=agents,
                waiting_for=waiting_for,
                broker_problem=broker_problem,
                broker_note=broker_note,
                rate=rate,
                stopped=stopped,
                full_on=full_on,
            )
            self.seen = seen, ledger, made
        return self.seen[2]

    def _view(
        self,
        *,
        agents: int,
        waiting_for: str,
        broker_problem: str,
        broker_note: str,
        rate: float | None,
        stopped: bool,
        full_on: tuple[str, ...],
    ) -> StudyView:
        ledger = self.ledger
        if ledger is None or self.plan is None:
            return StudyView(
                self.ref,
                self.generation,
                faults=self.faults,
                finished=bool(self.faults),
                waiting_for=self.lacking,
                broker_problem=broker_problem,
                broker_note=broker_note,
                ttl=self.switches.ttl,
                progressed_at=self.created or None,
            )
        steps = tuple(_step_view(ledger, at) for at in range(len(ledger.steps)))
        left = sum((step.total or 0) - step.done for step in steps)
        known = all(step.total is not None for step in steps)
        return StudyView(
            self.ref,
            self.generation,
            steps=steps,
            workspace=ledger.bound.workspace
            if ledger.bound is not None
            else self.past.workspace or self.plan.workspace,
            site=ledger.bound.site if ledger.bound is not None else self.spec_site or self.past.site,
            plan_hash=self.plan.hash,
            unrolled=ledger.unrolled,
            finished=self.over or self.cancelled,
            cancelled=self.cancelled or ledger.stops.cancelled,
            suspended=self.switches.suspend,
            stopped=stopped,
            full_on=full_on,
            lost_log=self.lost_log if self.lost else "",
            exhausted=ledger.exhausted,
            restarted=self.restarted,
            ttl=self.switches.ttl,
            rate=rate,
            remaining_seconds=left / rate if rate and known else None,
            started_at=ledger.first_at if self.past.started_at is None else self.past.started_at,
            finished_at=ledger.last_at if self.over else None,
            first_failures=tuple(
                FailureView(self.plan.steps[at].name, failure) for at, failure in ledger.failures.first
            ),
            last_failures=tuple(FailureView(self.plan.steps[at].name, failure) for at, failure in ledger.failures.last),
            doubled=ledger.doubled,
            redundant=ledger.redundant,
            ready=sum(max(0, step.available) for step in ledger.steps),
            progressed_at=ledger.last_at or ledger.first_at or self.created or None,
            inherited=self.inherited or (),
            agents=agents,
            waiting_for=waiting_for,
            broker_problem=broker_problem,
            broker_note=broker_note,
            warnings=(*self.warnings, *self._refused()),
            notes=self.notes,
            parent=self.lineage.parent,
            children=sum(child.born is None or bool(child.born.uid) for child in self.children.values()),
            unborn=sum(child.born is None for child in self.children.values()),
            refused_children=len(self._refused()),
        )

    def _refused(self) -> tuple[Fault, ...]:
        """What this study's steps asked for in vain."""
        return tuple(
            Fault(f"{child.asked.step}, task {child.asked.task}", child.born.refused, SUBMISSION_REFUSED)
            for child in self.children.values()
            if child.born is not None and child.born.refused
        )

    def entry(self, stored: Stored, decoded: wire.Entry) -> None:
        """Fold one entry of the log."""
        assert self.ledger is not None
        self.folded = stored.sequence
        self.entries += 1
        if isinstance(decoded, wire.VERDICTS):
            self.verdict = stored.sequence
        try:
            self.ledger.apply(decoded, at=stored.at)
        except Exception:
            self.synced, self.confused = False, True
            raise
        if isinstance(decoded, wire.Report):
            self._note_refusal(decoded)

    def _note_refusal(self, report: wire.Report) -> None:
        if report.results:
            self.refusals.clear()
        elif report.refused:
            self.refusals.pop(report.agent, None)
            self.refusals[report.agent] = report.refused


def _step_view(ledger: Ledger, at: int) -> StepView:
    step = ledger.steps[at]
    running = queued = 0
    for fence in ledger.fences.values():
        if fence.chunk.step == at and not fence.chunk.scan:
            if fence.holder is None:
                queued += fence.open.bit_count()
            else:
                running += fence.open.bit_count()
    return StepView(
        name=ledger.plan.steps[at].name,
        total=step.total,
        succeeded=step.outcomes[Outcome.SUCCEEDED],
        soft_failed=step.outcomes[Outcome.SOFT_FAILED],
        failed=step.outcomes[Outcome.FAILED],
        timed_out=step.outcomes[Outcome.TIMED_OUT],
        cancelled=step.outcomes[Outcome.CANCELLED],
        running=running,
        queued=queued,
        retrying=ledger.waiting_tasks(at),
        lost=ledger.lost[at],
    )
