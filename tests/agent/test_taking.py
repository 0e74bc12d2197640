"""What an agent takes ahead of need, and what it leaves to others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from merlin_agent.config import Credentials
from merlin_agent.demand import Host, Load
from merlin_agent.intake import Held, Intake, Offered, Reach, Taste
from merlin_agent.link import Link
from merlin_agent.post import Post
from tests.agent.standin import Standin, a_plan, a_route, a_step
from tests.ground import Broker, eventually_async

SLOTS = 4


class Busy:
    """An agent's intake and slots that all have a task of a second; what is claimed stays ready."""

    def __init__(self, operator: Standin, *queues: str) -> None:
        self.taken: list[Held] = []
        self.busy = SLOTS
        credentials = Credentials(token=operator.broker.credentials["token"])
        self.link = Link(server=operator.broker.url, credentials=credentials, name="tried")
        self.intake = Intake(
            Post(self.link, operator.keys, operator.space),
            Taste("here", queues, "", Host(SLOTS)),
            load=lambda: Load(slots=SLOTS, busy=self.busy, ready=len(self.taken), mean=1.0),
            reach=Reach(hosts=lambda: 1, has_room=lambda: False),
            seconds_left=lambda: float("inf"),
            accept=self.taken.append,
            refuse=pytest.fail,
            offered=Offered(retimed=lambda: None, quarantined=lambda: None, recalled=lambda _: None),
        )

    async def has_taken(self, count: int) -> None:
        """Wait until so many chunks are taken."""

        async def has() -> bool:
            return len(self.taken) >= count

        await eventually_async(has, message=f"{count} chunks are taken")

    async def has_fetched(self, count: int) -> None:
        """Wait until so many chunks are here that are not taken."""

        async def has() -> bool:
            return self.intake.waiting == count

        await eventually_async(has, message=f"{count} chunks are fetched")

    @contextlib.asynccontextmanager
    async def takes(self) -> AsyncIterator[None]:
        """Take what comes."""
        runs = [asyncio.create_task(part) for part in (self.link.run(), self.intake.run())]
        yield
        self.link.close()
        runs[1].cancel()
        await asyncio.wait(runs)


@pytest.mark.parametrize(("waiting", "taken"), [(10, SLOTS), (3, 2), (1, 1)])
def test_a_busy_agent_takes_a_short_task_for_each_slot_but_not_the_last_one_that_waits(
    broker: Broker, tmp_path: Path, waiting: int, taken: int
) -> None:
    """What nobody else has taken there is enough of for all; of the last ones others may have slots free for."""

    async def take() -> None:
        busy = Busy(operator)
        async with busy.takes():
            await busy.has_taken(taken)
            assert len(busy.taken) == taken
            busy.busy = 0
            busy.intake.wake()
            await busy.has_taken(min(waiting, SLOTS))  # free slots take what was left

    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")))
        for number in range(waiting):
            operator.issue(range(number, number + 1))
        asyncio.run(take())


def test_what_waits_in_a_queue_that_an_agent_has_left_says_nothing_of_its_next_one(
    broker: Broker, tmp_path: Path
) -> None:
    """Of the next one others may have slots free for the last chunk."""

    async def take() -> None:
        busy = Busy(operator, "left")
        async with busy.takes():
            await busy.has_taken(SLOTS)
            await busy.has_fetched(1)  # so that nothing of the old queue is on its way any more
            busy.taken.clear()
            busy.intake.serve(("next",))
            await busy.has_taken(2)
            assert len(busy.taken) == 2

    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")))
        routes = [a_route(queue=queue) for queue in ("left", "next")]
        operator.offer("here", *routes)
        for number in range(13):
            operator.issue(range(number, number + 1), route=routes[number >= 10])
        asyncio.run(take())
