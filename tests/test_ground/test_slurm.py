"""The Slurm of the test ground schedules, signals and ends jobs on two nodes; every other server can stand beside it."""

import asyncio

import nats
import pytest

from tests.ground import Broker, ControlPlane, Slurm, eventually
from tests.ground.needs import program
from tests.ground.slurm import NODES

pytestmark = pytest.mark.slurm


def test_a_job_runs_on_both_nodes(slurm: Slurm) -> None:
    job = slurm.sbatch("srun --ntasks=2 bash -c 'echo $SLURMD_NODENAME $SLURM_NTASKS'", nodes=2, ntasks=2)
    assert slurm.wait(job) == "COMPLETED"
    assert sorted(slurm.output(job).splitlines()) == ["n1 2", "n2 2"]


def test_a_cancelled_job_gets_term_and_frees_its_node(slurm: Slurm) -> None:
    job = slurm.sbatch("trap 'echo asked; exit 0' TERM; echo started; sleep 600 & wait")
    eventually(lambda: "started" in slurm.output(job), message="the job runs")
    assert slurm.squeue() == {job: "RUNNING"}
    slurm.scancel(job, signal="TERM")
    assert slurm.wait(job) == "COMPLETED"
    assert "asked" in slurm.output(job)

    other = slurm.sbatch("sleep 600")
    slurm.wait(other, "RUNNING")
    slurm.scancel(other)
    assert slurm.wait(other) == "CANCELLED"
    eventually(lambda: slurm.nodes_idle() == list(NODES), message="both nodes are idle again")


def test_the_job_inherits_what_it_is_given(slurm: Slurm) -> None:
    job = slurm.sbatch(
        "echo $MERLIN_PROBE $SLURM_JOB_ID $SLURM_CPUS_ON_NODE", env={"MERLIN_PROBE": "word"}, exclusive=True
    )
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.output(job) == f"word {job} 2\n"


def test_a_job_reaches_a_broker_in_the_same_namespace_and_so_does_a_test(slurm: Slurm) -> None:
    async def connect(broker: Broker) -> bool:
        client = await nats.connect(broker.url, **broker.credentials)
        connected = client.is_connected
        await client.close()
        return connected

    with Broker(netns=slurm.network.name) as broker:
        job = slurm.sbatch(f"exec 3<>/dev/tcp/127.0.0.1/{broker.port} && head -c 4 <&3")
        assert slurm.wait(job) == "COMPLETED"
        assert slurm.output(job) == "INFO"
        assert slurm.network.call(lambda: asyncio.run(connect(broker)))
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(_touch(broker.port))


async def _touch(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


@pytest.mark.control_plane
def test_a_job_reaches_a_control_plane_in_the_same_namespace(slurm: Slurm) -> None:
    with ControlPlane(netns=slurm.network.name) as control_plane:
        control_plane.kubectl("create", "configmap", "seen", "--namespace", "default")
        job = slurm.sbatch(f"{program('kubectl')} get configmap seen -o name", env=control_plane.environment())
        slurm.wait(job)
        assert slurm.output(job) == "configmap/seen\n"
