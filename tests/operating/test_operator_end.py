"""The operator ends when it is asked to, also where a cancellation gets lost on the way."""

import asyncio
import time

import pytest
from kubernetes import client

from merlin_operator import cluster
from tests.operating.running import RecordingEngine, running


def test_a_board_ends_although_its_cancellation_comes_together_with_news() -> None:
    async def story() -> None:
        for turn in range(50):
            board = cluster.ClusterBoard(cluster.Api(client.Configuration(), "team"))
            task = asyncio.create_task(board._write_studies())
            for _ in range(turn % 5 + 1):
                await asyncio.sleep(0)
            await board.show([], [])
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=180)
            assert done, "the cancellation was heard"

    asyncio.run(story())


@pytest.mark.control_plane
def test_an_operator_ends_although_its_engine_overhears_the_first_cancellation(
    restricted: client.Configuration, namespace: str
) -> None:
    engine = RecordingEngine(stubborn=2)
    with running(restricted, namespace, engine):
        started = time.monotonic()
    assert engine.stubborn < 0
    assert time.monotonic() - started < 60
