"""An engine that runs beside a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from merlin_operator.engine import Engine


@contextlib.asynccontextmanager
async def live(engine: Engine) -> AsyncIterator[Engine]:
    """Run an engine for as long as the test is inside, and end it."""
    running = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
