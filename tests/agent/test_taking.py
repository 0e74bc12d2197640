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
from tests.agent.standin import Standin, a_plan, a_step
from tests.ground import Broker, eventually_async

SLOTS = 4


class Busy:
    """An agent's intake and slots that all have a task of a second; what is claimed stays ready."""

    def __init__(self, operator: Standin) -> None:
        self.taken: list[Held] = []
        self.busy = SLOTS
        credentials = Credentials(token=operator.broker.credentials["token"])
        self.link = Link(server=operator.broker.url, credentials=credentials, name="tried")
        self.intake = Intake(
            Post(self.link, operator.keys, operator.space),
            Taste("here", (), "", Host(SLOTS)),
            load=lambda: Load(slots=SLOTS, busy=self.busy, ready=len(self.taken), mean=1.0),
            reach=Reach(hosts=lambda: 1, has_room=lambda: False),
            seconds_left=lambda: float("inf"),
            accept=self.taken.append,
            refuse=pytest.fail,
            offered=Offered(retimed=lambda: None, quarantined=lambda: None, recalled=lambda _: None),
        )

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

            async def has_taken(count: int) -> bool:
                await asyncio.sleep(0)
                return len(busy.taken) >= count

            await eventually_async(lambda: has_taken(taken), message="what is to be ready is taken")
            assert len(busy.taken) == taken
            busy.busy = 0
            busy.intake.wake()
            await eventually_async(lambda: has_taken(min(waiting, SLOTS)), message="free slots take what was left")

    with Standin(broker, tmp_path) as operator:
        operator.up(a_plan(a_step("sim", ":")))
        for number in range(waiting):
            operator.issue(range(number, number + 1))
        asyncio.run(take())
