"""The agents of one allocation with real connections: who is believed, what is kept, when all leave, and when a host counts as dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from merlin_agent import pairing
from merlin_agent.allies import Leader, Member, OwnNode
from merlin_agent.chunkrun import ChunkRun, Stop
from merlin_agent.feed import Feed
from merlin_agent.pairing import Channel, Hello, Leave, PairingError, Refused, Rendezvous
from merlin_agent.resources import Pool, Share
from merlin_agent.slots import Work
from merlin_agent.wide import Wide
from merlin_study.shape import Shape
from tests.launching.test_wide import a_chunk


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is awaited is in another task's objects
            await asyncio.sleep(0.01)


class Host:
    """An agent's part of an allocation: the second host's, or another."""

    def __init__(self, path: Path, name: str = "n2", cores: int = 2, *, agent: str = "") -> None:
        self.feed, self.idle, self.left, self.looked = Feed(Pool(cores)), 0.0, False, 0
        self.words: list[Leave] = []
        self.problems: list[str] = []
        self.member = Member(
            self.feed,
            path=str(path),
            host=name,
            agent=agent or f"{name}-1",
            size=(cores, 0),
            idle=lambda: self.idle,
            freed=self._look_again,
            leave=self._leave,
            complain=self.problems.append,
        )
        self.running: asyncio.Task[None] | None = None

    def _look_again(self) -> None:
        self.looked += 1

    def _leave(self, word: Leave) -> None:
        self.words.append(word)
        self.left = not word.finish

    def start(self) -> None:
        self.running = asyncio.create_task(self.member.run())

    async def die(self) -> None:
        assert self.running is not None
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


class Allocation:
    """A leader on n1, with what its tasks of several hosts would run on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shares: list[Share] = []
        self.impossible: list[ChunkRun] = []
        self.dead: list[str] = []
        self.feed = Feed(Pool(2))
        self.wide = Wide(self._start, self.impossible.append, most=4)
        self.leader = Leader(
            self.wide, host="n1", path=str(path), toward="localhost", changed=lambda: None, dead=self.dead.append
        )
        self.wide.join(OwnNode("n1", self.feed, (2, 0), wide=self.wide, freed=lambda: None))

    def _start(self, run: ChunkRun, work: Work, share: Share) -> bool:
        del work
        self.shares.append(share)
        return run.take() is not None


@contextlib.asynccontextmanager
async def an_allocation(folder: Path) -> AsyncIterator[Allocation]:
    made = Allocation(folder / "hosts" / "rendezvous.json")
    await made.leader.open()
    try:
        yield made
    finally:
        made.leader.close()


async def a_member(site: Allocation) -> Host:
    """Start the agent of the second host, and wait until the leader counts it."""
    host = Host(site.path)
    host.start()
    await until(lambda: site.leader.size == 1)
    return host


async def a_channel(site: Allocation, key: bytes | None = None) -> tuple[asyncio.StreamReader, Channel]:
    """Connect with the leader, with the key of the rendezvous file or another."""
    place = pairing.read(str(site.path))
    assert place is not None
    reader, writer = await asyncio.open_connection("localhost", place.port)
    channel = Channel(reader, writer, key or place.key, leads=False)
    await channel.open()
    return reader, channel


def test_hosts_keep_cores_for_a_task_of_several_and_give_them_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            other = await a_member(site)
            site.wide.add(a_chunk(1), Work(), Shape(nodes=2, cores=2))
            await until(lambda: len(site.shares) == 1)
            assert site.shares[0].hosts == ("n1", "n2")
            assert (other.feed.busy, site.feed.busy) == (2, 2)
            site.wide.over(site.shares[0].task)
            await until(lambda: other.feed.busy == 0)
            assert other.looked == 1, "it looks for tasks of its own again"
            await other.die()

    asyncio.run(story())


def test_a_host_says_which_of_its_processors_it_keeps_unless_it_keeps_all(tmp_path: Path) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            other = Host(site.path)
            other.feed = other.member._feed = Feed(Pool(2, (), (frozenset({4}), frozenset({5, 7}))))
            other.start()
            await until(lambda: site.leader.size == 1)
            for cores, pins in ((1, (("n2", frozenset({4})),)), (2, ())):
                site.wide.add(a_chunk(1), Work(), Shape(nodes=2, cores=cores))
                await until(lambda: bool(site.shares))
                share = site.shares.pop()
                assert share.pins == pins
                site.wide.over(share.task)
            await other.die()

    asyncio.run(story())


def test_what_a_member_kept_for_a_leader_that_is_gone_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_agent.allies.PATIENCE", 0.5)

    async def story() -> None:
        other = Host(tmp_path / "hosts" / "rendezvous.json")
        async with an_allocation(tmp_path) as site:
            other.start()
            await until(lambda: site.leader.size == 1)
            site.wide.add(a_chunk(1), Work(), Shape(nodes=2, cores=1))
            await until(lambda: other.feed.busy == 1)
        await until(lambda: not other.member.led)
        await until(lambda: other.feed.busy == 0)
        assert other.left, "a leader that leaves takes the others with it"
        await other.die()

    asyncio.run(story())


def test_the_allocation_is_as_idle_as_its_busiest_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merlin_agent.allies.SIGN_OF_LIFE", 0.02)

    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            assert site.leader.idle == float("inf"), "nobody else keeps it up"
            two, three = Host(site.path), Host(site.path, "n3")
            two.idle, three.idle = 100.0, 7.0
            two.start()
            three.start()
            await until(lambda: site.leader.size == 2 and site.leader.idle == 7.0)
            three.idle = 200.0
            await until(lambda: site.leader.idle == 100.0)
            await two.die()
            await three.die()

    asyncio.run(story())


def test_a_host_counts_as_dead_where_its_agent_is_gone_and_as_alive_after_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_agent.allies.SIGN_OF_LIFE", 0.05)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with an_allocation(tmp_path) as site:
            other = await a_member(site)
            began = loop.time()
            assert not await site.leader.loss(("n1", "n2"), began)
            await other.die()
            assert await site.leader.loss(("n1", "n2"), began) is Stop.HOST_LOST, "its connection is gone with it"
            assert not await site.leader.loss(("n1",), began), "our own is alive"
            again = Host(site.path, agent="n2-2")
            again.start()
            await until(lambda: site.leader.size == 1)
            assert await site.leader.loss(("n2",), began) is Stop.HOST_LOST, (
                "another agent is there, the one of that time is not"
            )
            assert not await site.leader.loss(("n2",), loop.time()), "for what began since, it is"
            await again.die()

    asyncio.run(story())


def test_a_host_is_dead_whose_agent_is_gone_without_a_word_and_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_agent.allies.RETURNS_WITHIN", 0.5)

    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            leaves, returns, dies = (Host(site.path, name) for name in ("n2", "n3", "n4"))
            for each in (leaves, returns, dies):
                each.start()
            await until(lambda: site.leader.size == 3)
            began = asyncio.get_running_loop().time()
            site.wide.add(a_chunk(1), Work(), Shape(nodes=4, cores=2))
            await until(lambda: len(site.shares) == 1)
            assert site.wide.over_host("n4") == {site.shares[0].task}
            leaves.member.forsake()
            await until(lambda: site.leader.size == 2)
            for each in (leaves, returns, dies):
                await each.die()
            returns.start()
            await until(lambda: bool(site.dead))
            await until(lambda: site.leader.size == 1)
            assert site.dead == ["n4"]
            assert await site.leader.loss(("n1", "n2"), began) is Stop.HANDED_BACK, (
                "it had said so: no task took it along"
            )
            assert await site.leader.loss(("n1", "n4"), began) is Stop.HOST_LOST
            leaves = Host(site.path, agent="n2-2")
            leaves.start()
            await until(lambda: site.leader.size == 2)
            assert await site.leader.loss(("n1", "n2"), began) is Stop.HANDED_BACK
            await leaves.die()
            await returns.die()

    asyncio.run(story())


def test_each_loss_of_a_connection_has_the_whole_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_agent.allies.RETURNS_WITHIN", 600.0)

    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            for _ in range(2):
                host = await a_member(site)
                assert not site.leader._missed, "what began with the loss before has ended"
                await host.die()
                await until(lambda: site.leader.size == 0)
            (judged,) = site.leader._missed.values()
            host = await a_member(site)
            assert judged.cancelled()
            await host.die()

    asyncio.run(story())


def test_a_second_agent_of_a_host_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            _, channel = await a_channel(site)
            channel.say(Hello(host="n1", agent="another", cores=1, gpus=0))
            assert isinstance(await channel.hear(), Refused)
            with pytest.raises((PairingError, OSError)):
                await channel.hear()
            channel.close()
            assert (site.leader.size, set(site.wide.nodes)) == (0, {"n1"})

    asyncio.run(story())


def test_an_agent_that_stays_refused_as_the_second_of_its_host_leaves_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of the host's cores each, the two would run twice what it has."""
    monkeypatch.setattr("merlin_agent.allies.RETURNS_WITHIN", -19.0)

    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            first, second = Host(site.path), Host(site.path)
            second.member._me = second.member._me.model_copy(update={"agent": "n2-2"})
            first.start()
            await until(lambda: site.leader.size == 1)
            second.start()
            await until(lambda: bool(second.words))
            assert second.words[0] == Leave(finish=True)
            assert second.problems == ["n2-2: n2 has an agent already; start one on each host"]
            assert (first.words, site.leader.size) == ([], 1)
            await first.die()
            await second.die()

    asyncio.run(story())


def test_members_are_told_that_they_may_stay_until_the_allocation_s_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            host = await a_member(site)
            site.leader.close(late=True)
            await until(lambda: bool(host.words))
            assert host.words == [Leave(late=True)]
            await host.die()

    asyncio.run(story())


def test_members_are_told_as_soon_as_the_leader_begins_to_leave_and_those_that_come_then_too(tmp_path: Path) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            host, late = Host(site.path), Host(site.path, "n3")
            host.start()
            await until(lambda: site.leader.size == 1)
            site.leader.warn(late=True)
            await until(lambda: bool(host.words))
            late.start()
            await until(lambda: bool(late.words))
            assert host.words + late.words == [Leave(late=True)] * 2
            assert site.leader.size == 2, "they are heard until they have ended what they run"
            host.member.forsake()
            await until(lambda: site.leader.size == 1)
            assert site.leader.heard == 2
            await late.die()
            await until(lambda: site.leader.size == 0)
            assert site.leader.heard == 1, "who is gone without a word is missed"
            await host.die()

    asyncio.run(story())


@pytest.mark.parametrize("fault", ["another key", "a line said twice"])
def test_who_does_not_know_the_key_or_repeats_a_line_is_not_believed(tmp_path: Path, fault: str) -> None:
    async def story() -> None:
        async with an_allocation(tmp_path) as site:
            reader, channel = await a_channel(site, bytes(32) if fault == "another key" else None)
            channel.say(Hello(host="n2", agent="n2-1", cores=1, gpus=0))
            if fault == "a line said twice":
                await until(lambda: site.leader.size == 1)
                channel._said -= 1  # the number that a line carries is part of its seal
                channel.say(Hello(host="n2", agent="n2-1", cores=1, gpus=0))
            assert await reader.read() == b"" or fault != "another key", "told nothing"
            channel.close()
            await until(lambda: site.leader.size == 0)

    asyncio.run(story())


def test_the_rendezvous_is_the_user_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "hosts" / "rendezvous.json"
    assert pairing.read(str(path)) is None, "no leader yet"
    place = Rendezvous(("n1", "127.0.0.1"), 4711, b"k" * 32)
    pairing.publish(str(path), place)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert pairing.read(str(path)) == place
    path.chmod(0o640)
    with pytest.raises(PairingError, match="mode 0600; remove it"):
        pairing.read(str(path))
    path.write_text(json.dumps({"addresses": []}))
    path.chmod(0o600)
    with pytest.raises(PairingError, match="expected addresses, port and key"):
        pairing.read(str(path))


def test_a_run_of_a_job_and_a_group_have_a_rendezvous_of_their_own() -> None:
    def of(job: str, run: str, *group: str) -> str:
        return pairing.path_of("/w", job=("slurm", job, run), group=group)

    assert of("7", "", "ns", "site") == of("7", "", "ns", "site")
    others = {
        of("7", "1", "ns", "site"),
        of("8", "", "ns", "site"),
        of("7", "", "ns", "other"),
        of("7", "", "n", "ssite"),
    }
    assert len(others | {of("7", "", "ns", "site")}) == 5
