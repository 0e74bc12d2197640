"""The follower of all logs goes on after whatever befalls it, and says what that was."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator

import pytest

from merlin_operator.births import Births
from merlin_operator.contents import Contents
from merlin_operator.core import Core, EngineConfig
from merlin_operator.keeper import Keeper
from merlin_operator.logreader import LogReader
from merlin_operator.setbacks import FIRST, LONGEST, TOLD_AGAIN, Setbacks
from merlin_operator.stream import Broker, Outage, Stored
from merlin_operator.warden import Warden
from merlin_study.seal import Keyring
from tests.ground import Broker as Server
from tests.streaming.test_engine import until


@pytest.mark.parametrize("expected", [False, True])
def test_an_error_that_nobody_foresaw_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, expected: bool
) -> None:
    """Here an entry on a subject that is no study's; an outage is foreseen, and told in a line that says what to look at."""

    async def scenario() -> None:
        core, again, times = Core(EngineConfig("ns", "nats://127.0.0.1:1", {}, Keyring.generate())), asyncio.Event(), 0
        contents = Contents(core, None)
        reader = LogReader(core, Births(core, None), contents, Keeper(core, contents, keeps_kin=False), Warden(core))

        async def entries(subject: str, *, start: int) -> AsyncGenerator[Stored, None]:
            nonlocal times
            times += 1
            if times > 1:
                again.set()
                await asyncio.Event().wait()
            if expected:
                raise Outage("the log fell silent")
            yield Stored(start, subject.partition(".")[0], 0.0, b"")

        monkeypatch.setattr(LogReader, "knows_broker", True)
        monkeypatch.setattr(Broker, "connected", True)
        monkeypatch.setattr(core.broker, "reconnects", -1)  # the connection that a new reader takes for the present one
        monkeypatch.setattr(core.broker, "read_log", entries)
        following = asyncio.create_task(reader.follow())
        await again.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    with caplog.at_level(logging.INFO, logger="merlin_operator.logreader"):
        asyncio.run(scenario())
    (record,) = caplog.records
    assert record.levelno == (logging.WARNING if expected else logging.ERROR)
    assert ("IndexError" in caplog.text, "Traceback" in caplog.text) == (not expected, not expected)
    assert record.getMessage().startswith("stream MERLIN_REPORTS_ns: expected to follow it from sequence ")
    assert ("see the broker's own log" in caplog.text) is expected


def test_a_failure_that_goes_on_is_tried_ever_more_rarely_and_told_again_after_a_while() -> None:
    setbacks, now, told = Setbacks(), 0.0, []
    pauses = []
    for _ in range(200):
        pause, is_told = setbacks.add("no room", now, got_on=False)
        pauses.append(pause)
        told += [now] * is_told
        now += pause
    assert pauses[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert max(pauses) == pauses[-1] == LONGEST
    assert told[0] == 0.0
    assert len(told) > 2
    assert all(TOLD_AGAIN <= later - at <= TOLD_AGAIN + LONGEST for at, later in itertools.pairwise(told))
    assert setbacks.add("no room", now, got_on=True) == (FIRST, False), "it got on meanwhile"
    assert setbacks.add("no stream", now, got_on=False) == (2 * FIRST, True), "another cause is news"


def test_a_log_that_cannot_be_followed_is_told_once_and_followed_when_it_can(
    broker: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real server refuses to follow a stream that is not there; what is stored once it is there arrives."""

    async def scenario() -> None:
        core = Core(EngineConfig("ns", broker.url, dict(broker.credentials), Keyring.generate()))
        contents = Contents(core, None)
        reader = LogReader(core, Births(core, None), contents, Keeper(core, contents, keeps_kin=False), Warden(core))
        tries, read_log = 0, core.broker.read_log

        def entries(subject: str, *, start: int) -> AsyncGenerator[Stored, None]:
            nonlocal tries
            tries += 1
            return read_log(subject, start=start)

        async def nothing() -> None:
            pass

        monkeypatch.setattr(core.broker, "read_log", entries)
        monkeypatch.setattr(LogReader, "knows_broker", property(lambda it: it.core.broker.connected))
        monkeypatch.setattr(reader, "_known", 0)
        monkeypatch.setattr(reader, "_read_from", 1)
        parts = [asyncio.create_task(core.broker.run(nothing)), asyncio.create_task(reader.follow())]
        await until(lambda: tries >= 4)
        assert len(caplog.records) == 1
        assert "stream not found" in caplog.text
        await core.broker.ensure_streams()
        await core.broker.append(core.space.reports("uid", 1), b"", expected=0)
        await until(lambda: "uid" in core.strays)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)

    with caplog.at_level(logging.INFO, logger="merlin_operator.logreader"):
        asyncio.run(scenario())
