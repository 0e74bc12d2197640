"""The broker of the test ground keeps what it acknowledged, and dies when it is told to."""

import asyncio
import socket
import stat
import time

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from tests.ground import Broker


def test_an_acknowledged_message_survives_a_kill(broker: Broker) -> None:
    async def publish() -> int:
        client = await nats.connect(broker.url, **broker.credentials)
        stream = client.jetstream()
        await stream.add_stream(name="kept", subjects=["kept.>"])
        acknowledged = await stream.publish("kept.one", b"word")
        await client.close()
        return acknowledged.seq

    async def read(sequence: int) -> bytes | None:
        client = await nats.connect(broker.url, **broker.credentials)
        message = await client.jetstream().get_msg("kept", seq=sequence)
        await client.close()
        return message.data

    sequence = asyncio.run(publish())
    first = broker.process.pid
    broker.kill()
    assert broker.process.returncode == -9
    broker.restart()
    assert broker.process.pid != first
    assert asyncio.run(read(sequence)) == b"word"


def test_a_client_without_the_token_is_refused(broker: Broker) -> None:
    async def connect() -> None:
        client = Client()
        try:
            await client.connect(broker.url, token="wrong", allow_reconnect=False)
        finally:
            await client.close()  # a refused connect leaves its transport open

    with pytest.raises(NatsError, match="Authorization Violation"):
        asyncio.run(connect())


def test_the_token_is_in_no_command_line_and_in_a_private_file(broker: Broker) -> None:
    assert broker.credentials["token"] not in " ".join(broker.process.argv)
    assert stat.S_IMODE(broker.config.stat().st_mode) == 0o600


def test_a_paused_broker_holds_connections_and_answers_after_it_is_resumed(broker: Broker) -> None:
    broker.pause()
    with socket.create_connection(("127.0.0.1", broker.port), timeout=0.2) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(4)
        broker.resume()
        connection.settimeout(180)
        assert connection.recv(4) == b"INFO"


def test_user_and_password_and_a_directory_of_its_own() -> None:
    async def connect(broker: Broker) -> int:
        client = await nats.connect(broker.url, **broker.credentials)
        limit = client.max_payload
        await client.close()
        return limit

    started = time.monotonic()
    with Broker(user="agent", password="a b{}\"'") as broker:
        assert asyncio.run(connect(broker)) == 8 * 1024 * 1024
        directory = broker.directory
    assert not directory.exists()
    assert time.monotonic() - started < 60
