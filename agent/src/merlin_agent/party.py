"""This agent's part among those of its allocation: the only one, the leader, or one of the others.

several hosts, and we are on the first ─► lead; start the others unless somebody did ─► listen
several hosts, and we are on another   ─► keep cores for the leader
one host                               ─► nothing

Where an agent of ours is here already that would take the same cores, or leads, we wait for its end, and not for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from merlin_agent import launching, pairing, sole, spreading
from merlin_agent.allies import PATIENCE, RETURNS_WITHIN, Leader, Member, OwnNode
from merlin_agent.chunkrun import Stop
from merlin_agent.pairing import Leave
from merlin_agent.schedulers import Found
from merlin_agent.slots import Slots

_log: Final = logging.getLogger(__name__)

_BATCH_TYPES: Final = {"slurm": "slurm", "flux": "flux", "lsf": "lsf", "pbs": "pbs"}
_MOST_WIDE: Final = 128
"""Tasks of several hosts at once; each has a thread and a launcher's process on this host."""


def wide_slots(found: Found, cores: int, *, alone: bool) -> int:
    """Return how many tasks of several hosts this agent may run at once."""
    return 0 if alone or not found.leads else min(_MOST_WIDE, len(found.hosts) * cores // 2)


MISSED_FOR: Final = 300.0
"""Seconds that an allocation stays for agents that were started and are not heard, after one has come or gone."""


_LOOK_EVERY: Final = 1.0


class Party:
    """See the module; `start` before tasks come, `leave` when they have ended."""

    def __init__(  # noqa: PLR0913 - what each part needs
        self,
        found: Found,
        slots: Slots,
        *,
        agent: str,
        workspace: str,
        group: Iterable[str],
        server: str,
        gpus: int,
        alone: bool,
        spreads: bool,
        has_part: bool,
        idle: Callable[[], float],
        changed: Callable[[], None],
        freed: Callable[[], None],
        leave: Callable[[Leave], None],
        complain: Callable[[str], None],
    ) -> None:
        """Keep what is needed.

        Args:
            found: The batch job.
            slots: Ours.
            agent: Our name.
            workspace: The directory that all agents of the site see.
            group: See `pairing.path_of`.
            server: The broker's address; who reaches it is reached by the same way.
            gpus: How many this host gives.
            alone: We have nothing to do with others.
            spreads: We may start the others.
            has_part: Our user has said how much of this host is ours.
            idle: For how long we have had nothing to do.
            changed: Told that tasks may run over another number of hosts now.
            freed: Told that there is room for tasks of our own again.
            leave: Called when the leader gives the allocation up, with its word.
            complain: Told of problems.
        """
        self._found, self._slots, self._agent = found, slots, agent
        self._spreads, self._idle, self._changed, self._leave, self._complain = spreads, idle, changed, leave, complain
        self._freed = freed
        self._size = slots.count, gpus
        self._path = pairing.path_of(workspace, job=(found.scheduler, found.job_id, found.run), group=group)
        self._toward = urlsplit(server).hostname or "localhost"
        self._several = not alone and len(found.hosts) > 1 and bool(found.host)
        self._is_sole = not alone and bool(found.host) and (found.leads or (not self._several and not has_part))
        self._held: socket.socket | None = None
        self.begun = asyncio.Event()
        """Set when we may take tasks: nobody else has this host."""
        if not self._is_sole:
            self.begun.set()
        self._leader: Leader | None = None
        self._member: Member | None = None
        self._others: asyncio.subprocess.Process | None = None
        self._changed_at: float | None = None
        """When another agent was heard or missed for the last time; None: never."""

    @property
    def hosts(self) -> int:
        """Over how many hosts a task may run."""
        cores, gpus = self._size
        return max(1, self._slots.wide.hosts(cores=cores, gpus=gpus))

    @property
    def idle(self) -> float:
        """For how long nobody whom we decide for has had anything to do; 0 where the leader decides."""
        if self._member is not None and self._member.led:
            return 0.0
        if self._leader is None:
            return self._idle()
        others_run = self._others is not None and self._others.returncode is None
        if others_run and self._leader.size < len(self._found.hosts) - 1 and self._may_still_come:
            return 0.0  # one that we started and can't hear: it leaves by itself
        return min(self._idle(), self._leader.idle)

    @property
    def _may_still_come(self) -> bool:
        """Whether one that is missing is waited for; those that are heard leave with us only, so not for ever."""
        return self._changed_at is None or time.monotonic() - self._changed_at < MISSED_FOR

    def _on_changed(self) -> None:
        self._changed_at = time.monotonic()
        self._changed()

    async def loss(self, hosts: Iterable[str], began: float) -> Stop | None:
        """See `Leader.loss`."""
        return None if self._leader is None else await self._leader.loss(hosts, began)

    async def run(self) -> None:
        """Do our part until cancelled."""
        if self._is_sole:
            await self._be_sole()
        if not self._several:
            return
        if not self._found.leads:
            self._member = Member(
                self._slots.feed,
                path=self._path,
                host=self._found.host,
                agent=self._agent,
                size=self._size,
                idle=self._idle,
                freed=self._freed,
                leave=self._leave,
                complain=self._complain,
            )
            await self._member.run()
            return
        wide = self._slots.wide

        wide.join(OwnNode(self._found.host, self._slots.feed, self._size, wide=wide, freed=self._freed))
        self._leader = Leader(
            wide,
            host=self._found.host,
            path=self._path,
            toward=self._toward,
            changed=self._on_changed,
            dead=self._on_dead,
        )
        try:
            await self._leader.open()
        except OSError as error:
            self._complain(
                f"{self._path}: can't lead the agents of this allocation: {error}; no task runs over several hosts"
            )
        if self._spreads and not self._found.together:
            await self._spread()

    async def _be_sole(self) -> None:
        """Wait until no other agent of our kind is here, and leave where that lasts: the two would run twice what the host has.

        One that was killed may still be ending its tasks.
        """
        until = time.monotonic() + PATIENCE + RETURNS_WITHIN
        while not self.begun.is_set():
            try:
                self._held = sole.claim(self._path, self._found.host)
            except OSError as error:
                _log.info("whether another agent is on this host can't be told: %s", error)
                break
            if self._held is not None:
                break
            self._complain(
                f"{self._found.host}: expected no other agent of {self._found.scheduler} {self._found.job_id} for the same queues, found one, "
                "which has all of this host; leaving unless it ends: start one on each host"
            )
            if time.monotonic() > until:
                self._leave(Leave(finish=True))
                await asyncio.Event().wait()
            await asyncio.sleep(_LOOK_EVERY)
        self.begun.set()

    def _on_dead(self, host: str) -> None:
        if self._slots.end_over(host):
            self._complain(
                f"{host}: its agent is gone without a word; ending what runs over this host and handing it back"
            )

    async def _spread(self) -> None:
        """Start the others with one call of the launcher, and see how they end."""
        others = [host for host in self._found.hosts if host != self._found.host]
        kind = launching.kind(_BATCH_TYPES[self._found.scheduler])
        command = spreading.command(kind, others, _agent_command())
        if command is None:
            self._complain(
                f"{len(others)} other hosts of this job have no agent, and no launcher here can start one; start one on each"
            )
            return
        _log.info("starting the agents of %d other hosts: %s", len(others), " ".join(command[:8]))
        try:
            self._others = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, env=os.environ | {spreading.PEERS: str(len(others) + 1)}
            )
        except OSError as error:
            self._complain(f"{command[0]}: can't start the other hosts' agents: {error.strerror}")
            return
        code = await self._others.wait()
        if code:
            self._complain(
                f"{command[0]} ended with {code}: agents of other hosts could not be started, or ended badly"
            )

    async def retire(self) -> None:
        """Have those whom we lead leave when what they run has ended, and wait for it: the batch job ends with us."""
        if self._leader is None:
            return
        while self._leader.size:
            self._leader.retire()  # again and again: one may join meanwhile
            await asyncio.sleep(1.0)

    def warn(self, *, late: bool) -> None:
        """Have those whom we lead leave beside us: what they took meanwhile would be cut off by the end of the batch job."""
        if self._leader is not None:
            self._leader.warn(late=late)

    async def leave(self, patience: float, *, late: bool = False) -> None:
        """Let the others leave, too, and wait for those that we started: the batch job ends with us.

        Where ``late``, what runs there may go on until the allocation's end.
        """
        try:
            await self._take_leave(patience, late=late)
        finally:
            if self._held is not None:
                self._held.close()

    async def _take_leave(self, patience: float, *, late: bool) -> None:
        if self._member is not None:
            self._member.forsake()
        if self._leader is not None:
            self._leader.close(late=late)
        if self._others is None or self._others.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._leader is None or self._leader.heard < len(self._found.hosts) - 1:
                self._others.terminate()  # it goes to all of them, and leaves less time than our word
            try:
                async with asyncio.timeout(patience):
                    await self._others.wait()
            except TimeoutError:
                self._others.kill()


def _agent_command() -> list[str]:
    """Return the command line of this agent, for another host that is not to start further ones."""
    program = os.path.abspath(sys.argv[0])
    runs_module = os.path.basename(program) == "__main__.py"
    return [sys.executable, *(["-m", "merlin_agent"] if runs_module else [program]), *sys.argv[1:], "--this-node"]
