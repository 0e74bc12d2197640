"""From heartbeats to Allocation objects: one for each batch job that hosts agents, so that ``kubectl`` shows them. Pure.

The status says what heartbeats said, and nothing is decided from it; what a ``spec`` wishes of agents is
`merlin_operator.assignments`. A `Ledger` knows which objects exist and what was
last written of each, and names the changes; whoever carries one out tells it so. What changes all the time (busy slots,
the time of the last heartbeat) is written once a minute, what a user acts on at once.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from merlin_operator.board import AgentView
from merlin_study import wire

REFRESH: Final = timedelta(seconds=60)
COLLECTED_AFTER: Final = timedelta(minutes=10)
"""Silence after which nobody expects the batch job's agents back."""
SILENT_AFTER: Final = 60.0
MAX_LISTED: Final = 64
"""Agents, hosts and queues that are named; the counts are of all of them."""
MAX_MESSAGES: Final = 10
SCHEDULERS: Final = ("slurm", "flux", "lsf", "pbs", "none")
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

RUNNING: Final = "Running"
"""At least one agent takes work."""
DRAINING: Final = "Draining"
"""Its agents finish what they have and take nothing more."""
SILENT: Final = "Silent"
"""No agent has been heard of for a minute."""
QUARANTINED: Final = "Quarantined"
"""None of its hosts gets work, because all that ran there failed and succeeded elsewhere. Also the reason of the Event."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object; its status follows."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """Write an object's status."""

    name: str
    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an object: its batch job has ended."""

    name: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Make an Event of an object, for those who follow these."""

    name: str
    uid: str
    reason: str
    message: str


Change = Create | Update | Delete | Tell


@dataclass(slots=True)
class _Known:
    """An object that exists, the status that it shows, and when that was written."""

    status: dict[str, Any]
    heard: datetime
    written: datetime = _NEVER
    uid: str = ""


class Ledger:
    """Which Allocations exist, what they show, and what they should show.

    `learnt` is False until the server's own objects are known, and again after anything went wrong.
    """

    def __init__(self) -> None:
        self.learnt = False
        self._known: dict[str, _Known] = {}
        self._groups: dict[str, list[AgentView]] = {}
        self._ended: set[str] = set()
        self._refused: set[str] = set()

    def note(self, agents: Sequence[AgentView]) -> None:
        """Take note of the agents as they are now; a last word that is heard once is not forgotten."""
        groups: dict[str, list[AgentView]] = {}
        for agent in agents:
            groups.setdefault(name_of(agent.heartbeat), []).append(agent)
        alive = {name for name, group in groups.items() if any(map(_expected, group))}
        self._ended = (self._ended | groups.keys()) - alive
        self._groups = {name: groups[name] for name in sorted(alive - self._refused)}

    def learn(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Take over what exists on the server, for instance from an operator before this one."""
        self._known = {
            each["metadata"]["name"]: _Known(
                dict(each.get("status") or {}), _heard(each), uid=each["metadata"].get("uid", "")
            )
            for each in objects
        }
        self.learnt = True

    def changes(self, now: datetime) -> list[Change]:
        """Return what is to be done: what has ended goes first."""
        gone = [Delete(name) for name, known in self._known.items() if self._over(name, known, now)]
        made = [Create(body_of(name, group)) for name, group in self._groups.items() if name not in self._known]
        told = [Update(name, status_of(group, now)) for name, group in self._groups.items() if name in self._known]
        events = (event for update in told for event in self._events(update))
        return [*gone, *made, *events, *(update for update in told if self._matters(update, now))]

    def _events(self, update: Update) -> Iterator[Tell]:
        """Yield what is news of an object's quarantined hosts; the update that follows says that it was told."""
        known = self._known[update.name]
        before = {each["host"]: each["startTime"] for each in known.status.get("quarantined") or ()}
        for each in update.status["quarantined"]:
            if before.get(each["host"]) != each["startTime"]:
                yield Tell(update.name, known.uid, QUARANTINED, f"host {each['host']} gets no work: {each['reason']}")

    def refused(self, change: Change) -> None:
        """Note that the server will not have it, whatever we do: the other changes go on without this object."""
        name = change.body["metadata"]["name"] if isinstance(change, Create) else change.name
        self._refused.add(name)

    def done(self, change: Change, now: datetime, *, uid: str = "") -> None:
        """Note that a change was carried out; ``uid`` is that of an object that was made."""
        match change:
            case Create(body):
                self._known[body["metadata"]["name"]] = _Known({}, now, uid=uid)
            case Update(name, status):
                self._known[name] = _Known(status, now, now, self._known[name].uid)
            case Tell():
                pass
            case Delete(name):
                del self._known[name]
                self._ended.discard(name)

    def _over(self, name: str, known: _Known, now: datetime) -> bool:
        if name in self._groups:
            return False
        return name in self._ended or now - known.heard > COLLECTED_AFTER

    def _matters(self, update: Update, now: datetime) -> bool:
        known = self._known[update.name]
        return _telling(update.status) != _telling(known.status) or now - known.written >= REFRESH


def name_of(heartbeat: wire.Heartbeat) -> str:
    """Return the name of the object that an agent belongs to: readable, and by its digest never that of another."""
    facts = heartbeat.allocation
    return _name((heartbeat.site, facts.scheduler, facts.job_id or heartbeat.host, "job" if facts.job_id else "host"))


@functools.lru_cache(maxsize=65_536)
def _name(place: tuple[str, str, str, str]) -> str:
    readable = re.sub(r"[^a-z0-9]+", "-", "-".join(place[:3]).lower()).strip("-")[:42].rstrip("-")
    digest = hashlib.sha256("\0".join(place).encode()).hexdigest()[:8]
    return f"{readable or 'allocation'}-{digest}"


def body_of(name: str, group: Sequence[AgentView]) -> dict[str, Any]:
    """Return the new object of a group of agents; its status is written afterwards."""
    heartbeat = group[0].heartbeat
    scheduler = heartbeat.allocation.scheduler
    return {
        "apiVersion": "merlin.dev/v1alpha1",
        "kind": "Allocation",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "merlin-operator"}},
        "spec": {
            "site": heartbeat.site,
            "scheduler": scheduler if scheduler in SCHEDULERS else "none",
            "jobId": heartbeat.allocation.job_id or heartbeat.host,
        },
    }


def status_of(group: Sequence[AgentView], now: datetime) -> dict[str, Any]:
    """Return the whole status. Its keys are always the same ones, so that a merge patch replaces it."""
    beats = [agent.heartbeat for agent in group if _heard_lately(agent)]
    ends_at = max((beat.allocation.ends_at for beat in beats), default=0.0)
    return {
        "state": _state(group),
        "nodes": max(agent.heartbeat.allocation.nodes for agent in group),
        "hosts": sorted({agent.heartbeat.host for agent in group})[:MAX_LISTED],
        "slots": sum(beat.slots for beat in beats),
        "busy": sum(beat.busy for beat in beats),
        "agentCount": len(beats),
        "agents": [_agent(agent, now) for agent in sorted(group, key=_by_name)[:MAX_LISTED]],
        "queues": sorted({queue for beat in beats for queue in beat.queues})[:MAX_LISTED],
        "endTime": _time(datetime.fromtimestamp(ends_at, UTC)) if ends_at else None,
        "lastHeartbeat": _time(now - timedelta(seconds=min(agent.silent_for for agent in group))),
        "quarantined": _quarantined(group)[:MAX_LISTED],
        "messages": sorted({problem[:512] for beat in beats for problem in beat.problems})[-MAX_MESSAGES:],
    }


def _agent(agent: AgentView, now: datetime) -> dict[str, Any]:
    beat = agent.heartbeat
    return {
        "name": beat.agent,
        "host": beat.host,
        "version": beat.version,
        "slots": beat.slots,
        "busy": beat.busy,
        "queues": sorted(beat.queues)[:MAX_LISTED],
        "lastHeartbeat": _time(now - timedelta(seconds=agent.silent_for)),
    }


def _by_name(agent: AgentView) -> str:
    return agent.heartbeat.agent


def _quarantined(group: Sequence[AgentView]) -> list[dict[str, Any]]:
    """The hosts that get no work: since when, until when, and why."""
    held = {agent.quarantine.host: agent.quarantine for agent in group if agent.quarantine and _heard_lately(agent)}
    return [
        {
            "host": each.host,
            "startTime": _time(datetime.fromtimestamp(each.since, UTC)),
            "endTime": _time(datetime.fromtimestamp(each.until, UTC)),
            "reason": each.why[:512],
        }
        for _, each in sorted(held.items())
    ]


def _state(group: Sequence[AgentView]) -> str:
    heard = [agent for agent in group if _heard_lately(agent)]
    if not heard:
        return SILENT
    working = [agent for agent in heard if not agent.heartbeat.leaving]
    if not working:
        return DRAINING
    held = {agent.heartbeat.host for agent in working if agent.quarantine is not None}
    if all(agent.quarantine is not None for agent in working):
        return QUARANTINED
    return f"{RUNNING}, {len(held)} quarantined" if held else RUNNING


def _expected(agent: AgentView) -> bool:
    return not agent.heartbeat.left and agent.silent_for <= COLLECTED_AFTER.total_seconds()


def _heard_lately(agent: AgentView) -> bool:
    return not agent.heartbeat.left and agent.silent_for <= SILENT_AFTER


def _telling(status: Mapping[str, Any]) -> dict[str, Any]:
    """What is written at once when it changes: of what changes all the time only whether any slot is busy."""
    told = {key: value for key, value in status.items() if key != "lastHeartbeat" and value not in (None, [])}
    agents = [(agent["name"], agent.get("queues")) for agent in told.get("agents", ())]
    return {**told, "busy": bool(told.get("busy")), "agents": agents}


def _heard(raw: Mapping[str, Any]) -> datetime:
    text = (raw.get("status") or {}).get("lastHeartbeat") or raw["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(text)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
