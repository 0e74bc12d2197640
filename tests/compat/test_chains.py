"""Upstream's examples that submit themselves from within a step: unmodified, with upstream's own ``merlin`` on their PATH too.

Upstream's own runs of them need a broker and workers, so there is nothing to compare with but what they are for.
"""

from pathlib import Path

from tests.compat import running
from tests.compat.running import Case

NULL_CHAIN = Case("workflows/null_spec/null_chain.yaml", options=("--vars", "TIME=0", "MAX_SAMPLES=100"))


def test_null_chain_submits_itself_ten_times_as_large_until_it_is_done(tmp_path: Path) -> None:
    """Three studies of 1, 10 and 100 samples, which end as one run."""
    run = running.ours(NULL_CHAIN, tmp_path)
    assert run.code == 0, run.said
    chain = sorted(run.here.glob("null_chain_*"))
    assert [len(list(each.glob("null_step/**/MERLIN_FINISHED"))) for each in chain] == [1, 10, 100]
    said = [(each / "launch_next" / "launch_next.slurm.out").read_text().splitlines()[0] for each in chain]
    assert said == ["Starting next iteration", "Starting next iteration", "Chain complete"]
