"""The rendered configuration on a real nats-server: TLS from the first byte, and what an agent's user may not do.

Each right that an agent has is used by the agent itself in `test_an_agent_and_an_operator_work_with_these_rights`; here is
what it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import nats.errors
import pytest
from cryptography import x509
from nats.aio.client import Client

from merlin_operator import bootstrap
from merlin_operator.board import AgentView
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.stream import Broker
from merlin_operator.view import StudyRef, StudyView
from merlin_study import subjects, transport, wire
from merlin_study.seal import Keyring
from tests.chart.brokersite import SPACE, Site
from tests.chart.rendering import NAMESPACE
from tests.folding.studies import plan_of
from tests.ground import Process, eventually_async
from tests.streaming.engines import live

STUDY = f"""
description: {{name: t, description: d}}
global.parameters: {{G: {{values: {list(range(20))}, label: G.%%}}}}
study:
- {{name: say, description: d, run: {{cmd: "echo $(G) > said.txt"}}}}
- {{name: count, description: d, run: {{cmd: "cat $(say.workspace)/*/said.txt > all.txt", depends: [say_*]}}}}
"""
CHUNK = SPACE.chunk(subjects.Route("any", "q", "n1-c1-g0-m0-w0", "bulk"), "uid", 1)


def test_nothing_is_said_in_the_clear(site: Site) -> None:
    """The server waits for a handshake: not even its greeting can be read or forged."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=180) as plain:
        plain.settimeout(0.3)
        with pytest.raises(TimeoutError):
            plain.recv(1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_old_tls_is_refused(site: Site, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cadata=site.keys["ca.crt"].decode())
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", site.port), timeout=180) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_server_of_another_authority_is_refused(site: Site) -> None:
    """What somebody on the way can show is not signed by the authority in the site file."""
    other = bootstrap.draw(datetime.now(UTC))["ca.crt"].decode()

    async def scenario() -> None:
        client = Client()
        options = {**site.options("agents"), **transport.options(site.server, user="agents", ca=other)}
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.connect(site.server, allow_reconnect=False, max_reconnect_attempts=1, **options)

    asyncio.run(scenario())


def test_the_operator_knows_when_the_certificate_in_use_ends(site: Site) -> None:
    """From the handshake, so that a renewed certificate counts only once the server shows it."""

    async def scenario() -> float | None:
        broker = Broker(SPACE, server=site.server, options=site.options("operator"))
        running = asyncio.create_task(broker.run(broker.ensure_streams))
        try:
            await broker.wait_connected()
            return broker.certificate_ends
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    shown = x509.load_pem_x509_certificate((site.directory / "tls.crt").read_bytes())
    assert asyncio.run(scenario()) == shown.not_valid_after_utc.timestamp()


def test_an_agent_may_not_do_what_only_the_operator_does(site: Site) -> None:
    """Publish a task, write a verdict or a word on a study, make or change consumers and streams, purge, read tasks."""
    tasks, reports, control = SPACE.task_stream, SPACE.report_stream, SPACE.control_stream
    forbidden = [
        CHUNK,
        SPACE.cursor("uid"),
        SPACE.verdicts("uid"),
        SPACE.control("uid"),
        SPACE.plan("uid", "hash"),
        SPACE.offer("here"),
        SPACE.rollcall,
        "merlin.v1.other.report.uid.1",
        f"$JS.API.CONSUMER.CREATE.{tasks}.mine",
        f"$JS.API.CONSUMER.CREATE.{tasks}.mine.{CHUNK}",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{tasks}.mine",
        f"$JS.API.CONSUMER.DELETE.{tasks}.r1",
        f"$JS.API.CONSUMER.PAUSE.{tasks}.r1",
        f"$JS.API.CONSUMER.CREATE.{reports}.mine",
        f"$JS.API.CONSUMER.MSG.NEXT.{reports}.mine",
        *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "MSG.GET",
                                                         "MSG.DELETE", "RESTORE", "SNAPSHOT")
          for stream in (tasks, reports, control)),
        f"$JS.API.DIRECT.GET.{tasks}",
        f"$JS.API.DIRECT.GET.{tasks}.{CHUNK}",
        f"$JS.ACK.{reports}.c.1.1.1.1.1",
        "$JS.API.STREAM.LIST",
        "$SYS.REQ.SERVER.PING",
    ]  # fmt: skip

    async def scenario() -> None:
        async with site.connected("agents") as (client, refused):
            for subject in forbidden:
                await client.publish(subject, b"{}")
            await client.flush()
            for subject in (CHUNK, "merlin.v1.>", SPACE.all_heartbeats, SPACE.all_reports, "_INBOX.>",
                            "_INBOX_operator.>", ">", "$JS.API.>"):  # fmt: skip
                await client.subscribe(subject)
            await client.flush()
            expected = {subject.lower() for subject in forbidden}

            async def all_refused() -> bool:
                named = {text.split('"')[1].lower().removeprefix("dropped.") for text in refused if '"' in text}
                return expected <= named and sum("subscription" in text.lower() for text in refused) == 8

            await eventually_async(all_refused, message=f"the server refuses all of {len(expected)} subjects")

    asyncio.run(scenario())


def test_the_operator_may_not_do_more_than_its_namespace_asks_for(site: Site) -> None:
    """Neither delete a stream nor read what others write elsewhere."""
    forbidden = [
        f"$JS.API.STREAM.DELETE.{SPACE.task_stream}",
        f"$JS.API.STREAM.MSG.DELETE.{SPACE.report_stream}",
        "$JS.API.STREAM.CREATE.OTHER",
        "merlin.v1.other.control.study.uid",
        f"$JS.API.CONSUMER.MSG.NEXT.{SPACE.task_stream}.r1",
    ]

    async def scenario() -> None:
        async with site.connected("operator") as (client, refused):
            for subject in forbidden:
                await client.publish(subject, b"{}")
            await client.flush()

            async def all_refused() -> bool:
                return len(refused) == len(forbidden)

            await eventually_async(all_refused, message="the server refuses each")

    asyncio.run(scenario())


@pytest.mark.parametrize("user", ["operator", "agents"])
def test_a_wrong_password_is_refused(site: Site, user: str) -> None:
    async def scenario() -> None:
        client = Client()
        with contextlib.suppress(nats.errors.Error):
            await client.connect(
                site.server, allow_reconnect=False, max_reconnect_attempts=1, **{**site.options(user), "password": "x"}
            )
        assert not client.is_connected
        await client.close()

    asyncio.run(scenario())


class Shown:
    """A board that remembers what it was last shown."""

    def __init__(self) -> None:
        self.view: StudyView | None = None
        self.agents: Sequence[AgentView] = ()

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Remember."""
        del news
        self.view, self.agents = (views[0] if views else None), agents


def test_an_agent_and_an_operator_work_with_these_rights(site: Site, tmp_path: Path) -> None:
    """Engine and agent on separate keys: a study runs to its end, and the agent needed nothing but its site file."""
    path = tmp_path / "site.yaml"
    path.touch(0o600)
    path.write_text(site.site_file.encode())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MERLIN_", "SLURM_"))}
    agent = Process(
        [Path(sys.executable).with_name("merlin-agent"), "--credentials", path, "--slots", "2"],
        log=tmp_path / "agent.log",
        cwd=tmp_path,
        env=clean | {"HOME": str(tmp_path)},
    )
    held = {name: value.decode() for name, value in bootstrap.for_operator(site.keys).items()}
    keyring = Keyring.from_hex(seal=held["seal.key"], signing=held["signing.key"], agents=held["agents.pub"])

    async def scenario() -> None:
        shown = Shown()
        timing = wire.Timing(heartbeat=0.5, lost_after=5.0)
        engine = Engine(EngineConfig(NAMESPACE, site.server, site.options("operator"), keyring, timing), shown)
        ref = StudyRef(NAMESPACE, "t", "0000-uid")
        engine.add(ref, plan_of(STUDY))

        async def finished() -> bool:
            return shown.view is not None and shown.view.finished

        async with live(engine):
            await eventually_async(finished, message="the study ends")
            assert await engine.forget(ref, timeout=120)
        assert shown.view is not None
        assert (shown.view.succeeded, shown.view.done, engine.counters().refused) == (True, 21, 0)
        (member,) = shown.agents
        assert (member.heartbeat.site, member.heartbeat.refused, member.heartbeat.problems) == ("here", 0, ())

    before = len((site.directory / "nats.log").read_text())
    agent.start()
    try:
        asyncio.run(scenario())
    except BaseException:
        print(agent.describe())
        raise
    finally:
        agent.stop()
    assert len(list(tmp_path.glob("t_*/say/*/said.txt"))) == 20
    assert "Violation" not in (site.directory / "nats.log").read_text()[before:]
