"""Whether the operator still does its work, told by what it did and not by the fact that it answers.

Two things can stop while the process lives. The engine's loop: then its age grows. kopf's watch: then nothing fails, and
nothing arrives. So the operator lists the Studies once a minute and compares. A Study, or a generation of one, that the
watch has not delivered two minutes after a list named it means that the watch is dead. Meanwhile the engine is handed
what it misses from the list; that helps the user, and does not make the watch any more alive.

A list that is older than the one before, or than what the engine knew before, comes from an etcd that was put back to an older
state. What the watch and the engine remember is of a history that did not happen then: the watch would deliver nothing until the
server's revisions have caught up, and a generation that is known may mean another spec. So the operator ends, and the next one reads
what there is.

One port serves ``/healthz`` (restart me), ``/readyz`` (send me nothing yet, for whoever waits) and ``/metrics``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import prometheus_client
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from merlin_operator.board import Submission
from merlin_operator.cluster import Api, ApiError, submission_of

logger = logging.getLogger(__name__)

ENGINE_STUCK_AFTER: Final = 60.0
WATCH_STUCK_AFTER: Final = 120.0
LIST_INTERVAL: Final = 60.0

Generation = tuple[str, int]
"""A Study's uid and one generation of it."""


class RestoredError(Exception):
    """The API server was put back to an older state."""


class Watched(Protocol):
    """What of the engine can be judged from outside."""

    async def observe(self, submission: Submission) -> None:
        """Take note of a Study as it is now."""

    async def sweep(self, live: frozenset[str]) -> None:
        """Clean what the broker holds of Studies that are not there any more."""

    def known(self) -> frozenset[Generation]:
        """Return what it was told of."""

    def quiet_seconds(self) -> float:
        """Return how long ago its loop last went round."""

    def met_broker(self) -> bool:
        """Whether there was a connection to the broker."""


@dataclass(slots=True)
class WatchGuard:
    """Compares what the watch delivered with what is there. Pure: times are given."""

    _delivered: dict[str, int] = field(default_factory=dict)
    _missing: dict[Generation, float] = field(default_factory=dict)

    def delivered(self, uid: str, generation: int) -> None:
        """Note what the watch brought: it is alive for this one, whoever else has told the engine."""
        self._delivered[uid] = max(generation, self._delivered.get(uid, 0))

    def compare(self, listed: Mapping[Generation, str], known: frozenset[Generation], now: float) -> list[str]:
        """Return the names of the Studies, from a list, that the engine was still not told of at the second look."""
        told: dict[str, int] = {}
        for uid, generation in known:
            told[uid] = max(generation, told.get(uid, 0))
        untold = {each for each in listed if told.get(each[0], 0) < each[1]}
        missing = untold | {each for each in listed if self._delivered.get(each[0], 0) < each[1]}
        again = [listed[each] for each in untold if each in self._missing]
        self._missing = {each: self._missing.get(each, now) for each in missing}
        uids = {uid for uid, _ in listed}
        self._delivered = {uid: generation for uid, generation in self._delivered.items() if uid in uids}
        return sorted(again)

    def problem(self, now: float) -> str:
        """Return what is wrong with the watch, or an empty string."""
        late = [uid for (uid, _), since in self._missing.items() if now - since >= WATCH_STUCK_AFTER]
        if not late:
            return ""
        return f"the watch has not delivered {len(late)} studies that are there, uid {min(late)} for one"


class Health:
    """The judgement, and the loop that feeds it."""

    def __init__(self, engine: Watched, api: Api, *, interval: float = LIST_INTERVAL) -> None:
        self.guard = WatchGuard()
        self._engine = engine
        self._api = api
        self._interval = interval
        self._revision = 0
        self._ready = False

    def problem(self) -> str:
        """Return why the process should be restarted, or an empty string."""
        quiet = self._engine.quiet_seconds()
        if quiet > ENGINE_STUCK_AFTER:
            return f"the engine's loop has not gone round for {quiet:.0f} s"
        return self.guard.problem(time.monotonic())

    def unready(self) -> str:
        """Return why nothing should be expected of the process yet, or an empty string."""
        if problem := self.problem():
            return problem
        if not self._ready:
            return "the studies have not been listed yet"
        # Once is enough: without a broker the operator still shows its studies, and says what is missing.
        return "" if self._engine.met_broker() else "the broker has not been reached yet"

    async def run(self) -> None:
        """Look whether the watch is alive, until cancelled. Without an API server there is nothing to compare with.

        Raises:
            RestoredError: nothing that was read so far counts any more.
        """
        while True:
            try:
                await self._look()
                self._ready = True
            except ApiError as error:
                logger.warning("studies not listed, trying again: error=%s", error)
            except RestoredError:
                raise
            except Exception:  # the judge must outlive what it judges
                logger.exception("studies not compared, trying again")
            await asyncio.sleep(self._interval)

    async def _look(self) -> None:
        known = dict(sorted(self._engine.known()))  # the latest generation of each
        found = await self._api.studies()
        if self._api.revision < self._revision:
            was, now = f"at revision {self._revision}", f"at {self._api.revision}"
            raise RestoredError(
                f"the API server was {was}, and is {now}: it was put back to an older state; starting again"
            )
        self._revision = self._api.revision
        for uid, generation in map(_generation, found):
            if generation < known.get(uid, 0):
                was, now = f"study {uid} in generation {known[uid]}", str(generation)
                raise RestoredError(
                    f"the API server had {was}, and has {now}: it was put back to an older state; starting again"
                )
        listed = {_generation(each): _name(each) for each in found if not _leaving(each)}
        for name in self.guard.compare(listed, self._engine.known(), time.monotonic()):
            logger.warning("the watch missed a study, handing it over: study=%s", name)
            await self._hand_over(name)
        await self._engine.sweep(frozenset(each["metadata"]["uid"] for each in found))

    async def _hand_over(self, name: str) -> None:
        found = await self._api.study(name)
        if not _leaving(found):
            await self._engine.observe(submission_of(found))


def application(health: Health, registry: prometheus_client.CollectorRegistry) -> web.Application:
    """Return the web application of a pod: probes and metrics."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=prometheus_client.generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/healthz", _probe(health.problem))
    app.router.add_get("/readyz", _probe(health.unready))
    app.router.add_get("/metrics", metrics)
    return app


def _probe(judge: Callable[[], str]) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.Response:
        problem = judge()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    return answer


def _generation(raw: Mapping[str, Any]) -> Generation:
    return raw["metadata"]["uid"], raw["metadata"]["generation"]


def _name(raw: Mapping[str, Any]) -> str:
    name: str = raw["metadata"]["name"]
    return name


def _leaving(raw: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in raw["metadata"]
