"""A holder of the agents' password who means harm, with the one thing that nats-server does not check: the reply subject.

Whatever an agent may ask for is asked with every subject that the answer must not reach: a purge, a forged chunk, verdict or
word, the operator's inbox. The streams are read before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from merlin_operator.stream import Broker, ConsumerSpec
from merlin_study import subjects
from tests.chart.brokersite import SPACE, Site
from tests.ground import Broker as NatsServer
from tests.ground import eventually_async

UID: Final = "hostile-uid"
ROUTE: Final = subjects.Route("any", "hostile", "n1-c1-g0-m0-w0", "bulk")
STREAMS: Final = (SPACE.task_stream, SPACE.report_stream, SPACE.control_stream)
TASKS, REPORTS, CONTROL = STREAMS
CONSUMER: Final = ROUTE.consumer
NEXT: Final = f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.{CONSUMER}"
ACK: Final = f"$JS.ACK.{TASKS}.{CONSUMER}.1.999999.1.1700000000000000000.0"
MINE: Final = SPACE.reports(UID, 77)
HEARTBEAT: Final = SPACE.heartbeat("here", "hostile")


@dataclass(frozen=True)
class Attempt:
    """A message that the agents' user may send."""

    subject: str
    body: str
    headers: dict[str, str] | None = None
    reply: str = ""


REQUESTS: Final = [
    Attempt(f"$JS.API.DIRECT.GET.{REPORTS}", json.dumps({"last_by_subj": SPACE.verdicts(UID)})),
    Attempt(f"$JS.API.DIRECT.GET.{REPORTS}", json.dumps({"multi_last": [SPACE.reports_of(UID)]})),
    Attempt(f"$JS.API.DIRECT.GET.{REPORTS}", json.dumps({"seq": 1, "batch": 9, "next_by_subj": SPACE.all_reports})),
    Attempt(f"$JS.API.DIRECT.GET.{REPORTS}", json.dumps({"last_by_subj": MINE})),  # a body of the attacker's choice
    Attempt(f"$JS.API.DIRECT.GET.{REPORTS}", ""),
    Attempt(f"$JS.API.DIRECT.GET.{CONTROL}", json.dumps({"last_by_subj": SPACE.control(UID)})),
    Attempt(f"$JS.API.DIRECT.GET.{CONTROL}", json.dumps({"seq": 999999})),
    Attempt(NEXT, json.dumps({"batch": 1, "no_wait": True})),
    Attempt(NEXT, json.dumps({"batch": 9, "expires": 50_000_000, "idle_heartbeat": 10_000_000})),
    Attempt(NEXT, "rubbish"),
    Attempt(f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.none", ""),
    Attempt(ACK, "+ACK"),
    Attempt(ACK, "+NXT"),
    Attempt(MINE, "{}"),
    Attempt(MINE, "{}", {"Nats-Expected-Last-Subject-Sequence": "999999"}),
    Attempt(MINE, "{}", {"Nats-Rollup": "all"}),
    Attempt(HEARTBEAT, "{}"),
]  # fmt: skip
"""Everything that the agents' user may publish, with what makes the broker answer in each of its ways."""

FORGED: Final = [
    SPACE.chunk(ROUTE, UID, 2),
    SPACE.cursor(UID),
    SPACE.verdicts(UID),
    SPACE.control(UID),
    SPACE.plan(UID, "hash"),
    SPACE.offer("here"),
    SPACE.rollcall,
]
API: Final = [
    *(f"$JS.API.STREAM.{verb}.{stream}" for stream in STREAMS
      for verb in ("PURGE", "DELETE", "UPDATE", "CREATE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "PEER.REMOVE")),
    *(f"$JS.API.CONSUMER.{verb}.{TASKS}.{CONSUMER}" for verb in ("DELETE", "PAUSE", "CREATE", "UNPIN", "RESET")),
    f"$JS.API.CONSUMER.DURABLE.CREATE.{TASKS}.{CONSUMER}",
    "$JS.API.ACCOUNT.PURGE.MERLIN",
    "$SYS.REQ.SERVER.PING",
]  # fmt: skip
DANGEROUS: Final = [*FORGED, *API, "_INBOX_operator.stolen", "_R_.stolen", f"$JS.ACK.{REPORTS}.log.1.1.1.1.0"]


class Victim:
    """A namespace at work, as its operator sees it: streams with something in each, and ears where answers could go."""

    def __init__(self, broker: Broker) -> None:
        """Keep the operator's connection."""
        self._broker = broker
        self.heard: list[tuple[str, bytes]] = []

    async def state(self) -> dict[str, Any]:
        """All that the streams hold and how they are set up, but for the entries that agents may write."""
        found: dict[str, Any] = {}
        for stream in STREAMS:
            info = await self._broker.ask(functools.partial(_info, stream=stream))
            held = {subject: count for subject, count in (info.state.subjects or {}).items() if subject != MINE}
            found[stream] = (held, info.config.as_dict(), info.state.consumer_count, info.created)
            for subject in held:
                found[subject] = await self._broker.last(stream, subject)
        return found

    async def fill(self) -> None:
        """Put a chunk, a cursor, words, and a verdict where an attack could find them."""
        broker = self._broker
        await broker.ensure_streams()
        await broker.ensure_consumer(ConsumerSpec(CONSUMER, SPACE.chunks(ROUTE), ""))
        await broker.publish_batch((SPACE.cursor(UID), b"said"), [(SPACE.chunk(ROUTE, UID, 1), b"said")], expected=0)
        for subject in (SPACE.control(UID), SPACE.plan(UID, "hash"), SPACE.offer("here")):
            await broker.put(subject, b"said")
        await broker.append(SPACE.verdicts(UID), b"said", expected=0)

    async def clear(self) -> None:
        """Leave nothing to the tests that come after."""
        for stream, subject in (
            (TASKS, SPACE.chunks_of(UID)), (TASKS, SPACE.cursor(UID)), (REPORTS, SPACE.reports_of(UID)),
            (CONTROL, SPACE.all_control),
        ):  # fmt: skip
            await self._broker.purge(stream, subject)
        await self._broker.delete_consumer(CONSUMER)

    async def say(self) -> None:
        """A new word on the study, and a roll call."""
        await self._broker.put(SPACE.control(UID), b"again")
        await self._broker.tell(SPACE.rollcall)

    async def listen(self, client: Client, *subjects_: str) -> None:
        """Note what a client hears."""

        async def note(message: Msg) -> None:
            self.heard.append((message.subject, message.data))

        for subject in subjects_:
            await client.subscribe(subject, cb=note)
        await client.flush()


async def _info(js: JetStreamContext, *, stream: str) -> StreamInfo:
    return await js.stream_info(stream, subjects_filter=">")


@contextlib.asynccontextmanager
async def _victim(site: Site) -> AsyncIterator[Victim]:
    broker = Broker(SPACE, server=site.server, options=site.options("operator"))
    running = asyncio.create_task(broker.run(broker.ensure_streams))
    try:
        await broker.wait_connected()
        victim = Victim(broker)
        await victim.fill()
        async with site.connected("operator") as (client, _):
            await victim.listen(client, "_INBOX_operator.stolen", SPACE.all_heartbeats)
            yield victim
            await client.flush()
        await victim.clear()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _settled(agent: Client) -> None:
    """Return once the broker has taken all that came before: each stream and the consumer answer what comes after."""
    for subject, body in (
        (f"$JS.API.DIRECT.GET.{REPORTS}", '{"last_by_subj": "x"}'),
        (f"$JS.API.DIRECT.GET.{CONTROL}", '{"last_by_subj": "x"}'),
        (MINE, "{}"),
    ):
        await agent.request(subject, body.encode(), timeout=60)


def _attacked(site: Site, attempts: Callable[[str], Iterable[Attempt]]) -> list[str]:
    """Make the attempts for each dangerous subject; nothing may come of them. Return what the server refused."""

    async def scenario() -> list[str]:
        async with (
            _victim(site) as victim,
            site.connected("agents") as (other, _),
            site.connected("agents") as (agent, refused),
        ):
            await victim.listen(other, SPACE.all_control, SPACE.rollcall)
            before = await victim.state()
            for target in DANGEROUS:
                for attempt in attempts(target):
                    await agent.publish(
                        attempt.subject, attempt.body.encode(), reply=attempt.reply, headers=attempt.headers
                    )
                await _settled(agent)
            await other.flush()
            assert await victim.state() == before, "the streams are as they were"
            assert set(victim.heard) <= {(HEARTBEAT, b"{}")}, "nobody hears what nobody said"
            return refused

    return asyncio.run(scenario())


def test_no_answer_purges_deletes_or_poses_as_anything(site: Site) -> None:
    """Every request with every dangerous reply subject."""
    refused = _attacked(site, lambda target: [replace(request, reply=target) for request in REQUESTS])
    said = [text for text in refused if "with reply of" not in text]
    assert said == [], "each request is one that agents may make; refused are but the server's own subjects for replies"


@dataclass
class OneAccount(Site):
    """The same users, with the same list of subjects that agents may publish, in one account of a plain server."""

    @property
    def server(self) -> str:
        """Its address."""
        return f"nats://127.0.0.1:{self.port}"

    def options(self, user: str) -> dict[str, Any]:
        """As `Site.options`."""
        return {"user": user, "password": "secret", "inbox_prefix": subjects.inbox(user)}


def test_with_one_account_the_same_requests_delete_the_streams(tmp_path: Path) -> None:
    """Why there are two. Should nats-server begin to check reply subjects, this test tells that one would do."""
    allowed = json.dumps(sorted({request.subject for request in REQUESTS}))
    extra = f"""authorization {{ users: [
        {{user: operator, password: secret}}
        {{user: agents, password: secret, permissions {{publish: {{allow: {allowed}}}, subscribe: "_INBOX_agents.>"}}}}
    ]}}"""
    with NatsServer(tmp_path, user="operator", password="secret", extra=extra) as server:
        site = OneAccount(tmp_path, server.port, {})

        async def scenario() -> None:
            async with _victim(site) as victim:
                before = await victim.state()
                async with site.connected("agents") as (agent, refused):
                    for stream in (TASKS, CONTROL):
                        await agent.publish(
                            f"$JS.API.DIRECT.GET.{REPORTS}",
                            b'{"last_by_subj": "x"}',
                            reply=f"$JS.API.STREAM.PURGE.{stream}",
                        )
                    await agent.publish(MINE, b"{}", reply=SPACE.verdicts(UID))

                    async def harmed() -> bool:
                        after = await victim.state()
                        purged = not after[TASKS][0] and not after[CONTROL][0]
                        return purged and after[SPACE.verdicts(UID)] != before[SPACE.verdicts(UID)]

                    await eventually_async(
                        harmed, message="two streams are purged, and there is a verdict that nobody took"
                    )
                    assert refused == []

        asyncio.run(scenario())


def test_no_trace_of_a_message_is_sent_where_its_author_may_not_publish(site: Site) -> None:
    """nats-server tells in which steps it delivered a message, at a subject that the message names."""
    _attacked(site, lambda target: [Attempt(MINE, "{}", {"Nats-Trace-Dest": target}), Attempt(HEARTBEAT, "{}", {
        "Nats-Trace-Dest": target, "Nats-Trace-Only": "true"})])  # fmt: skip


def test_an_agent_hears_the_operator_s_words_across_accounts(site: Site) -> None:
    """What keeps hostile answers off the subjects that agents listen to lets the operator's own words through."""

    async def scenario() -> None:
        async with site.connected("agents") as (agent, _), _victim(site) as victim:
            await victim.listen(agent, SPACE.all_control, SPACE.rollcall)
            expected = {(SPACE.rollcall, b""), (SPACE.control(UID), b"again")}

            async def heard() -> bool:
                await victim.say()  # the server may not have known yet that somebody listens
                return expected <= set(victim.heard)

            await eventually_async(heard, message="both words are heard")

    asyncio.run(scenario())
