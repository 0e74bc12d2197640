"""Which tests go to which process where pytest-xdist runs several side by side (``pytest -n auto``, as ``make test`` does).

Most tests that take long wait for servers and processes, so there are two processes a core. The unit that a process is
given is a file, whose tests so share what is started once a module. The files of `LONG` come first, the longest before the
others: whatever comes last should be short. Those of them whose tests share nothing are given out test by test.

Each process has its own servers, ports (`tests.ground.free_port`) and network namespaces; what is made once a machine
(`tests.conftest`) is made under a lock.
"""

import os
from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling

LONG: Final = {
    "tests/cluster/test_end_to_end.py": True,
    "tests/cluster/test_whole_allocations.py": True,
    "tests/compat/test_against_upstream.py": True,
    "tests/metrics/test_dashboards.py": True,
    "tests/faults/test_soak.py": True,
    "tests/cli/test_cli_local.py": False,
    "tests/cli/test_cli_nested.py": False,
    "tests/examples/test_demo_and_bench.py": False,
    "tests/streaming/test_engine.py": False,
    "tests/server/test_server.py": True,
    "tests/agent/test_faults.py": False,
    "tests/operating/test_operator_process.py": False,
    "tests/operating/test_status_conditions.py": False,
    "tests/operating/test_status_board.py": True,
    "tests/cli/test_cli_lean.py": False,
    "tests/cli/test_cli_packed.py": False,
    "tests/faults/test_brokers_fail.py": False,
    "tests/faults/test_agents_die.py": False,
    "tests/faults/test_clusters_fail.py": True,
    "tests/faults/test_operators_die.py": False,
    "tests/launching/test_worker_lines.py": True,
    "tests/streaming/test_snapshots.py": False,
    "tests/operating/test_operator_health.py": False,
    "tests/cluster/test_travelling.py": True,
    "tests/agent/test_steps_that_start_studies.py": False,
    "tests/agent/test_outcomes.py": False,
}
"""Files that take long, the longest first, and whether the tests of each stay together."""


def processes() -> int:
    """Return how many processes ``-n auto`` means: two a core, and no more than eight control planes on one machine."""
    return min(8, 2 * len(os.sched_getaffinity(0)))


def longest_first(items: list[pytest.Item]) -> None:
    """Bring the tests into the order in which they are given out."""
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(_file(item.nodeid), len(ranks)))


class Scheduling(LoadScopeScheduling):
    """Gives out files and single tests in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return file if LONG.get(file, True) else nodeid


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]
