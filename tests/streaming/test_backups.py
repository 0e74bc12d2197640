"""Copies of a log, of a real nats-server: what is put back is the newest one that is whole, and never over a log that is there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from merlin_operator.backup import HEAD, KEPT, Backup, newest
from merlin_operator.stream import Broker, Stored, copies
from merlin_study.subjects import Space
from tests import ground

SPACE = Space("local")
LARGE = b"x" * 300_000
"""More than travels at once."""


@asynccontextmanager
async def connected(server: ground.Broker) -> AsyncIterator[Broker]:
    """An operator's connection."""
    broker, up = Broker(SPACE, server=server.url, options=dict(server.credentials)), asyncio.Event()

    async def met() -> None:
        up.set()

    running = asyncio.create_task(broker.run(met))
    await up.wait()
    yield broker
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def tell(broker: Broker, fence: int, what: bytes) -> None:
    await broker.append(SPACE.reports("u", fence), what, expected=0)


async def log_of(broker: Broker) -> list[tuple[str, bytes]]:
    """All that the log has, by sequence."""
    end = await broker.last_sequence(SPACE.report_stream)
    found = [await broker.stored(SPACE.report_stream, sequence) for sequence in range(1, end + 1)]
    return [(each.subject, each.data) for each in found if isinstance(each, Stored)]


def wiped(server: ground.Broker) -> None:
    server.kill()
    shutil.rmtree(server.directory / "store")
    server.start()


def test_a_wiped_broker_is_given_the_newest_copy_that_is_whole(broker: ground.Broker, tmp_path: Path) -> None:
    place = tmp_path / "snapshots"

    async def before() -> list[tuple[str, bytes]]:
        async with connected(broker) as operator:
            await operator.ensure_streams()
            backup = Backup(place, generation=2, every=60.0)
            assert newest(place) is None
            await tell(operator, 1, LARGE)
            await operator.put(SPACE.control("u"), b"a word")
            assert await backup.take(operator)
            assert not await backup.take(operator), "nothing was written since"
            (place / ".000002-000000002").mkdir()  # whoever was here before died over it
            await tell(operator, 2, b"more")
            assert await backup.take(operator)
            told = await log_of(operator)
            await tell(operator, 3, b"not copied")
            assert await Backup(place, generation=3, every=60.0).take(operator), "a later generation goes on"
            assert len(list(place.iterdir())) == KEPT, "older ones, and what was left of them, are gone"
            assert await backup.put_back(operator) is None, "there is a log"
            assert len(await log_of(operator)) == 3
            await Backup(place, generation=1, every=60.0).take(operator)
        return told

    told = asyncio.run(before())
    kept = sorted(place.iterdir())
    assert [copy.name[:6] for copy in kept] == ["000002", "000003"], "one that finishes late counts for nothing"
    with (kept[-1] / "reports").open("r+b") as file:
        file.truncate(100)

    async def after() -> None:
        async with connected(broker) as operator:
            await operator.ensure_streams()
            await copies.drop(operator, SPACE.report_stream)  # all that an attempt that died had come to
            backup = Backup(place, generation=4, every=60.0)
            assert await backup.put_back(operator) == kept[0]
            size = sum((kept[0] / role).stat().st_size for role in ("reports", "control"))
            assert backup.put >= 2 * size, "what was read and put back is told"
            await operator.ensure_streams()
            assert await log_of(operator) == told
            word = await operator.last(SPACE.control_stream, SPACE.control("u"))
            assert word is not None
            assert word.data == b"a word"
            assert SPACE.task_stream in await copies.names(operator), "made anew, without chunks"
            assert await operator.last_sequence(SPACE.task_stream) == 0

    wiped(broker)
    asyncio.run(after())


def test_without_a_copy_that_is_whole_the_broker_stays_empty(broker: ground.Broker, tmp_path: Path) -> None:
    place = tmp_path / "snapshots"

    async def story() -> None:
        async with connected(broker) as operator:
            backup = Backup(place, generation=1, every=60.0)
            assert await backup.put_back(operator) is None
            await operator.ensure_streams()
            assert await backup.take(operator)
            (copy,) = place.iterdir()
            (copy / HEAD).write_text("{")
            await copies.drop(operator, SPACE.report_stream)
            assert await backup.put_back(operator) is None
            assert SPACE.report_stream not in await copies.names(operator)

    asyncio.run(story())
