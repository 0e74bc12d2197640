"""Which hosts are quarantined: those that fail what others can run, and nobody where all fail alike."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_operator.quarantine import PERIOD, Place, Told, Watch
from merlin_study.taskset import TaskSet

STEP = ("uid", 1)


def host(number: int) -> Place:
    return "hpc", f"n{number}"


def told(place: Place, fence: int, *, at: float, good: bool, step: tuple[str, int] = STEP) -> Told:
    """One chunk of one task, which is numbered as its fence."""
    tasks = (TaskSet(first=fence, width=1),)
    return Told(place, step, fence, 1, at, succeeded=tasks if good else (), failed=() if good else tasks, seconds=0.1)


def black_hole(watch: Watch, hosts: int, *, chunks: int = 60) -> set[Place]:
    """Have host 0 fail a chunk while each of the others succeeds in one, in turn; return all hosts."""
    places = {host(number) for number in range(hosts)}
    fence = 0
    for turn in range(chunks):
        for number in range(hosts):
            watch.tell(told(host(number), fence, at=float(turn), good=number > 0))
            fence += 1
        watch.judge(float(turn), places)
    return places


@settings(max_examples=8)
@given(hosts=st.integers(2, 12))
def test_a_host_that_fails_what_others_run_is_quarantined_and_nobody_else(hosts: int) -> None:
    watch = Watch()
    black_hole(watch, hosts)
    assert set(watch.held) == {host(0)}
    found = watch.take("uid")
    assert found is not None
    name, excuses = found
    assert name == "n0"
    assert {task for excuse in excuses for task in excuse.tasks.indices()} == set(range(0, 60 * hosts, hosts))
    assert watch.take("uid") is None


@settings(max_examples=25)
@given(hosts=st.integers(1, 8), share=st.floats(0.0, 0.8), seed=st.integers(0, 10**6))
def test_nobody_is_quarantined_where_all_fail_alike(hosts: int, share: float, seed: int) -> None:
    """Neither by luck, nor where from some moment on everything fails everywhere."""
    dice, watch = random.Random(seed), Watch()
    places = {host(number) for number in range(hosts)}
    for fence in range(400):
        good = fence < 300 and dice.random() >= share
        watch.tell(told(host(dice.randrange(hosts)), fence, at=float(fence), good=good))
        watch.judge(float(fence), places)
    assert not watch.held


@settings(max_examples=20)
@given(hosts=st.integers(2, 9), broken=st.integers(1, 9))
def test_never_more_than_half_of_a_site_is_quarantined(hosts: int, broken: int) -> None:
    watch, places, fence = Watch(), {host(number) for number in range(hosts)}, 0
    for turn in range(80):
        for number in range(hosts):
            watch.tell(told(host(number), fence, at=float(turn), good=number >= broken))
            fence += 1
        watch.judge(float(turn), places)
        assert 2 * len(watch.held) <= hosts
        assert all(int(name[1:]) < broken for _, name in watch.held)


def test_one_success_while_it_proves_itself_releases_a_host_and_each_failure_doubles_its_time() -> None:
    watch = Watch()
    places = black_hole(watch, 3)
    since = watch.held[host(0)].since
    until = watch.held[host(0)].until
    assert until == since + PERIOD
    watch.tell(told(host(0), 900, at=until + 1, good=False))
    assert watch.held[host(0)].until == until + 1 + 2 * PERIOD
    watch.tell(told(host(0), 901, at=until + 2, good=True))
    watch.judge(until + 2, places)
    assert host(0) in watch.held, "what had begun before says nothing"
    watch.tell(told(host(0), 902, at=until + 2 + 2 * PERIOD, good=True))
    assert not watch.held


def test_what_fails_elsewhere_too_stands_and_releases_the_host() -> None:
    """Then it was the tasks: they are not excused a second time, and speak against nobody."""
    watch = Watch()
    places = black_hole(watch, 3)
    assert watch.take("uid") is not None
    for number in range(40):
        watch.tell(told(host(1), 3 * number, at=100.0, good=False))
        watch.judge(100.0, places)
    assert not watch.held
    assert watch.take("uid") is None


def test_a_host_that_is_the_last_one_of_its_site_is_released() -> None:
    watch = Watch()
    black_hole(watch, 3)
    watch.judge(61.0, {host(0), ("other", "n1")})
    assert not watch.held


def test_a_threshold_of_zero_quarantines_nobody() -> None:
    watch = Watch(least=0)
    black_hole(watch, 3)
    assert not watch.held


def test_what_is_known_of_a_study_that_is_gone_is_forgotten() -> None:
    watch = Watch()
    black_hole(watch, 3)
    watch.forget(set())
    assert watch.take("uid") is None
