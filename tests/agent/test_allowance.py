"""How many files a second may be made: kept over any time, shared between a site's agents."""

import threading
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from merlin_agent.allowance import Allowance, share, unlimited
from merlin_agent.chunkrun import Stop
from tests.agent.standin import Standin, a_sampled_plan
from tests.agent.test_batches import a_run
from tests.ground import Broker, eventually


@given(
    rate=st.floats(0.5, 5000),
    takes=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_no_more_is_made_than_the_rate_allows(rate: float, takes: list[tuple[float, int]]) -> None:
    """Over the whole time: a second's worth and one task more."""
    now = [0.0]
    allowance = Allowance(lambda: rate, clock=lambda: now[0])
    made = 0
    for pause, count in takes:
        now[0] += pause
        if allowance.wait(count) == 0.0:
            made += count
    assert made <= rate * (now[0] + 1) + 40 + 1e-6


def test_who_waits_as_long_as_told_is_served() -> None:
    """Also where a task makes more than a second's worth."""
    now = [0.0]
    allowance = Allowance(lambda: 2.0, clock=lambda: now[0])
    served = 0
    for _ in range(100):
        seconds = allowance.wait(5)
        now[0] += seconds
        served += seconds == 0.0
    assert served >= 30
    assert served * 5 <= 2.0 * (now[0] + 1) + 5


def test_a_site_shares_its_limit_between_its_agents() -> None:
    """And an agent's own counts as well."""
    assert share(None, None, 7) is None
    assert share(None, 1000, 4) == 250
    assert share(100, 1000, 4) == 100
    assert share(400, 1000, 4) == 250
    assert share(None, 1000, 0) == 1000


def test_a_wait_ends_with_the_chunk() -> None:
    """What is stopped needs no files."""
    run = a_run(3)
    allowance = Allowance(lambda: 0.001)
    assert allowance.take(5, patient=True, given_up=lambda: False)
    assert not allowance.take(5, patient=False, given_up=lambda: False)
    found: list[bool] = []

    def wait() -> None:
        found.append(allowance.take(5, patient=True, given_up=lambda: run.stopped is not None))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.01)
    assert not found
    run.stop(Stop.CANCELLED)
    eventually(lambda: found == [False])
    thread.join()
    assert unlimited().take(1 << 30, patient=True, given_up=lambda: False)


def test_an_agent_keeps_to_its_limit(tmp_path: Path) -> None:
    """Sixty tasks of five entries at a hundred a second, whatever the machine can do."""
    with Broker(tmp_path / "nats") as broker, Standin(broker, tmp_path) as operator:
        operator.up(a_sampled_plan(tmp_path, 60, ":"))
        operator.agent("--creates", "100", "--site-creates", "1000", slots=2)
        chunk = operator.issue(range(60), step=1, samples=60)
        assert operator.counts(operator.final(chunk)) == {("succeeded", 0): 60}
        made = sorted(path.stat().st_mtime for path in operator.root.rglob("*.sh") if "merlin_info" not in path.parts)
        assert made[-1] - made[0] > 1.5
