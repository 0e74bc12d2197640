"""Who had claimed a chunk before a broker that was put back handed it out again, as the outcome logs say."""

import os
from pathlib import Path

import pytest

from merlin_agent.claims import Claims
from merlin_study import outcomelog
from merlin_study.taskset import TaskSet
from merlin_study.wire import Chunk, LostHolder, Start

MADE = 1_000
"""When the broker's streams were made."""


def chunk(fence: int, *, first: int = 0) -> Chunk:
    """A chunk of ten tasks."""
    tasks = TaskSet(first=first, width=10)
    return Chunk(study="u", plan="p", epoch=1, fence=fence, step=1, tasks=tasks, attempt=1, samples=0)


def write(directory: Path, agent: str, *claimed: Chunk, at: float = MADE + 60.0) -> None:
    """Write an agent's log, which was written to last ``at`` that time."""
    path = directory / f"{agent}.jsonl"
    entries = [outcomelog.Entry(study="u", plan="p", start=Start(agent=agent, chunk=each)) for each in claimed]
    path.write_bytes(b"".join(map(outcomelog.encode_line, entries)))
    os.utime(path, (at, at))


OTHER = LostHolder(fence=7, agent="other")


@pytest.mark.parametrize(
    ("mine", "others", "at", "found"),
    [
        pytest.param([chunk(7)], [chunk(7)], MADE + 60.0, (OTHER,), id="another one claimed it"),
        pytest.param([chunk(7)], [chunk(7), chunk(7)], MADE + 60.0, (OTHER,), id="another one claimed it twice"),
        pytest.param([chunk(7)], [chunk(70), chunk(6)], MADE + 60.0, (), id="other fences"),
        pytest.param([chunk(7)], [chunk(7, first=10)], MADE + 60.0, (), id="another chunk of that fence"),
        pytest.param([chunk(7)], [chunk(7)], MADE + 0.9, (), id="on a broker before this one"),
        pytest.param([chunk(7)], [], MADE + 60.0, (), id="only we, now"),
        pytest.param(
            [chunk(7), chunk(7)], [], MADE + 60.0, (LostHolder(fence=7, agent="me"),), id="we, before and now"
        ),
    ],
)
def test_a_claim_counts_of_whoever_wrote_it_down_for_the_same_chunk_on_the_same_broker(
    tmp_path: Path, mine: list[Chunk], others: list[Chunk], at: float, found: tuple[LostHolder, ...]
) -> None:
    write(tmp_path, "me", *mine)
    write(tmp_path, "other", *others, at=at)
    assert Claims().others(str(tmp_path), Start(agent="me", chunk=chunk(7)), made=MADE) == found


def line(agent: str, of: Chunk) -> bytes:
    """A claim's line."""
    return outcomelog.encode_line(outcomelog.Entry(study="u", plan="p", start=Start(agent=agent, chunk=of)))


def test_what_is_written_between_two_looks_is_seen_also_where_the_first_saw_half_a_line(tmp_path: Path) -> None:
    claims, log = Claims(), tmp_path / "other.jsonl"
    whole, mine = line("other", chunk(7)), Start(agent="me", chunk=chunk(7))
    log.write_bytes(line("other", chunk(6)) + whole[:-9])
    assert claims.others(str(tmp_path), mine, made=MADE) == ()
    with log.open("ab") as file:
        file.write(whole[-9:])
    assert claims.others(str(tmp_path), mine, made=MADE) == (OTHER,)
    assert claims.others(str(tmp_path), mine, made=MADE) == (OTHER,), "and found again"


def test_a_log_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    claims, mine = Claims(), Start(agent="me", chunk=chunk(7))
    (tmp_path / "other.jsonl").write_bytes(line("other", chunk(5)) * 3)
    assert claims.others(str(tmp_path), mine, made=MADE) == ()
    (tmp_path / "new").write_bytes(line("other", chunk(7)))
    (tmp_path / "new").rename(tmp_path / "other.jsonl")
    assert claims.others(str(tmp_path), mine, made=MADE) == (OTHER,)


def test_a_chunk_that_names_lost_holders_is_found_by_its_own_fence(tmp_path: Path) -> None:
    again = chunk(9).model_copy(update={"lost": (OTHER,)})
    (tmp_path / "third.jsonl").write_bytes(line("third", again))
    assert Claims().others(str(tmp_path), Start(agent="me", chunk=chunk(7)), made=MADE) == ()
    assert Claims().others(str(tmp_path), Start(agent="me", chunk=again), made=MADE) == (
        LostHolder(fence=9, agent="third"),
    )
