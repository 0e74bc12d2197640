"""How the engine's studies look to their users: views of all of them, with the agents that serve each."""

from __future__ import annotations

from collections.abc import Sequence

from merlin_operator import fleet
from merlin_operator.core import Core
from merlin_operator.study import Study
from merlin_operator.view import StudyView
from merlin_study import subjects, wire
from merlin_study.lanes import Runs
from merlin_study.ledger import Ledger
from merlin_study.reopen import windows
from merlin_study.steptasks import StepTasks

_Counted = dict[tuple[str, frozenset[tuple[str, str]]], int]
"""How many agents could run something of the studies at a site that want these."""


class Gallery:
    """The views of all studies, of which only those are made anew that may look otherwise."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._views: dict[str, StudyView] = {}
        self._said = ("", "")
        """What the views say of the broker."""
        self._departures = 0
        self._listed: list[StudyView] | None = None
        self._news: dict[str, StudyView] = {}

    def views(self, now: float, *, broker_full: str = "", broker_note: str = "") -> Sequence[StudyView]:
        """Return every study as its user should see it at ``now`` (monotonic seconds).

        ``broker_full`` says that the broker can be reached and has no room, ``broker_note`` what else is wanting of it then.
        """
        core = self.core
        said = broker_full if core.broker.connected else core.broker.problem, broker_note
        studies = core.studies.awake() if said == self._said else core.studies.all()
        self._said = said
        if core.studies.departures != self._departures:
            self._departures = core.studies.departures
            for uid in self._views.keys() - core.studies.keys():
                self._put(uid, None)
        live, counted = list(core.fleet.live(now)), _Counted()
        full = [agent for agent in live if agent.full]
        for study in studies:
            # Of one that was over and whose log is in doubt, what it came to is told, and its log knows no better yet.
            is_told = study.over or not (study.past.over and study.broken)
            self._put(study.ref.uid, self._view(study, now, live, full, counted) if is_told else None)
        if self._listed is None:
            self._listed = list(self._views.values())
        return self._listed

    def news(self) -> list[StudyView]:
        """Return those of the views that are others than when this was asked before."""
        news, self._news = list(self._news.values()), {}
        return news

    def _put(self, uid: str, view: StudyView | None) -> None:
        if view is self._views.get(uid):
            return
        self._listed = None
        if view is None:
            del self._views[uid]
            self._news.pop(uid, None)
        else:
            self._views[uid] = self._news[uid] = view

    def _view(
        self,
        study: Study,
        now: float,
        live: Sequence[wire.Heartbeat],
        full: Sequence[wire.Heartbeat],
        counted: _Counted,
    ) -> StudyView:
        problem, note = self._said
        self.core.viewed(study, now)
        return study.view(
            agents=_counted(study, live, counted),
            waiting_for=waiting_for(study, live),
            broker_problem=problem,
            broker_note=note,
            clock=now,
            full_on=tuple(sorted({agent.host for agent in full if study.active and study.ref.uid in agent.full})),
            stopped=study.ledger is not None and self.core.control(study, study.ledger).stopped,
        )


def _counted(study: Study, live: Sequence[wire.Heartbeat], known: _Counted) -> int:
    """Return how many agents could run something of a study, worked out once for studies that want the same."""
    if study.plan is None or study.over:
        return 0
    key = study.site, study.plan.wants
    if key not in known:
        known[key] = fleet.serving(live, *key)
    return known[key]


def waiting_for(study: Study, live: Sequence[wire.Heartbeat]) -> str:
    """Say in one sentence what is missing: a file of the study, or agents for a queue that has work; empty where nothing is."""
    if study.lacking:
        return study.lacking
    if study.lost_log:
        return study.lost_log
    if not study.active or study.plan is None or study.ledger is None or study.switches.suspend:
        return ""
    site = None if study.site == subjects.ANY_SITE else study.site
    for at, step in enumerate(study.plan.steps):
        tasks = study.ledger.steps[at]
        if tasks.complete or not (tasks.available or tasks.handed_out > len(tasks.final)):
            continue
        for number, lane in enumerate(step.lanes):
            if any(fleet.serves(agent, site=site, queue=lane.queue, needs=lane.shape) for agent in live):
                continue
            if (runs := study.ledger.geometry.runs(at, number)) is None or _waits(tasks, runs):
                return fleet.unserved(live, site=site, step=step.name, queue=lane.queue, needs=lane.shape)
    return _refusal(study, study.ledger)


def _waits(tasks: StepTasks, runs: Runs) -> bool:
    """Whether any task of a lane may run and is not over."""
    return any(
        tasks.ready.read(first, width) & ~tasks.final.read(first, width) & runs.mask(first, width)
        for first, width in windows(tasks.total)
    )


def _refusal(study: Study, ledger: Ledger) -> str:
    """Say why agents hand back all that they take of a study; empty where somebody works for it."""
    holders = {fence.holder for fence in ledger.fences.values() if fence.holder is not None}
    if not study.refusals or holders - study.refusals.keys():
        return ""
    agent, why = next(reversed(study.refusals.items()))
    return f"agent {agent} hands its tasks back: {why}"
