"""What an agent does as one of its allocation's: when the allocation counts as idle, and where an agent does not start at all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from merlin_agent import sole
from merlin_agent.launch import DirectLauncher
from merlin_agent.pairing import Leave
from merlin_agent.party import Party
from merlin_agent.schedulers import Found
from merlin_agent.slots import Slots
from merlin_study.seal import Keyring
from tests.launching.test_allies import Host, until


def a_leader(
    folder: Path, *hosts: str, leave: Callable[[Leave], None] = lambda _: None, problems: list[str] | None = None
) -> Party:
    """The agent of the first host, which started the others and has been idle for 500 s."""
    slots = Slots(
        2,
        launcher=DirectLauncher({}),
        watch=lambda _slot, _group: None,
        deliver=lambda _batch: None,
        grace=0.1,
    )
    return Party(
        Found("slurm", "7", hosts, host=hosts[0], together=True),
        slots,
        agent="n1-1",
        workspace=str(folder),
        group=("ns",),
        server="nats://localhost:4222",
        gpus=0,
        alone=False,
        spreads=True,
        has_part=False,
        idle=lambda: 500.0,
        changed=lambda: None,
        freed=lambda: None,
        leave=leave,
        complain=(problems if problems is not None else []).append,
    )


@pytest.mark.parametrize("hosts", [("n1", "n2"), ("n1",)])
def test_a_second_agent_of_a_host_takes_nothing_and_leads_nobody_until_the_first_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    """Two leaders would each give the same hosts away, and two agents of one host all of its cores."""
    monkeypatch.setattr("merlin_agent.party._LOOK_EVERY", 0.01)

    async def story() -> None:
        words: list[Leave] = []
        problems: list[str] = []
        first = a_leader(tmp_path, *hosts)
        await first.run()
        assert first.begun.is_set()
        second = a_leader(tmp_path, *hosts, leave=words.append, problems=problems)
        running = asyncio.create_task(second.run())
        await until(lambda: bool(problems))
        assert "found one, which has all of this host" in problems[0]
        assert (second.begun.is_set(), second._leader, words) == (False, None, [])
        await first.leave(1.0)
        await until(second.begun.is_set)
        await running
        assert (second._leader is not None) == (len(hosts) > 1)
        await second.leave(1.0)

    asyncio.run(story())


def test_a_second_agent_of_a_host_leaves_where_the_first_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merlin_agent.party._LOOK_EVERY", 0.01)
    monkeypatch.setattr("merlin_agent.party.PATIENCE", -10.0)

    async def story() -> None:
        words: list[Leave] = []
        first, second = a_leader(tmp_path, "n1"), a_leader(tmp_path, "n1", leave=words.append)
        await first.run()
        running = asyncio.create_task(second.run())
        await until(lambda: bool(words))
        assert (words, second.begun.is_set()) == ([Leave(finish=True)], False)
        running.cancel()
        await first.leave(1.0)

    asyncio.run(story())


def test_a_name_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = f"import time; from merlin_agent import sole; held = sole.claim({str(tmp_path)!r}); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert sole.claim(str(tmp_path)) is None
            other = sole.claim(str(tmp_path), "n2")
            assert other is not None, "another host's, as Slurm's nodes on one machine are"
            other.close()
        finally:
            holder.kill()
    held = sole.claim(str(tmp_path))
    assert held is not None
    held.close()


def test_an_allocation_waits_for_a_missing_agent_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are heard leave with the leader only: one that never comes would keep all of them."""
    monkeypatch.setattr("merlin_agent.allies.SIGN_OF_LIFE", 0.02)

    async def story() -> None:
        party = a_leader(tmp_path, "n1", "n2", "n3")
        await party.run()
        party._others = await asyncio.create_subprocess_exec("sleep", "600")
        assert party.idle == 0.0, "they may be starting still"
        member = Host(Path(party._path))
        member.idle = 400.0
        member.start()
        try:
            await until(lambda: party._leader is not None and party._leader.size == 1 and party._leader.idle == 400.0)
            assert party.idle == 0.0, "the other one may come, too"
            monkeypatch.setattr("merlin_agent.party.MISSED_FOR", 0.0)
            assert party.idle == 400.0
        finally:
            await member.die()
            party._others.kill()
            await party.leave(60.0)

    asyncio.run(story())


@pytest.mark.parametrize("more", [{}, {"MERLIN_AGENT_SLOTS": "1"}], ids=["none said", "slots said"])
def test_an_agent_on_a_host_that_is_none_of_the_job_s_takes_nothing_that_nobody_gave_it(
    tmp_path: Path, more: dict[str, str]
) -> None:
    Keyring.generate().save(tmp_path / "keys")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MERLIN_AGENT_", "SLURM"))}
    job = {"LSB_JOBID": "9", "LSB_MCPU_HOSTS": "elsewhere1 1 elsewhere2 42 elsewhere3 42"}
    flags = ["--keys", str(tmp_path / "keys"), "--workspace", str(tmp_path), "--lifeline"][: 5 if more else 4]
    ended = subprocess.run(
        [sys.executable, "-m", "merlin_agent", "--server", "nats://127.0.0.1:1", *flags],
        env={**own, **job, **more, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    refused = "expected one of its hosts (elsewhere2, elsewhere3), found another one" in ended.stderr
    assert (refused, ended.returncode == 2) == (not more, not more), ended.stderr
    assert ("start it there: jsrun -n 2" in ended.stderr) == (not more)
