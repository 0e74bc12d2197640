"""Allocations of several hosts on a real Slurm: one agent for all or one on each, and what ends an allocation in mid-study."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.funnel import condition, workspace_of
from tests.cluster.mixed import Occupancy, manifest, most_at_once, spans
from tests.cluster.site import Site, running_site
from tests.ground import Slurm, eventually

pytestmark = [pytest.mark.slurm, pytest.mark.control_plane, pytest.mark.timeout(900)]

SERIAL = int(os.environ.get("MERLIN_TEST_SERIAL", "4000"))
WIDE = 4
COUNTED = """\
#!/bin/bash
echo "$*" >> {log}
exec {srun} "$@"
"""


@pytest.fixture(scope="module")
def site(slurm: Slurm) -> Iterator[Site]:
    """One site for all tests here."""
    with running_site(slurm) as started:
        yield started


@pytest.mark.parametrize(
    ("launcher", "serial", "nap"),
    [("", SERIAL, 0.0), ("srun --overlap --ntasks-per-node=1 --cpu-bind=none", 60, 0.4)],
    ids=["one agent, thousands of short tasks", "an agent on each host, tasks of half a second"],
)
def test_a_mixed_study_fills_two_hosts_and_oversubscribes_no_core(
    site: Site, tmp_path: Path, launcher: str, serial: int, nap: float
) -> None:
    """One agent that starts the other, or one on each host by the user's srun: the same command, the same result."""
    calls, counted = tmp_path / "calls", tmp_path / "bin" / "srun"
    counted.parent.mkdir()
    counted.write_text(COUNTED.format(log=calls, srun=shutil.which("srun")))
    counted.chmod(0o755)
    name = "mixed" if launcher else "mixed-alone"
    with Occupancy(str(site.root)) as seen:
        site.apply(manifest(name, serial=serial, nap=nap, wide=WIDE, wide_seconds=0.5, note=site.root / "note"))
        job = site.allocate(
            "--idle-exit", "10",
            slots=None, nodes=2, launcher=launcher, exclusive=True, env={"PATH": f"{counted.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        site.wait_finished(name)
    study = site.study(name)
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    assert study["status"]["counts"]["succeeded"] == serial + WIDE + 1
    workspace = workspace_of(study, site.root / "work")
    wide = spans(workspace / "spans-wide")
    assert len(wide) == 4 * WIDE
    for host in ("n1", "n2"):
        assert (workspace / f"spans-{host}").exists(), f"no serial task on {host}:\n{site.slurm.output(job)}"
        here = spans(workspace / f"spans-{host}")
        assert sum(span.host == host for span in wide) == 2 * WIDE, "two processes on each host"
        assert most_at_once(here + [span for span in wide if span.host == host]) <= 2, f"{host} has two cores"
        by_core = defaultdict(list)
        for span in here:
            by_core[span.what].append(span)
        assert sorted(by_core) == ["0", "1"], "each serial task is bound to one core"
        assert [most_at_once(each) for each in by_core.values()] == [1, 1]
    assert seen.peak <= 1, "no core had two tasks in any sample"
    print(f"busy {seen.mean:.1%} of {seen.seconds:.1f} s")
    started = [line for line in calls.read_text().splitlines() if "merlin-agent" in line]
    assert len(started) == 1, "one launcher call for the agents"
    assert len(calls.read_text().splitlines()) == 1 + WIDE, "and none for a serial task"
    assert site.slurm.wait(job, timeout=240) == "COMPLETED", "idle agents leave, and the job ends with them"


@pytest.mark.parametrize("hosts", [1, 2], ids=["on one host", "over both hosts"])
def test_a_launched_process_and_a_serial_task_never_share_a_core(site: Site, hosts: int) -> None:
    """`srun` knows nothing of serial tasks: left to itself, it would let each process run on both cores."""
    name, launched = f"beside-{hosts}", 3
    eventually(lambda: site.slurm.nodes_idle() == ["n1", "n2"], message="no agent of another job is left")
    site.apply(
        manifest(
            name, serial=24, nap=0.4, wide=launched, wide_seconds=1.0, note=site.root / "note", size=(hosts, hosts)
        )
    )
    job = site.allocate("--idle-exit", "10", slots=None, nodes=2, exclusive=True)
    site.wait_finished(name)
    study = site.study(name)
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    workspace = workspace_of(study, site.root / "work")
    ran = spans(workspace / "spans-wide-cores")
    assert len(ran) == launched * hosts
    assert {span.what for span in ran} <= {"0", "1"}, "each process is bound to one core"
    for host in ("n1", "n2"):
        serial = spans(workspace / f"spans-{host}") if (workspace / f"spans-{host}").exists() else []
        for core in ("0", "1"):
            here = [span for span in (*ran, *serial) if (span.host, span.what) == (host, core)]
            assert most_at_once(here) <= 1, f"core {core} of {host} had two at once: {here}"
    assert site.slurm.wait(job, timeout=240) == "COMPLETED"


INSIDE = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {name: inside}
spec:
  description: {name: inside, description: what a serial step of an agent that srun started has of Slurm}
  study:
  - name: look
    description: the job is described, the agent's own part in srun is not, and srun works
    run:
      cmd: |
        env > environment
        srun --ntasks=1 --nodes=1 bash -c 'echo "$SLURM_JOB_ID $SLURM_PROCID"' > inner
"""


def test_a_serial_step_sees_the_job_and_not_the_agent_s_own_part_in_srun(site: Site) -> None:
    """A program linked with MPI would wait for the peers that the variables of the agent's step promise; srun must still work."""
    eventually(lambda: site.slurm.nodes_idle() == ["n1", "n2"], message="no agent of another job is left")
    site.apply(INSIDE)
    job = site.allocate(
        "--idle-exit", "10",
        slots=None, nodes=2, exclusive=True, launcher="srun --ntasks-per-node=1 --cpu-bind=none --mpi=pmi2",
    )  # fmt: skip
    site.wait_finished("inside")
    study = site.study("inside")
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    step = workspace_of(study, site.root / "work") / "look"
    names = {line.partition("=")[0] for line in (step / "environment").read_text().splitlines()}
    assert {"SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_CPUS_ON_NODE", "SLURMD_NODENAME"} <= names
    tasks = ("PMI", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP", "SLURM_SRUN_COMM", "SLURM_GTIDS", "SLURM_NTASKS")
    assert not [name for name in names if name.startswith(tasks)]
    assert (step / "inner").read_text().split() == [job, "0"]


OVER_TWO = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: bereft}}
spec:
  description: {{name: bereft, description: a step over two hosts of which one dies}}
  batch: {{type: slurm}}
  study:
  - name: wide
    description: runs for ever the first time
    run:
      cmd: $(LAUNCHER) {script} $(MERLIN_WORKSPACE)
      nodes: 2
      procs: 2
      max_retries: 0
"""
ONCE = """\
#!/bin/bash
[[ -e $1/again ]] && exit 0
touch $1/began-$SLURMD_NODENAME
sleep 3600
"""


def test_a_step_over_a_host_that_dies_is_ended_and_runs_again_without_a_retry(site: Site) -> None:
    """Slurm's `srun` may wait for the dead host for as long as the job lasts."""
    slurm, script = site.slurm, site.root / "once"
    eventually(lambda: slurm.nodes_idle() == ["n1", "n2"], timeout=180, message="both nodes are free")
    script.write_text(ONCE)
    script.chmod(0o755)
    job = site.allocate("--keep-alive", slots=None, nodes=2, exclusive=True, no_kill=True)
    site.apply(OVER_TWO.format(script=script))
    work = site.root / "work"
    eventually(lambda: len(list(work.glob("bereft_*/began-*"))) == 2, timeout=180, message="it runs on both hosts")
    (work / next(work.glob("bereft_*")).name / "again").touch()
    slurm.kill_node("n2")
    eventually(lambda: "is gone without a word" in slurm.output(job), timeout=180, message="the launcher is ended")
    eventually(
        lambda: not [each for each in slurm.network.pids() if _runs(each, str(script))],
        timeout=120,
        message="nothing of it runs on, on the host that lives",
    )
    slurm.nodes["n2"].start()
    slurm.scancel(job)
    eventually(lambda: slurm.nodes_idle() == ["n1", "n2"], timeout=180, message="the killed node is back")
    site.allocate("--idle-exit", "10", slots=None, nodes=2, exclusive=True)
    site.wait_finished("bereft")
    study = site.study("bereft")
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    assert study["status"]["counts"]["succeeded"] == 1
    told = "".join(path.read_text() for path in work.glob("bereft_*/merlin_info/outcomes/*"))
    assert told.count('"outcome":"lost"') == 1, (
        "what took a host with it is told of, so that such losses can be counted"
    )


def _runs(pid: int, program: str) -> bool:
    try:
        return program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


LONG = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: {name}}}
spec:
  description: {{name: {name}, description: tasks that an allocation's end meets}}
  study:
  - name: say
    description: no task may fail or be tried again
    run:
      cmd: |
        echo $MERLIN_TIME_LEFT > left-$BASHPID
        for tenth in {{1..{seconds}0}}; do [ -e {hurry} ] || sleep 0.1; done
        echo $(NUMBER) >> $(MERLIN_WORKSPACE)/executions
      max_retries: 0
  merlin:
    samples:
      generate: {{cmd: "seq {tasks} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""


def check_lossless(site: Site, name: str, tasks: int, *, most_lost: int = 0) -> None:
    """Every task succeeded and was finished once; none failed (a step has no retries), none was doubled, few were lost."""
    study = site.study(name)
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    counts = study["status"]["counts"]
    assert (counts["succeeded"], study["status"].get("doubled", 0)) == (tasks + 1, 0)
    assert sum(step.get("lost", 0) for step in study["status"]["steps"]) <= most_lost, "given back, not missed"
    lines = (workspace_of(study, site.root / "work") / "executions").read_text().split()
    assert sorted(map(int, lines)) == list(range(1, tasks + 1))


@pytest.mark.parametrize("how", ["scancel", "requeue", "signal", "walltime"])
def test_an_allocation_that_ends_in_mid_study_costs_nothing(site: Site, how: str) -> None:
    """What has not started is given back at once, what runs is ended and given back; the next allocation goes on."""
    name, tasks = f"ends-by-{how}", 24
    job = site.allocate(
        time={"walltime": "1:00", "signal": "2:00"}.get(how, "10:00"),
        requeue=how == "requeue",
        signal="B:USR1@75" if how == "signal" else False,
    )
    site.apply(LONG.format(name=name, seconds=1 if how == "scancel" else 3, tasks=tasks, hurry=site.root / name))
    eventually(lambda: site.done(name) > 2, message="the first allocation works")
    match how:
        case "scancel":
            site.slurm.scancel(job)
        case "requeue":
            site.slurm.requeue(job)
        case "signal":
            assert site.slurm.wait(job, timeout=240) == "COMPLETED", "it drains and leaves before the end"
        case _:
            site.slurm.wait(job, timeout=240)
    site.allocate("--idle-exit", "60")  # a requeued job waits for two minutes
    site.wait_finished(name)
    check_lossless(site, name, tasks)
    lefts = [int(path.read_text()) for path in (site.root / "work").glob(f"{name}_*/say/**/left-*")]
    assert lefts
    assert all(0 <= left <= 600 for left in lefts)
    for each in site.jobs:
        site.slurm.scancel(each)


def test_a_study_of_several_allocations_outlives_what_a_cluster_does_to_them(site: Site) -> None:
    """A job array serves it; a node is drained, a task of the array is preempted, a node dies: nothing is lost, failed or doubled."""
    slurm, name, tasks = site.slurm, "outlives", 150
    eventually(lambda: slurm.nodes_idle() == ["n1", "n2"], message="both nodes are free")
    array = site.allocate("--keep-alive", array="0-1", cpus_per_task=2)
    site.apply(LONG.format(name=name, seconds=3, tasks=tasks, hurry=site.root / name))
    log = f"{name}_*/merlin_info/outcomes/*"
    eventually(
        lambda: site.done(name) > 4 and len(list((site.root / "work").glob(log))) == 2,
        message="both tasks of the array have a part in it",
    )
    slurm.drain("n1")
    urgent = slurm.sbatch("sleep 3", partition="urgent", nodelist="n2", cpus_per_task=2)
    assert slurm.wait(urgent, timeout=240) == "COMPLETED", "the array's task on n2 had to go"
    before = site.done(name)
    eventually(lambda: site.done(name) > before + 2, message="the drained node goes on with what it runs")
    slurm.resume("n1")
    site.allocate("--keep-alive", nodelist="n2", cpus_per_task=2)
    eventually(lambda: len(list((site.root / "work").glob(log))) == 3, message="another allocation joins")
    slurm.kill_node("n1")
    (site.root / name).touch()  # from here on tasks take no time; until here work was left however slow the machine is
    site.wait_finished(name)
    check_lossless(site, name, tasks, most_lost=4)
    assert all(path.read_text() for path in (site.root / "work").glob(f"{name}_*/executions"))
    slurm.nodes["n1"].start()
    for each in [*site.jobs, array]:
        slurm.scancel(each)
    eventually(lambda: slurm.nodes_idle() == ["n1", "n2"], message="the killed node is back")
