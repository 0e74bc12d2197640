"""Upstream's own ``merlin run --local`` and ours, on the same files: what both leave on disk, and how the tasks ended."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from merlin_study.outcome import Outcome
from tests.compat import cases, running, trees
from tests.compat.cases import ALLOWED, BLANK, DRY, RUN, Allowed
from tests.compat.running import Case, Run

OUTCOMES = {
    "MERLIN_SUCCESS": Outcome.SUCCEEDED,
    "MERLIN_SOFT_FAIL": Outcome.SOFT_FAILED,
    "MERLIN_SOFT_FAIL (MAX RETRIES REACHED)": Outcome.SOFT_FAILED,
    "MERLIN_UNRECOGNIZED": Outcome.SOFT_FAILED,
    "MERLIN_HARD_FAIL": Outcome.FAILED,
    "MERLIN_STOP_WORKERS": Outcome.CANCELLED,
}
"""What upstream's status files call each of our outcomes."""
SEEN: set[Allowed] = set()

Pair: TypeAlias = tuple[Run, Run]


@pytest.fixture(scope="session")
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Case, Future[Pair]]]:
    """Both tools' runs of every case that is asked for, a few at a time."""
    asked = _asked(request.session)
    running.environment()
    with ThreadPoolExecutor(3) as pool:
        yield {case: pool.submit(_both, case, tmp_path_factory.mktemp(case.id)) for case in asked}
        pool.shutdown(cancel_futures=True)


def _asked(session: pytest.Session) -> list[Case]:
    here = [item for item in session.items if item.path == Path(__file__)]
    found = [item.callspec.params["case"] for item in here if hasattr(item, "callspec")]
    return [case for case in found if isinstance(case, Case)]


def _both(case: Case, place: Path) -> Pair:
    return running.theirs(case), running.ours(case, place)


def unexpected(case: Case, pair: Pair) -> list[str]:
    """The differences that no row allows, and the rows of this case that allow what is not there."""
    theirs, ours = (trees.read(run) for run in pair)
    assert theirs, pair[0].said
    assert ours, pair[1].said
    due = {row for row in ALLOWED if case.id in row.cases}
    found = []
    for difference in trees.differences(theirs, ours):
        rows = [row for row in ALLOWED if row.covers(case, difference)]
        SEEN.update(rows)
        due.difference_update(rows)
        if not rows:
            found.append(str(difference))
    return found + [f"no longer differs, so remove the row: {row}" for row in due]


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.id)
def test_a_run_leaves_what_upstreams_leaves(case: Case, pairs: dict[Case, Future[Pair]]) -> None:
    pair = pairs[case].result()
    found = unexpected(case, pair)
    assert not found, "\n".join(found)
    told = {task: OUTCOMES[code] for task, code in trees.their_outcomes(pair[0]).items()}
    assert trees.our_outcomes(pair[1]) == told


@pytest.mark.parametrize("case", DRY, ids=lambda case: case.id)
def test_a_dry_run_leaves_what_upstreams_leaves(case: Case, pairs: dict[Case, Future[Pair]]) -> None:
    found = unexpected(case, pairs[case].result())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("case", BLANK, ids=lambda case: case.id)
def test_what_upstream_refuses_is_refused(case: Case, pairs: dict[Case, Future[Pair]]) -> None:
    theirs, ours = pairs[case].result()
    assert theirs.code != 0, theirs.said
    assert (ours.code, ours.study) == (1, None)
    assert "the study was refused" in ours.said


def test_every_allowed_difference_is_still_there(request: pytest.FixtureRequest) -> None:
    if len(_asked(request.session)) == len((*RUN, *DRY, *BLANK)):
        assert [row for row in cases.ALLOWED if row not in SEEN] == []
