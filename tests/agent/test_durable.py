"""What tasks left is synced once for all who wait for it, and never less than they wait for."""

import threading
from pathlib import Path

import pytest

from merlin_agent import durable
from merlin_agent.durable import Turns, Unsynced
from tests.ground import eventually


def test_whoever_asks_while_one_runs_shares_the_next_one() -> None:
    """The one that runs may have passed over what they left."""
    turns, gates = Turns(), [threading.Event(), threading.Event()]
    begun: list[int] = []

    def act() -> None:
        begun.append(len(begun))
        assert gates[begun[-1]].wait(60)

    threads = [threading.Thread(target=turns.take, args=(act,)) for _ in range(5)]
    threads[0].start()
    eventually(lambda: begun)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: turns.waiting == len(threads) - 1)
    gates[0].set()
    threads[0].join(60)
    eventually(lambda: len(begun) == 2)
    assert all(thread.is_alive() for thread in threads[1:])
    gates[1].set()
    for thread in threads[1:]:
        thread.join(60)
    assert begun == [0, 1]


def test_what_can_not_be_synced_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is synced it stays what has to be, and nothing that is new costs nothing."""
    calls: list[int] = []

    def fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "_sync", fails)
    left = Unsynced(str(tmp_path))
    left.sync()
    assert not calls
    left.note()
    with pytest.raises(OSError, match="Input/output error"):
        left.sync()
    left.sync()
    left.sync()
    assert len(calls) == 2
