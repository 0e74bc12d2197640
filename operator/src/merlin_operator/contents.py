"""What agents read of a study beside its chunks: the plan, and the files that travel with it.

The operator takes files out of ConfigMaps, checks their digest and puts them into the control stream, sealed, each under its
digest; agents never speak to the API server, and nobody but the operator puts anything there. What the stream has already
is left alone, so that a ConfigMap is read once, and may go afterwards.
"""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from pydantic import ValidationError

from merlin_operator.board import Submission
from merlin_operator.core import Core
from merlin_operator.study import Study
from merlin_study import blob
from merlin_study.bundle import MAX_BUNDLE
from merlin_study.finale import MAX_FAILURES, Finale, StepFailure, StepFinale
from merlin_study.plan import Plan, PlannedFile
from merlin_study.seal import SealError
from merlin_study.sources import parts_of, table_fault
from merlin_study.spec import TableSource

log = logging.getLogger(__name__)

RETRY: Final = 5.0
"""Seconds between two looks for a ConfigMap that is not there."""


class ContentError(Exception):
    """Some content that can't be brought now; the message names it and the cure."""


class Reader(Protocol):
    """Where the contents of ConfigMaps come from."""

    async def content(self, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap.

        Raises:
            ContentError: there is none, or it can't be read now.
        """


async def joined(reader: Reader, parts: Sequence[tuple[str, str]], sha256: str) -> bytes:
    """Return the content that some parts make.

    Raises:
        ContentError: one can't be read, or together they have another digest.
    """
    content = b""
    for name, key in parts:
        content += await reader.content(name, key)
        if len(content) > MAX_BUNDLE:
            raise ContentError(f"ConfigMap {name}: expected at most {MAX_BUNDLE} bytes for one file, found more")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        names = ", ".join(dict.fromkeys(name for name, _ in parts))
        raise ContentError(
            f"ConfigMap {names}: expected content with the SHA-256 {sha256[:16]}…, found {found[:16]}…; restore it"
        )
    return content


class Contents:
    """Brings plan and files of studies to where agents read them."""

    def __init__(self, core: Core, reader: Reader | None) -> None:
        self.core, self._reader = core, reader
        self._not_before: dict[str, float] = {}

    def due(self, uid: str) -> bool:
        """Whether it is time to look again for what was not there."""
        return time.monotonic() >= self._not_before.get(uid, 0.0)

    async def table(self, submission: Submission) -> bytes | None:
        """Return the file that a Study names as its table of parameters; None where it names none.

        Raises:
            ContentError: it can't be had yet.
        """
        try:
            source = TableSource.model_validate(submission.spec.get("parametersFrom"))
        except ValidationError:
            return None  # there is none, or it is malformed, which the parser tells with everything else
        beside = bool(submission.spec.get("global.parameters"))
        if self._reader is None or not parts_of(source) or table_fault(source, beside=beside) is not None:
            return None  # it is in the Study itself, or the compiler tells why there is none
        try:
            return await joined(self._reader, parts_of(source), source.sha256)
        except ContentError:
            self._not_before[submission.ref.uid] = time.monotonic() + RETRY
            raise

    async def settle(self, study: Study) -> bool:
        """Store plan and files; False, with `Study.lacking` said, where a file can't be had yet.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer.
        """
        uid = study.ref.uid
        if not self.due(uid):
            return False
        await self._settle_plan(study)
        try:
            await self._settle_files(study)
        except ContentError as error:
            if study.lacking != str(error):
                log.warning("files not brought study=%s error=%s", study.ref.name, error)
            study.lacking = str(error)
            self._not_before[uid] = time.monotonic() + RETRY
            return False
        study.lacking = ""
        self._not_before.pop(uid, None)
        return True

    async def settle_end(self, study: Study) -> None:
        """Tell agents what came of a study that is over, so that one writes it into the workspace.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer.
        """
        if study.ledger is None or not study.synced or not study.over:
            study.end_told = False
            return
        if study.end_told:
            return
        uid, subject = study.ref.uid, self.core.space.finale(study.ref.uid)
        await self.core.broker.put(subject, self.core.seal(uid, subject, _finale(study).encode()))
        study.end_told = True

    async def _settle_plan(self, study: Study) -> None:
        """Store the plan; where the study was accepted with another one (by an older version), go on with that."""
        assert study.plan is not None
        core, uid = self.core, study.ref.uid
        if study.accepted_hash not in ("", study.plan.hash):
            try:
                stored = await self.read(uid, core.space.plan(uid, study.accepted_hash))
                if stored is not None:
                    study.adopt(Plan.from_json(zlib.decompress(stored)))
            except (SealError, blob.BlobError, ValidationError, zlib.error) as error:
                log.warning("accepted plan refused study=%s error=%s", study.ref.name, error)
        subject = core.space.plan(uid, study.plan.hash)
        if await core.broker.last(core.space.control_stream, subject) is None:
            await self.store(uid, subject, zlib.compress(study.plan.to_json(), 6))

    async def _settle_files(self, study: Study) -> None:
        assert study.plan is not None
        wanted = {each.sha256: each for each in study.plan.files if each.parts}
        if not wanted:
            return
        uid, space, broker = study.ref.uid, self.core.space, self.core.broker
        there = await broker.subjects(space.control_stream, space.files_of(uid))
        for digest, file in wanted.items():
            subject = space.file(uid, digest)
            if subject not in there:
                await self.store(uid, subject, await self._content(file))

    async def _content(self, file: PlannedFile) -> bytes:
        if self._reader is None:
            raise ContentError(f"{file.name or 'bundle'}: files from ConfigMaps need a cluster")
        return await joined(self._reader, file.parts, file.sha256)

    async def store(self, uid: str, subject: str, content: bytes) -> None:
        """Store content as the agents' reader expects it: the head last."""
        head, rest = blob.split(content)
        for number, part in enumerate(rest, start=1):
            below = blob.part(subject, number)
            await self.core.broker.put(below, self.core.seal(uid, below, part))
        await self.core.broker.put(subject, self.core.seal(uid, subject, head))

    async def read(self, uid: str, subject: str) -> bytes | None:
        """Return content that `store` put; None where some of it is not there.

        Raises:
            SealError, blob.BlobError: it is not ours, or damaged.
            merlin_operator.stream.Outage: the broker did not answer.
        """
        core = self.core
        stored = await core.broker.last(core.space.control_stream, subject)
        if stored is None:
            return None
        count, content = blob.read_head(core.open_own(uid, stored))
        for number in range(1, count + 1):
            part = await core.broker.last(core.space.control_stream, blob.part(subject, number))
            if part is None:
                return None
            content += core.open_own(uid, part)
        return content


def _finale(study: Study) -> Finale:
    ledger, view = study.ledger, study.view(agents=0, waiting_for="", broker_problem="")
    assert ledger is not None
    assert study.plan is not None
    return Finale(
        study=study.ref.uid,
        plan=study.plan.hash,
        succeeded=view.succeeded,
        finished_at=datetime.fromtimestamp(view.finished_at or time.time(), UTC).isoformat(timespec="seconds"),
        steps=tuple(
            StepFinale(
                name=step.name,
                total=step.total or 0,
                succeeded=step.succeeded,
                soft_failed=step.soft_failed,
                failed=step.failed,
                timed_out=step.timed_out,
                cancelled=step.cancelled,
            )
            for step in view.steps
        ),
        first_failures=tuple(
            StepFailure(step=each.step, failure=each.failure) for each in view.first_failures[:MAX_FAILURES]
        ),
        samples=ledger.facts,
    )
