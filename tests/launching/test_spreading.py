"""The one launcher call that starts the agents of a job's other hosts, by launcher."""

import pytest

from merlin_agent import spreading
from merlin_study.launchers import Kind

APART = "--overlap --cpu-bind=none --wait=0 --kill-on-bad-exit=0 --no-kill --input=none"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            Kind.SRUN,
            f"srun {APART} --nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=n2,n3 merlin-agent --this-node",
        ),
        (Kind.FLUX_RUN, "flux exec --noinput --rank=1-2 merlin-agent --this-node"),
        (Kind.JSRUN, "blaunch -z n2 n3 merlin-agent --this-node"),
        (Kind.PALS, "mpiexec -n 2 --ppn 1 --hosts n2,n3 --cpu-bind=none merlin-agent --this-node"),
        (Kind.HYDRA, "mpiexec -n 2 -ppn 1 -hosts n2,n3 -bind-to none merlin-agent --this-node"),
        (
            Kind.OPENMPI,
            "mpiexec -n 2 --host n2:1,n3:1 --map-by ppr:1:node --bind-to none merlin-agent --this-node",
        ),
        (Kind.APRUN, "aprun -n 2 -N 1 -L n2,n3 -cc none merlin-agent --this-node"),
    ],
)
def test_one_call_starts_an_agent_on_each_other_host(kind: Kind, expected: str) -> None:
    made = spreading.command(kind, ("n2", "n3"), ("merlin-agent", "--this-node"))
    assert made is not None
    assert " ".join(made) == expected


@pytest.mark.parametrize("kind", [None, Kind.FLUX_WRECK])
def test_a_launcher_that_can_t_be_told_hosts_starts_none(kind: Kind | None) -> None:
    assert spreading.command(kind, ("n2",), ("merlin-agent",)) is None
