"""The operator ends when it is asked to, also where a cancellation gets lost on the way."""

import asyncio
import time
from typing import Any

import pytest
from kubernetes import client

from merlin_operator import cluster, farewell
from tests.operating.running import RecordingEngine, running


def test_a_board_ends_although_its_cancellation_comes_together_with_news() -> None:
    async def story() -> None:
        for turn in range(50):
            board = cluster.ClusterBoard(cluster.Api(client.Configuration(), "team"))
            task = asyncio.create_task(board._statuses.run())
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


class Contended:
    """An API server whose Studies change under each of the first writes."""

    def __init__(self, changes: int, status: int) -> None:
        self.changes, self.status = changes, status
        self.held = [{"metadata": {"name": name, "uid": name, "finalizers": ["ours"]}} for name in ("a", "b")]

    async def namespace_ends(self) -> bool:
        """It does."""
        return True

    async def studies(self) -> list[dict[str, Any]]:
        """Return what is left."""
        return list(self.held)

    async def release_study(self, name: str, uid: str, *, held: list[str], kept: list[str]) -> None:
        """Refuse, or let go."""
        assert (held, kept, uid) == (["ours"], [], name)
        if name == "b" and self.changes:
            self.changes -= 1
            raise cluster.ApiError(self.status, "changed")
        self.held = [each for each in self.held if each["metadata"]["name"] != name]


@pytest.mark.parametrize("status", cluster.CHANGED)
def test_studies_that_change_while_they_are_let_go_are_tried_again_after_ever_longer_pauses(status: int) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    assert asyncio.run(farewell.release(Contended(7, status), "ours", pause=pause)) == 2
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
