"""Partitions between agents and broker, and clocks that are wrong (rows 15 and 20 of the fault table)."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from tests.faults.rig import PATIENT, a_rig, linger
from tests.ground import Broker, eventually
from tests.ground.proxy import Proxy

SKEW = Path(__file__).parent / "skew"
HOUR = 3600


def test_an_agent_that_is_cut_off_works_on_and_tells_when_it_is_back(broker: Broker, tmp_path: Path) -> None:
    """First for less than the time after which it is lost, then for so long that its chunks are issued to another one.

    The other one waits while the first one's presence in the workspace is fresh, and takes over what it recorded there.
    """
    with (
        Proxy(broker.port) as network,
        a_rig(broker, tmp_path, log_stands=True, tasks=120, cmd=linger(tmp_path)) as rig,
    ):
        rig.operator()
        rig.agent(server=network.url)
        rig.until_done(5)
        network.cut()
        recorded = _recorded(rig.root)
        eventually(lambda: _recorded(rig.root) > recorded, message="it works on")
        network.heal()
        rig.until_done(rig.done())
        network.cut()
        eventually(lambda: rig.losses() > 0, message="it counts as lost")
        rig.agent()
        rig.until_done(rig.done())
        network.heal()
        rig.hurry.touch()
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses > 0


def _recorded(root: Path) -> int:
    """Bytes of all outcome logs of a workspace."""
    return sum(path.stat().st_size for path in (root / "merlin_info" / "outcomes").glob("*.jsonl"))


def test_clocks_that_are_hours_apart_and_are_set_meanwhile_cost_nothing(broker: Broker, tmp_path: Path) -> None:
    """An agent an hour ahead, another one behind, an operator whose clock jumps back and forth: nobody counts as lost."""
    offsets = {name: tmp_path / name for name in ("ahead", "behind", "operator")}
    for name, hours in (("ahead", 1), ("behind", -1), ("operator", 0)):
        offsets[name].write_text(str(hours * HOUR))
    with a_rig(
        broker, tmp_path, log_stands=True, tasks=120, cmd="[ -e tried ] || { touch tried; exit 104; }", timing=PATIENT
    ) as rig:
        rig.operator(environ=_skewed(offsets["operator"]))
        agents = [rig.agent(environ=_skewed(offsets[name])) for name in ("ahead", "behind")]
        for least, offset in ((10, HOUR), (40, -HOUR), (70, 0)):
            rig.until_done(least)
            offsets["operator"].write_text(str(offset))
            offsets["ahead"].write_text(str(-offset))
        finding = rig.finish()
        assert rig.succeeded()
        assert finding.losses == 0
        first, second = (datetime.fromisoformat(agent.log.read_text()[:19]) for agent in agents)
        assert abs(first - second) > timedelta(hours=1), "they did see other times"


def _skewed(offset: Path) -> dict[str, str]:
    """Variables with which a Python process takes its time of day from the host's clock and the seconds in a file."""
    return {"PYTHONPATH": str(SKEW), "MERLIN_TEST_SKEW": str(offset)}
