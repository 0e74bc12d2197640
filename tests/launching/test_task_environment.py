"""What a serial task has of the environment of its agent: the job, and nothing of the agent's own part in a launcher."""

import pytest

from merlin_agent import launch

JOB = {
    b"PATH": b"/bin", b"SLURM_JOB_ID": b"7", b"SLURM_JOB_NODELIST": b"n[1-2]", b"SLURM_CPUS_ON_NODE": b"4",
    b"SLURM_JOB_NUM_NODES": b"2", b"SLURMD_NODENAME": b"n1", b"FLUX_URI": b"local:///x", b"LSB_JOBID": b"9",
    b"PBS_JOBID": b"3", b"OMP_NUM_THREADS": b"2", b"MPICH_GPU_SUPPORT_ENABLED": b"1", b"OMPI_MCA_btl": b"self",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "PMI_RANK", "PMI_FD", "PMI2_x", "PMIX_NAMESPACE", "PMIX_SERVER_URI21", "PALS_RANKID", "HYDI_CONTROL_FD",
        "OMPI_COMM_WORLD_RANK", "OMPI_MCA_ess", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_RANK",
        "JSM_NAMESPACE_SIZE", "JSM_SMPI_x", "FLUX_TASK_RANK", "FLUX_KVS_NAMESPACE", "SLURM_PROCID", "SLURM_LOCALID",
        "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_TASK_PID", "SLURM_GTIDS",
        "SLURM_SRUN_COMM_PORT", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_CPU_BIND", "SLURM_MPI_TYPE", "SLURM_PMIX_x",
        "OMPI_MCA_orte_hnp_uri", "OMPI_MCA_orte_local_daemon_uri", "OMPI_UNIVERSE_SIZE", "OMPI_APP_CTX_NUM_PROCS",
        "OMPI_FIRST_RANKS", "OMPI_NUM_APP_CTX", "OMPI_FILE_LOCATION", "MERLIN_AGENT_SERVER",
    ],
)  # fmt: skip
def test_nothing_of_the_agent_s_own_part_in_a_launcher_is_inherited(name: str) -> None:
    assert launch.environment({**JOB, name.encode(): b"1"}).items() >= JOB.items()
    assert name.encode() not in launch.environment({**JOB, name.encode(): b"1"})


def test_an_srun_inside_of_a_task_takes_no_options_of_the_agent_s_and_shares_the_host_with_it() -> None:
    """Else it would start as many processes as there are agents, or wait for the agent's own step to end."""
    step = {b"SLURM_STEP_ID": b"0", b"SLURM_NTASKS": b"2", b"SLURM_NNODES": b"2", b"SLURM_NODELIST": b"n[1-2]"}
    assert launch.environment({**JOB, **step}) == {**JOB, b"SLURM_OVERLAP": b"1"}
    batch = {b"SLURM_NTASKS": b"2", b"SLURM_NNODES": b"2"}
    assert launch.environment({**JOB, **batch}) == {**JOB, **batch}, "of a batch script they describe the job"
