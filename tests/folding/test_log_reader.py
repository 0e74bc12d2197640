"""The follower of all logs goes on after whatever befalls it, and says what that was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from merlin_operator.births import Births
from merlin_operator.contents import Contents
from merlin_operator.core import Core, EngineConfig
from merlin_operator.keeper import Keeper
from merlin_operator.logreader import LogReader
from merlin_operator.stream import Outage, Stored
from merlin_operator.warden import Warden
from merlin_study.seal import Keyring


@pytest.mark.parametrize("expected", [False, True])
def test_an_error_that_nobody_foresaw_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, expected: bool
) -> None:
    """Here an entry on a subject that is no study's; an outage is foreseen, and told in a line."""

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
        monkeypatch.setattr(core.broker, "reconnects", -1)  # the connection that a new reader takes for the present one
        monkeypatch.setattr(core.broker, "read_log", entries)
        following = asyncio.create_task(reader.follow())
        await again.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    with caplog.at_level(logging.INFO, logger="merlin_operator.logreader"):
        asyncio.run(scenario())
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if expected else logging.ERROR)
    assert ("IndexError" in caplog.text, "Traceback" in caplog.text) == (not expected, not expected)
