"""Asks the broker how full it is, once in the interval of a heartbeat: a metric, on which nothing in the engine depends."""

from __future__ import annotations

import asyncio
import logging

from merlin_operator.core import Core
from merlin_operator.load import BrokerLoad
from merlin_operator.stream import Outage

log = logging.getLogger(__name__)


class BrokerWatch:
    """Keeps what the broker last said of itself."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.load: BrokerLoad | None = None
        """None while the broker cannot be asked."""

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self.core.broker.wait_connected()
            try:
                self.load = await self.core.broker.load()
            except Outage as error:
                log.log(logging.WARNING if self.load is not None else logging.DEBUG, "load unknown error=%s", error)
                self.load = None
            await asyncio.sleep(self.core.config.timing.heartbeat)
