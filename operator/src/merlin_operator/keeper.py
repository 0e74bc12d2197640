"""Snapshots of ledgers in the control stream, so that a new operator reads the end of a log, not all of it.

    blocks and state, each under its digest ─► head (which log, up to which entry, which state) ─► what no head names is purged

Nothing is overwritten but the head, so whoever dies on the way leaves the older snapshot whole. A head is believed where the log is
the one that it speaks of: the stream's creation, and the time of the very entry that was folded last, must be the same; a
stream that was wiped, rewound or restored has another. In every doubt the whole log is read: a snapshot only saves time, it
decides nothing. What a study's steps asked for is kept beside its ledger (`merlin_operator.kin`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import zlib
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from merlin_operator import kin
from merlin_operator.contents import Contents
from merlin_operator.core import Core
from merlin_operator.study import Study
from merlin_study import blob, snapshot, wire
from merlin_study.seal import SealError

log = logging.getLogger(__name__)

SHARE: Final = 20.0
"""A snapshot is taken after so many times as long as the one before took, at least: keeping costs a twentieth at most."""


class Head(wire.Message):
    """What a snapshot stands for: the log of a stream's ``incarnation`` up to ``sequence``, stored at ``at`` (Unix seconds).

    ``verdict`` is the sequence of the newest verdict; ``state`` the digest of the ledger's state, ``kin`` of what its steps asked for
    (empty: nothing).
    """

    incarnation: str
    sequence: int
    at: float
    plan: str
    verdict: int
    state: str
    kin: str = ""


class Keeper:
    """Keeps the ledgers of all studies, and finds them again."""

    def __init__(self, core: Core, contents: Contents, *, keeps_kin: bool) -> None:
        """Keep what is needed; ``keeps_kin``: what steps asked for is made once for good, not again by each new engine."""
        self.core, self._contents, self._keeps_kin = core, contents, keeps_kin
        self._took: dict[str, tuple[float, float]] = {}

    async def keep(self) -> None:
        """Keep what has changed enough.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer; what is kept stays as it was.
        """
        self._took = {uid: took for uid, took in self._took.items() if uid in self.core.studies}
        for study in self.core.studies.awake():  # what rests has nothing new to keep
            if self._is_due(study, time.monotonic()):
                began = time.monotonic()
                try:
                    await self._keep(study)
                except blob.BlobError as error:
                    log.warning("ledger too large to keep study=%s error=%s", study.ref.name, error)
                now = time.monotonic()
                self._took[study.ref.uid] = now, now - began

    def _is_due(self, study: Study, now: float) -> bool:
        if study.entries < self.core.config.snapshot_entries:
            return False
        if not study.synced or study.cancelled or study.awaited > study.folded:
            return False
        if not self._keeps_kin and (study.children or study.orders):
            return False
        if study.broken or (study.ledger is not None and study.ledger.late.fleeting):
            return False  # what is told anew is told again, should we die
        ended, took = self._took.get(study.ref.uid, (0.0, 0.0))
        return now - ended > SHARE * took

    async def _keep(self, study: Study) -> None:
        assert study.ledger is not None
        assert study.plan is not None
        core, uid, ledger = self.core, study.ref.uid, study.ledger
        state, blocks = snapshot.freeze(ledger, known=study.kept)
        asked = kin.of(study)
        sequence, verdict, study.entries = study.folded, study.verdict, 0  # of one moment: nothing is awaited before
        log_stream = core.space.report_stream
        entry, incarnation = await core.broker.stored(log_stream, sequence), await core.broker.incarnation(log_stream)
        if entry is None or study.ledger is not ledger:
            return
        digest, contents = await asyncio.to_thread(_packed, state, blocks)
        kept_kin, more = await asyncio.to_thread(_packed, asked, {}) if asked is not None else ("", {})
        contents |= more
        for each, content in contents.items():
            await self._contents.store(uid, core.space.kept(uid, each), content)
        head = Head(
            incarnation=incarnation,
            sequence=sequence,
            at=entry.at,
            plan=study.plan.hash,
            verdict=verdict,
            state=digest,
            kin=kept_kin,
        )
        subject = core.space.snapshot(uid)
        await core.broker.put(subject, core.seal(uid, subject, head.encode()))
        study.kept = frozenset(state.digests() | {digest} | ({kept_kin} - {""}))
        await self._drop_others(study)
        core.count(snapshots_kept=1)
        log.info("snapshot kept study=%s sequence=%d blocks=%d", study.ref.name, sequence, len(blocks))

    async def _drop_others(self, study: Study) -> None:
        """Purge what the newest head does not name; of a study that is being removed everything."""
        core, uid = self.core, study.ref.uid
        stream, prefix = core.space.control_stream, core.space.kept(uid, "")
        for subject in await core.broker.subjects(stream, core.space.kept_of(uid)):
            if subject.removeprefix(prefix).partition(".")[0] not in study.kept:
                await core.broker.purge(stream, subject)
        if study.cancelled:
            await core.broker.purge(stream, core.space.kept_of(uid))
            await core.broker.purge(stream, core.space.snapshot(uid))

    async def find(self, study: Study) -> None:
        """Give a study whose log was not read yet the ledger that was kept of it, where there is one that can be believed.

        Raises:
            merlin_operator.stream.Outage: the broker did not answer.
        """
        try:
            found = await self._find(study)
        except (SealError, ValidationError, blob.BlobError, snapshot.SnapshotError, zlib.error) as error:
            self.core.refuse(error)
            log.warning("snapshot refused, reading the whole log study=%s error=%s", study.ref.name, error)
            return
        if found is not None:
            self.core.count(snapshots_found=1)
            log.info("snapshot found study=%s sequence=%d", study.ref.name, found)

    async def _find(self, study: Study) -> int | None:
        assert study.plan is not None
        core, uid, space = self.core, study.ref.uid, self.core.space
        stored = await core.broker.last(space.control_stream, space.snapshot(uid))
        if stored is None:
            return None
        head = Head.model_validate_json(core.open_own(uid, stored))
        entry = await core.broker.stored(space.report_stream, head.sequence)
        incarnation = await core.broker.incarnation(space.report_stream)
        if entry is None or (head.at, head.incarnation, head.plan) != (entry.at, incarnation, study.plan.hash):
            log.warning("snapshot of another log or plan, reading the whole log study=%s", study.ref.name)
            return None
        state = snapshot.State.model_validate_json(await self._read(uid, head.state))
        blocks = {digest: await self._read(uid, digest) for digest in state.digests()}
        asked = kin.Kin.model_validate_json(await self._read(uid, head.kin)) if head.kin else kin.Kin()
        study.ledger = snapshot.thaw(study.plan, state, blocks)
        asked.give(study)
        study.folded, study.verdict, study.entries = head.sequence, head.verdict, 0
        study.kept = frozenset(blocks) | ({head.state, head.kin} - {""})
        study.folded_as, study.first = hash(entry.data), head.sequence
        return head.sequence

    async def _read(self, uid: str, digest: str) -> bytes:
        data = await self._contents.read(uid, self.core.space.kept(uid, digest))
        if data is None:
            raise snapshot.SnapshotError(f"{digest} is not there")
        return zlib.decompress(data)


def _packed(state: wire.Message, blocks: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Return the state's digest, and everything compressed by its digest, the state last."""
    data = zlib.compress(state.encode(), 1)
    digest = hashlib.sha256(data).hexdigest()[:40]
    return digest, {each: zlib.compress(block, 1) for each, block in blocks.items()} | {digest: data}
