"""The agents of one allocation as one: the first host's leads, the others keep cores for it and otherwise work by themselves.

Each agent has its own connection to the broker and takes tasks of its own host. The leader alone takes tasks of several hosts: it has
the others keep cores for one, and starts it with a launcher over just these hosts. Without a leader, or without a way to it, the others
go on; what they keep for it they give back after `PATIENCE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Final

from merlin_agent import pairing
from merlin_agent.chunkrun import Stop
from merlin_agent.feed import Feed
from merlin_agent.pairing import (
    Channel,
    Expect,
    Hello,
    Idle,
    Keep,
    Kept,
    Leave,
    Lend,
    PairingError,
    Refused,
    Release,
    Rendezvous,
)
from merlin_agent.wide import Wide
from merlin_study.shape import Shape

_log: Final = logging.getLogger(__name__)

PATIENCE: Final = 20.0
"""Seconds of silence after which the other side counts as gone."""
RETURNS_WITHIN: Final = 10.0
"""Seconds within which an agent whose connection is gone is back; then its host counts as dead, and what runs over it is ended."""
SIGN_OF_LIFE: Final = 2.0
_LOOK_EVERY: Final = 1.0
_ASK_EVERY: Final = 0.1
_TRY_FOR: Final = 3.0


class OwnNode:
    """The leader's own host."""

    def __init__(self, host: str, feed: Feed, size: tuple[int, int], *, wide: Wide, freed: Callable[[], None]) -> None:
        self.host, self._feed, self._wide, self._freed = host, feed, wide, freed
        self.cores, self.gpus = size
        self._loop = asyncio.get_running_loop()

    def keep(self, key: str, needs: Shape) -> None:
        """See `wide.Node`."""
        seconds = self._feed.keep(key, needs, self._kept)
        if seconds:
            self._loop.call_soon(self._wide.expects, key, seconds)

    def _kept(self, key: str, turn: int, cpus: frozenset[int]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent has left
            self._loop.call_soon_threadsafe(self._wide.kept, key, turn, cpus)

    def lend(self, key: str, turn: int, seconds: float) -> None:
        """See `wide.Node`."""
        self._feed.lend(key, turn, seconds)
        self._freed()

    def release(self, key: str) -> None:
        """See `wide.Node`."""
        self._feed.release(key)
        self._freed()


class _Member:
    """Another host, at the other end of a connection."""

    def __init__(self, channel: Channel, hello: Hello) -> None:
        self.host, self.cores, self.gpus, self.agent = hello.host, hello.cores, hello.gpus, hello.agent
        self.channel = channel
        self.idle = 0.0
        self.left = False
        """Whether it said so before its connection was gone."""
        self.heard = asyncio.get_running_loop().time()

    def keep(self, key: str, needs: Shape) -> None:
        """See `wide.Node`."""
        self.channel.say(Keep(key=key, cores=needs.cores, gpus=needs.gpus))

    def lend(self, key: str, turn: int, seconds: float) -> None:
        """See `wide.Node`."""
        self.channel.say(Lend(key=key, turn=turn, seconds=seconds))

    def release(self, key: str) -> None:
        """See `wide.Node`."""
        self.channel.say(Release(key=key))


class Leader:
    """The agent of the first host: listens for the others and lends their cores to `Wide`."""

    def __init__(
        self,
        wide: Wide,
        *,
        host: str,
        path: str,
        toward: str,
        changed: Callable[[], None],
        dead: Callable[[str], None],
    ) -> None:
        """Keep what is needed.

        Args:
            wide: What uses the hosts.
            host: Our own.
            path: The rendezvous file.
            toward: See `pairing.addresses`.
            changed: Told that a host joined or left.
            dead: Told of a host that has no agent any more, though none said that it left.
        """
        self._wide, self._host, self._path, self._toward, self._changed = wide, host, path, toward, changed
        self._dead = dead
        self._closed = False
        self._last_word: Leave | None = None
        """What those are told that come while we leave."""
        self._parted: set[str] = set()
        """Hosts whose agents said that they leave."""
        self._relieving: set[str] = set()
        """Agents whose host had another one before, which said that it leaves."""
        self._members: dict[str, _Member] = {}
        self._first_seen: dict[str, float] = {}
        """By agent; on the loop's clock."""
        self._missed: dict[str, asyncio.TimerHandle] = {}
        """By host, of those whose connection is gone without a word: what judges that, in time, unless it comes back."""
        self._server: asyncio.Server | None = None
        self._key = secrets.token_bytes(32)

    async def open(self) -> None:
        """Listen, and say where.

        Raises:
            OSError: that can't be done here.
        """
        # One socket for both families: each would have a port of its own.
        both = socket.has_dualstack_ipv6()
        listening = socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=pairing.LONGEST_LINE)
        port = self._server.sockets[0].getsockname()[1]
        place = Rendezvous(pairing.addresses(self._toward), port, self._key)
        await asyncio.to_thread(pairing.publish, self._path, place)

    def retire(self) -> None:
        """Tell the others to leave once what they run has ended."""
        self._say(Leave(finish=True))

    def warn(self, *, late: bool) -> None:
        """Have the others leave beside us, where ``late`` not before the allocation's end makes them."""
        self._last_word = Leave(late=late)
        self._say(self._last_word)

    def _say(self, word: Leave) -> None:
        for member in self._members.values():
            member.channel.say(word)

    def close(self, *, late: bool = False) -> None:
        """Tell the others to leave, where ``late`` not before the allocation's end makes them, and listen no more."""
        self._closed = True
        self._say(Leave(late=late))
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    @property
    def size(self) -> int:
        """How many other agents there are."""
        return len(self._members)

    @property
    def heard(self) -> int:
        """How many other agents there are, or were until they said that they leave."""
        return len(self._parted | self._members.keys())

    @property
    def idle(self) -> float:
        """For how long none of the others has had anything to do; infinite without others."""
        return min((member.idle for member in self._members.values()), default=float("inf"))

    async def loss(self, hosts: Iterable[str], began: float) -> Stop | None:
        """Return whether one of these hosts has lost the agent that it had at a time, and most likely all that ran there.

        HANDED_BACK where that agent had said that it leaves, HOST_LOST where it is gone without a word.

        Waits until each of the others has given a sign of life, at most `PATIENCE`: a host that dies takes the launcher with it before its
        silence tells. ``began`` is on the loop's clock.
        """
        loop = asyncio.get_running_loop()
        asked = loop.time()
        for host in hosts:
            while host != self._host:
                member = self._members.get(host)
                if member is None:
                    return Stop.HANDED_BACK if host in self._parted else Stop.HOST_LOST
                if self._first_seen[member.agent] > began:
                    return Stop.HANDED_BACK if member.agent in self._relieving else Stop.HOST_LOST
                if member.heard > asked:
                    break
                await asyncio.sleep(_ASK_EVERY)
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer, self._key, leads=True)
        member: _Member | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                await channel.open()
                hello = await channel.hear()
            member = self._welcome(channel, hello)
            await self._listen(member)
        except (OSError, TimeoutError, PairingError) as error:
            _log.info("%s: %s", member.host if member else "a connection", str(error) or type(error).__name__)
        finally:
            channel.close()
            if member is not None and self._members.get(member.host) is member:
                del self._members[member.host]
                self._wide.part(member)
                self._changed()
                if not member.left:
                    self._missed[member.host] = asyncio.get_running_loop().call_later(
                        RETURNS_WITHIN, self._miss, member.host
                    )

    def _miss(self, host: str) -> None:
        if not self._closed:
            _log.warning("%s: its agent is gone without a word; the host counts as dead", host)
            self._dead(host)

    def _welcome(self, channel: Channel, hello: pairing.Line) -> _Member:
        if not isinstance(hello, Hello):
            raise PairingError(f"expected a hello, found {hello.kind}")
        before = self._members.get(hello.host)
        if hello.host in self._wide.nodes and (before is None or before.agent != hello.agent):
            why = f"{hello.agent}: {hello.host} has an agent already; start one on each host"
            channel.say(Refused(why=why))
            raise PairingError(why)
        if before is not None:
            self._wide.part(before)
        member = self._members[hello.host] = _Member(channel, hello)
        if hello.host in self._parted and hello.agent not in self._first_seen:
            self._relieving.add(hello.agent)
        self._parted.discard(hello.host)
        self._first_seen.setdefault(hello.agent, member.heard)
        if (missed := self._missed.pop(hello.host, None)) is not None:
            missed.cancel()
        for key in hello.keys:
            if not self._wide.knows(key):
                member.release(key)
        self._wide.join(member)
        self._changed()
        if self._last_word is not None:
            channel.say(self._last_word)
        return member

    async def _listen(self, member: _Member) -> None:
        while True:
            async with asyncio.timeout(PATIENCE):
                line = await member.channel.hear()
            member.heard = asyncio.get_running_loop().time()
            match line:
                case Kept():
                    self._wide.kept(line.key, line.turn, frozenset(line.cpus))
                case Expect():
                    self._wide.expects(line.key, line.seconds)
                case Idle():
                    member.idle = line.seconds
                    member.channel.say(Idle(seconds=0))
                case Leave():
                    member.left = True
                    self._parted.add(member.host)
                    return
                case _:
                    raise PairingError(f"an unexpected {line.kind}")


class Member:
    """The agent of another host: keeps cores for the leader while there is one."""

    def __init__(  # noqa: PLR0913 - what each part needs
        self,
        feed: Feed,
        *,
        path: str,
        host: str,
        agent: str,
        size: tuple[int, int],
        idle: Callable[[], float],
        freed: Callable[[], None],
        leave: Callable[[Leave], None],
        complain: Callable[[str], None],
    ) -> None:
        """Keep what is needed.

        Args:
            feed: What keeps cores.
            path: The rendezvous file.
            host: Ours, as the job spells it.
            agent: Our name.
            size: Our cores and GPUs.
            idle: For how long we have had nothing to do.
            freed: Told that cores were given back, so that there is room for tasks of our own.
            leave: Called when the leader gives the allocation up, with its word.
            complain: Told why the leader does not take us.
        """
        self._complain = complain
        self._refused_since: float | None = None
        self._feed, self._path, self._idle, self._freed, self._leave = feed, path, idle, freed, leave
        self._me = Hello(host=host, agent=agent, cores=size[0], gpus=size[1])
        self.led = False
        """Whether there is a leader, which decides when all leave."""
        self._channel: Channel | None = None

    async def run(self) -> None:
        """Keep to the leader until cancelled."""
        loop = asyncio.get_running_loop()
        alone_since, problem = loop.time(), ""
        while True:
            try:
                if (place := await asyncio.to_thread(pairing.read, self._path)) is not None:
                    await self._follow(place)
            except (OSError, TimeoutError, PairingError) as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.info("the allocation's leading agent can't be reached: %s", error)
            if self.led:
                self.led, alone_since = False, loop.time()
                _log.info("the allocation's leading agent is gone; going on alone")
            if loop.time() - alone_since > PATIENCE:
                self.forsake()
            await asyncio.sleep(_LOOK_EVERY)

    def forsake(self) -> None:
        """Keep nothing any more, and say that we leave."""
        if self._channel is not None:
            self._channel.say(Leave())
        for key in self._feed.keys:
            self._feed.release(key)
        self._freed()

    async def _follow(self, place: Rendezvous) -> None:
        reader, writer = await _connect(place)
        channel = Channel(reader, writer, place.key, leads=False)
        signs: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                await channel.open()
            channel.say(self._me.model_copy(update={"keys": self._feed.keys}))
            self._channel = channel
            signs = asyncio.create_task(self._give_signs(channel))
            while True:
                async with asyncio.timeout(PATIENCE):
                    line = await channel.hear()
                if isinstance(line, Refused):
                    self._bear(line.why)
                    return
                self.led, self._refused_since = True, None
                self._obey(channel, line)
        finally:
            self._channel = None
            if signs is not None:
                signs.cancel()
            channel.close()

    def _bear(self, why: str) -> None:
        """Leave where we stay refused: two agents of one host would run twice what it has.

        Not at once: one that died here without a word is missed only after a while.
        """
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
            self._complain(why)
        elif now - self._refused_since > PATIENCE + RETURNS_WITHIN:
            self._leave(Leave(finish=True))

    def _obey(self, channel: Channel, line: pairing.Line) -> None:
        loop = asyncio.get_running_loop()

        def kept(key: str, turn: int, cpus: frozenset[int]) -> None:
            loop.call_soon_threadsafe(channel.say, Kept(key=key, turn=turn, cpus=tuple(sorted(cpus))))

        match line:
            case Keep():
                seconds = self._feed.keep(line.key, Shape(cores=line.cores, gpus=line.gpus), kept)
                if seconds:
                    channel.say(Expect(key=line.key, seconds=seconds))
            case Lend():
                self._feed.lend(line.key, line.turn, line.seconds)
                self._freed()
            case Release():
                self._feed.release(line.key)
                self._freed()
            case Leave():
                self._leave(line)
            case Idle():
                pass
            case _:
                raise PairingError(f"an unexpected {line.kind}")

    async def _give_signs(self, channel: Channel) -> None:
        while True:
            channel.say(Idle(seconds=self._idle()))
            await asyncio.sleep(SIGN_OF_LIFE)


async def _connect(place: Rendezvous) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for address in place.addresses:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TRY_FOR):
                return await asyncio.open_connection(address, place.port, limit=pairing.LONGEST_LINE)
    raise ConnectionError(f"none of {', '.join(place.addresses)} answers on port {place.port}")
