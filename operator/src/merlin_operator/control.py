"""What a study's switches ask for, as decisions on its ledger. Pure: time is an argument, nothing is sent from here.

A switch is a level (``suspend``, ``cancel``, ``priority``, ``maxInFlight``) or a text whose change asks once (``purge``,
``restart``). What happened to a request stands in the log, so it survives a crash at any point, and a Study that is
restored from an older backup asks for nothing that was done before.

Before anything is dropped or restarted, every chunk that nobody has started is withdrawn: the operator takes its fence as an
agent would, so nobody can start it any more, and what is out then is exactly what runs, which the log tells. Else the
verdict would do one thing in this process and another in the one that folds the log after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from merlin_study import wire
from merlin_study.errors import Fault
from merlin_study.fence import Fence
from merlin_study.ledger import RESTART, Ledger
from merlin_study.plan import Plan
from merlin_study.spec import RestartRequest
from merlin_study.taskset import TaskSet

STOP_AFTER: Final = 60.0
"""Seconds after which agents stop that a task asked to stop (upstream's countdown)."""
_LONGEST_RANGES: Final = 1000


@dataclass(frozen=True, slots=True)
class Switches:
    """What may change in an accepted Study."""

    suspend: bool = False
    cancel: bool = False
    priority: int = 0
    max_in_flight: int | None = None
    purge: str = ""
    restart: RestartRequest | None = None
    ttl: int | None = None
    retain: bool = False
    rehearse: float | None = None
    halt: bool = False
    """A step stopped the agents of a local run; no object has this one."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The requests that stand in the Study, as the log names them."""
        asked = [f"purge:{self.purge}"] if self.purge else []
        return tuple(asked + ([f"{RESTART}{self.restart.id}"] if self.restart is not None else []))


def switches_of(spec: Mapping[str, Any]) -> Switches:
    """Read the switches of a Study as the API server has checked them; one that is of a wrong type is left out."""
    restart = spec.get("restart")
    try:
        request = RestartRequest.model_validate(restart) if restart else None
    except ValidationError:
        request = None
    rehearse = spec.get("rehearse")
    priority, most, ttl = (_number(spec.get(key)) for key in ("priority", "maxInFlight", "ttlSecondsAfterFinished"))
    return Switches(
        suspend=spec.get("suspend") is True,
        cancel=spec.get("cancel") is True,
        priority=priority or 0,
        max_in_flight=most,
        purge=str(spec.get("purge") or ""),
        restart=request,
        ttl=ttl,
        retain=spec.get("deletionPolicy") == "Retain",
        rehearse=float(rehearse) if isinstance(rehearse, int | float) and not isinstance(rehearse, bool) else None,
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def faults(switches: Switches, plan: Plan) -> tuple[Fault, ...]:
    """Say what a request names that the study does not have; such a request is not carried out."""
    request, found = switches.restart, []
    if request is None:
        return ()
    names = {step.name for step in plan.steps}
    for index, name in enumerate(request.steps):
        if name not in names:
            told = ", ".join(step.name for step in plan.steps[:20])
            found.append(
                Fault(f"spec.restart.steps[{index}]", f"expected the name of a step, found {name!r}; there are {told}")
            )
    try:
        ranges(request.tasks)
    except ValueError as error:
        found.append(Fault("spec.restart.tasks", str(error)))
    return tuple(found)


def ranges(text: str | None) -> tuple[TaskSet, ...]:
    """Return the tasks of a text such as ``0-99,512``; None and the empty text: none are named.

    Raises:
        ValueError: it is no such text.
    """
    if not text:
        return ()
    found = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        high = high.strip() if dash else low
        if not (low.strip().isdecimal() and high.isdecimal()) or int(high) < int(low) or int(high) > 2**53:
            raise ValueError(f"expected task indices such as 0-99,512, found {part.strip()!r}")
        found.append(TaskSet(first=int(low), width=int(high) - int(low) + 1))
    if len(found) > _LONGEST_RANGES:
        raise ValueError(f"expected at most {_LONGEST_RANGES} ranges, found {len(found)}")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Control:
    """A study's switches on its ledger at ``now`` (Unix seconds by the broker's clock)."""

    switches: Switches
    ledger: Ledger
    now: float
    stop_after: float = STOP_AFTER
    excuse: wire.Excused | None = None
    """What a quarantined host failed, if that is to be judged."""
    restarted: str = ""
    """The id of the last restart that was carried out to its end, as the study's status says."""

    @property
    def stopped(self) -> bool:
        """Whether a task asked to stop the agents and the time until then is over, or a step of a local run did; a restart goes on."""
        asked = self.ledger.stops.stop_asked
        return self.switches.halt or (asked is not None and self.now >= asked + self.stop_after)

    @property
    def holds(self) -> bool:
        """Whether nothing may be issued now."""
        return (
            self.switches.suspend
            or self.stopped
            or self._asked_drop() is not None
            or self._asked_restart() is not None
            or self._asked_excuse() is not None
        )

    def _asked_drop(self) -> wire.Dropped | None:
        ledger, below = self.ledger, self.ledger.next_fence
        if self.switches.cancel and not ledger.stops.cancelled and not ledger.finished:
            return wire.Dropped(cause="cancel", below=below)
        token = f"purge:{self.switches.purge}"
        if self.switches.purge and token not in ledger.honoured:
            return wire.Dropped(cause="purge", token=token, below=below)
        for queue in sorted(set(ledger.stops.hard_failed) - ledger.stops.dropped_queues):
            return wire.Dropped(cause="hard-fail", queue=queue, below=below)
        return None

    def _asked_restart(self) -> wire.Restarted | None:
        request, ledger = self.switches.restart, self.ledger
        if self.switches.cancel:
            return None
        if request is None or f"{RESTART}{request.id}" in ledger.honoured or faults(self.switches, ledger.plan):
            return self._asked_by_scan()
        named = set(request.steps)
        return wire.Restarted(
            token=f"{RESTART}{request.id}",
            steps=tuple(index for index, step in enumerate(ledger.plan.steps) if not named or step.name in named),
            tasks=ranges(request.tasks),
            codes=_codes(request.exit_codes) if request.exit_codes else None,
            dependants=request.dependants,
            scan=request.scan,
            below=ledger.next_fence,
        )

    @property
    def asks_restart(self) -> bool:
        """Whether tasks that are over are to run again."""
        return self._asked_restart() is not None

    def _asked_by_scan(self) -> wire.Restarted | None:
        """What has no mark any more, once all marks are looked at."""
        ledger = self.ledger
        found = None if ledger.scanning else ledger.scan.found()
        if found is None:
            return None
        step, tasks = found
        return wire.Restarted(
            token=f"{RESTART}scan:{step}:{tasks[0].first}:{ledger.next_fence}",
            steps=(step,),
            tasks=tasks,
            codes=(0,),
            dependants=ledger.scan.dependants,
            below=ledger.next_fence,
        )

    def _asked_excuse(self) -> wire.Excused | None:
        ledger = self.ledger
        if (
            self.excuse is None
            or self.switches.cancel
            or ledger.stops.cancelled
            or self.excuse.token in ledger.honoured
        ):
            return None
        return self.excuse

    def verdict(self) -> wire.Noted | wire.Excused | wire.Dropped | wire.Restarted | None:
        """Return what is to be written into the log next, or None."""
        if not self.ledger.noted:
            if self.ledger.first_at is None:
                return wire.Noted(tokens=self.switches.tokens)
            # The log was lost with what it said of requests; what a restart came to stands in the workspace.
            return wire.Noted(tokens=(f"{RESTART}{self.restarted}",) if self.restarted else ())
        asked = self._asked_drop() or self._asked_restart() or self._asked_excuse()
        if asked is None or any(self._unstarted()) or (isinstance(asked, wire.Restarted) and self._still_ends):
            return None
        return asked

    @property
    def _still_ends(self) -> bool:
        """Whether something runs that a cancellation ends: what comes of it is cancelled, so a restart that came before would leave it out."""
        below = self.ledger.stops.kill_below
        return any(each.chunk.fence < below and each.open for each in self.ledger.fences.values())

    def _unstarted(self) -> Iterator[Fence]:
        return (fence for fence in self.ledger.fences.values() if fence.holder is None)

    def to_withdraw(self) -> list[int]:
        """Return the fences that nobody has started and nobody may start."""
        if self.holds:
            return [fence.chunk.fence for fence in self._unstarted()]
        gone = [fence.chunk.fence for fence in self._unstarted() if self.ledger.is_dropped(fence.chunk)]
        return gone or self._too_many()

    def _too_many(self) -> list[int]:
        """Return the last issued chunks that go beyond ``maxInFlight``, which may have been lowered."""
        most = self.switches.max_in_flight
        if most is None:
            return []
        over = in_flight(self.ledger) - most
        gone = []
        for fence in sorted(self._unstarted(), key=lambda fence: -fence.chunk.fence):
            if over <= 0:
                break
            over -= fence.open.bit_count()
            gone.append(fence.chunk.fence)
        return gone

    def word(self, study: str, *, epoch: int = 1) -> wire.Control:
        """Return what agents should know of the study."""
        ledger = self.ledger
        held = self.switches.suspend or self.stopped
        retired = (
            queue
            for queue in ledger.stops.dropped_queues
            if self.now >= ledger.stops.hard_failed.get(queue, 0.0) + self.stop_after
        )
        return wire.Control(
            study=study,
            epoch=epoch,
            name=ledger.plan.name,
            drop_below=ledger.next_fence if held else max(ledger.stops.drop_below, default=0),
            kill_below=ledger.stops.kill_below,
            retired=self.stopped,
            retired_queues=tuple(sorted(retired)),
        )


def in_flight(ledger: Ledger) -> int:
    """Return how many tasks are in chunks that are out."""
    return sum(fence.open.bit_count() for fence in ledger.fences.values())


def _codes(asked: tuple[int, ...]) -> tuple[int, ...]:
    """Return exit codes as the log has them: users write 128 + n for signal n, as a shell tells it."""
    return tuple(dict.fromkeys(code for each in asked for code in ((each, 128 - each) if each > 128 else (each,))))
