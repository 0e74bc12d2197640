"""Studies that steps ask for, in an engine on one machine; and the past of studies, from their workspaces alone.

A study that a step starts is run by the same engine beside the one that started it. Nothing outlives the engine but the
workspaces: a new engine reads its log again and finds what was asked for, and ``merlin restart DIR`` tells a new log what
the workspaces record, of the study and of all that its steps had started.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merlin_operator import family, resume
from merlin_operator.births import NotNowError
from merlin_operator.board import Submission
from merlin_operator.engine import Engine
from merlin_operator.stream import Conflict, Outage
from merlin_operator.view import StudyRef
from merlin_study import nested, wire, workspace
from merlin_study.plan import Plan


class LocalNursery:
    """A `births.Nursery` of one engine."""

    remembers = False

    def __init__(self) -> None:
        self.engine: Engine | None = None
        """To be set once there is one."""

    async def bear(self, parent: StudyRef, own: family.Lineage, child: family.Child) -> nested.Born:
        """See `births.Nursery`; the uid follows from who asks, so that an engine that starts again finds its log."""
        assert self.engine is not None
        uid = str(uuid.uuid5(uuid.UUID(parent.uid), child.key))
        ref = StudyRef(parent.namespace, nested.child_name(child.asked.name, child.key), uid)
        origin = family.below(parent, own)
        plan = _earlier_plan(Path(child.asked.workspace))
        if plan is None:
            submission = Submission(ref, 1, "", time.time(), family.spec_of(child.asked), {}, origin)
            await self.engine.observe(submission)
        else:
            try:
                await self._resume(uid, plan, Path(child.asked.workspace) / workspace.INFO)
            except Outage as error:
                raise NotNowError(f"study {ref.name}: {error}") from error
            self.engine.add(ref, plan, origin)
        return nested.Born(name=ref.name, uid=uid)

    async def _resume(self, uid: str, plan: Plan, info: Path) -> None:
        """Tell an earlier run's past to a log that is new; one that holds anything is of this run, and knows better."""
        assert self.engine is not None
        broker, space = self.engine.broker, self.engine.space
        if await broker.last(space.report_stream, space.reports_of(uid)) is None:
            await tell_past(self.engine, uid, plan, info)

    async def change(self, ref: StudyRef, changes: Mapping[str, Any]) -> str:
        """See `births.Nursery`."""
        assert self.engine is not None
        self.engine.switch(ref.uid, changes)
        return ""

    async def dismiss(self, agents: Mapping[str, Collection[str]]) -> str:
        """See `births.Nursery`: the one agent goes with the run, which ends after what runs."""
        assert self.engine is not None
        if agents:
            self.engine.halt()
        return ""


async def tell_past(engine: Engine, study: str, plan: Plan, info: Path) -> None:
    """Append what a workspace records to the log, once: successes, and what its steps had asked for.

    Claims that stand already are left alone.

    Raises:
        Outage: the broker did not answer; call it again.
    """
    for asked in _submissions(info):
        await _append(engine, study, engine.space.child(study, asked.key(study)), asked, expected=0)
    past = resume.recorded(study, plan, resume.read_outcomes(info))
    await _append(engine, study, engine.space.verdicts(study), past.noted(), expected=0)
    for entry in resume.entries(study, plan, past):
        fence = entry.chunk.fence if isinstance(entry, wire.Start) else entry.fence
        subject = engine.space.reports(study, fence)
        last = await engine.broker.last(engine.space.report_stream, subject)
        expected = 0 if isinstance(entry, wire.Start) else (last.sequence if last is not None else 0)
        await _append(engine, study, subject, entry, expected=expected)


async def _append(engine: Engine, study: str, subject: str, entry: wire.Message, *, expected: int) -> None:
    envelope = engine.config.keyring.seal(entry.encode(), scope=study, context=subject)
    with contextlib.suppress(Conflict):
        await engine.broker.append(subject, envelope, expected=expected)


def _submissions(info: Path) -> Iterator[nested.Submission]:
    """Yield what the steps of a study had asked for; what can't be read was cut short, and is asked for again."""
    for path in sorted((info / workspace.SUBMISSIONS).glob("*.json")):
        with contextlib.suppress(ValidationError):
            yield nested.Submission.model_validate_json(path.read_bytes())


def _earlier_plan(directory: Path) -> Plan | None:
    """The plan of a study that has begun in an earlier run; None where it has not."""
    try:
        return Plan.from_json((directory / workspace.INFO / workspace.PLAN_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
