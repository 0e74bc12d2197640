"""Pull consumers and offers: what agents may pull, made for live agents and active studies, and removed after them."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, cast

from merlin_operator import fleet, unroll
from merlin_operator.core import AGENTS_SCOPE, Core
from merlin_operator.stream import ConsumerSpec
from merlin_study import subjects, wire

_LEAST_LOOK: Final = 2.0
"""Seconds between two looks at the consumers that there are, at least."""


class Router:
    """Keeps the task stream's consumers and each site's offer as `merlin_operator.fleet.routes` wants them."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._offers: dict[str, wire.Offer] = {}
        self._consumers: set[str] | None = None
        self._looked = 0.0
        self._unwanted: dict[str, float] = {}

    def connected(self) -> None:
        """Forget what was made: the broker may be another one."""
        self._consumers = None
        self._offers.clear()

    async def route(self, now: float) -> None:
        """Make the consumers that are missing, tell agents of them, remove those that nobody wanted for a while."""
        core = self.core
        plans = [(study.site, study.plan) for study in core.awake() if study.active and study.plan is not None]
        routes = fleet.routes(plans, list(core.fleet.live(now)))
        wanted = {route.consumer: route for each in routes.values() for route in each}
        # Somebody may have deleted one, and no event tells: an agent whose consumer is gone counts as there, and gets nothing.
        if self._consumers is None or now - self._looked > max(_LEAST_LOOK, core.config.timing.lost_after / 2):
            self._consumers, self._looked = set(await core.broker.consumers()), now
        missing = sorted(set(wanted) - self._consumers)
        if missing:
            self._offers.clear()  # who pulled from one of these before backs off until the offer comes again
        for name in missing:
            spec = ConsumerSpec(name, core.space.chunks(wanted[name]), wanted[name].token)
            await core.broker.ensure_consumer(spec)
            self._consumers.add(name)
        count = Counter(agent.site for agent in core.fleet.live(now))
        for site, each in routes.items():
            await self._offer(site, each, agents=count[site])
        for site in {site for site, _ in core.fleet.resting} - routes.keys():
            await self._offer(site, set(), agents=count[site])
        self._unwanted = {name: self._unwanted.get(name, now) for name in self._consumers - set(wanted)}
        for name, since in sorted(self._unwanted.items()):
            if now - since > core.config.timing.lost_after:  # one allocation's end is often another's start
                await core.broker.delete_consumer(name)
                self._consumers.discard(name)

    async def _offer(self, site: str, routes: set[subjects.Route], *, agents: int) -> None:
        consumers = tuple(
            wire.Consumer(name=route.consumer, queue=route.queue, shape=route.shape, band=_band(route))
            for route in sorted(routes, key=lambda route: (route.band == unroll.BULK, route.token))
        )
        resting, held = self.core.fleet.resting, self.core.watch.held
        offer = wire.Offer(
            consumers=consumers,
            timing=self.core.config.timing,
            quarantined=tuple(sorted(host for at, host in resting if at == site)),
            agents=1 << (agents - 1).bit_length() if agents else 0,
            proving=tuple(sorted(host for at, host in held if at == site and (at, host) not in resting)),
            recalls=tuple(
                study.recall for study in self.core.awake() if study.recall is not None and study.recall_site == site
            ),
        )
        if self._offers.get(site) != offer:
            subject = self.core.space.offer(site)
            await self.core.broker.put(subject, self.core.seal(AGENTS_SCOPE, subject, offer.encode()))
            self._offers[site] = offer


def _band(route: subjects.Route) -> Literal["urgent", "bulk"]:
    return cast("Literal['urgent', 'bulk']", route.band)
