"""Allocations of several hosts on a real Slurm: one agent for all or one on each, and what ends an allocation in mid-study."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster.funnel import condition, workspace_of
from tests.cluster.site import Site, running_site
from tests.ground import Slurm, eventually

pytestmark = [pytest.mark.slurm, pytest.mark.control_plane, pytest.mark.timeout(900)]

SERIAL = int(os.environ.get("MERLIN_TEST_SERIAL", "4000"))
NAP = os.environ.get("MERLIN_TEST_NAP", "0")
WIDE = 8
MIXED = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: {name}}}
spec:
  description: {{name: {name}, description: many serial tasks beside some that run over two hosts}}
  batch: {{type: slurm}}
  global.parameters:
    TURN: {{values: [{turns}], label: "TURN.%%"}}
  study:
  - name: serial
    description: notes where and when it ran
    run:
      cmd: |
        : $(NUMBER)
        began=$EPOCHREALTIME
        while read -r key value; do [[ $key == Cpus_allowed_list: ]] && break; done < /proc/$BASHPID/status
        [[ {nap} == 0 ]] || sleep {nap}
        echo "$SLURMD_NODENAME $value $began $EPOCHREALTIME" >> $(MERLIN_WORKSPACE)/spans-$SLURMD_NODENAME
  - name: wide
    description: a process on each core of two hosts
    run:
      cmd: $(LAUNCHER) {note} $(MERLIN_WORKSPACE)/spans-wide $(TURN)
      nodes: 2
      procs: 4
  merlin:
    samples:
      generate: {{cmd: "seq {serial} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""
NOTE = """\
#!/bin/bash
began=$EPOCHREALTIME
sleep 0.5
echo "$SLURMD_NODENAME $2 $began $EPOCHREALTIME" >> $1
"""
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


class Span(NamedTuple):
    """A process's time on a host."""

    host: str
    what: str
    began: float
    ended: float


def spans(path: Path) -> list[Span]:
    lines = (line.split() for line in path.read_text().splitlines())
    return [Span(host, what, float(began), float(ended)) for host, what, began, ended in lines]


def most_at_once(found: list[Span]) -> int:
    """How many of these ran at one time."""
    marks = sorted([(each.began, 1) for each in found] + [(each.ended, -1) for each in found])
    running = most = 0
    for _, change in marks:
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize("launcher", ["", "srun --overlap --ntasks-per-node=1 --cpu-bind=none"])
def test_a_mixed_study_fills_two_hosts_and_oversubscribes_no_core(site: Site, tmp_path: Path, launcher: str) -> None:
    """One agent that starts the other, or one on each host by the user's srun: the same command, the same result."""
    note, calls = site.root / "note", tmp_path / "calls"
    note.write_text(NOTE)
    note.chmod(0o755)
    counted = tmp_path / "bin" / "srun"
    counted.parent.mkdir()
    counted.write_text(COUNTED.format(log=calls, srun=shutil.which("srun")))
    counted.chmod(0o755)
    name = "mixed" if launcher else "mixed-alone"
    serial = 2000 if launcher else SERIAL
    job = site.allocate(
        "--idle-exit", "10",
        slots=None, nodes=2, launcher=launcher, exclusive=True, env={"PATH": f"{counted.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    turns = ", ".join(f'"{turn}"' for turn in range(WIDE))
    site.apply(MIXED.format(name=name, turns=turns, nap=NAP, note=note, serial=serial))
    site.wait_finished(name)
    study = site.study(name)
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    assert study["status"]["counts"]["succeeded"] == serial + WIDE + 1
    workspace = workspace_of(study, site.root / "work")
    wide = spans(workspace / "spans-wide")
    assert len(wide) == 4 * WIDE
    busy, began, ended = 0.0, float("inf"), 0.0
    for host in ("n1", "n2"):
        here = spans(workspace / f"spans-{host}")
        both = here + [span for span in wide if span.host == host]
        assert sum(span.host == host for span in wide) == 2 * WIDE, "two processes on each host"
        assert most_at_once(both) <= 2, f"{host} has two cores"
        by_core = defaultdict(list)
        for span in here:
            by_core[span.what].append(span)
        assert sorted(by_core) == ["0", "1"], "each serial task is bound to one core"
        assert [most_at_once(each) for each in by_core.values()] == [1, 1]
        busy += sum(span.ended - span.began for span in both)
        began, ended = min(began, *(span.began for span in both)), max(ended, *(span.ended for span in both))
    last = max(span.began for span in wide)
    print(
        f"busy {busy / (4 * (ended - began)):.1%} of {ended - began:.1f} s; wide steps over after {last - began:.1f} s"
    )
    started = [line for line in calls.read_text().splitlines() if "merlin-agent" in line]
    assert len(started) == 1, "one launcher call for the agents"
    assert len(calls.read_text().splitlines()) == 1 + WIDE, "and none for a serial task"
    assert site.slurm.wait(job, timeout=240) == "COMPLETED", "idle agents leave, and the job ends with them"


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
        sleep {seconds}
        echo $(NUMBER) >> $(MERLIN_WORKSPACE)/executions
      max_retries: 1
  merlin:
    samples:
      generate: {{cmd: "seq {tasks} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""


def check_lossless(site: Site, name: str, tasks: int) -> None:
    """Every task succeeded and was finished once; none failed, none was lost, none was doubled."""
    study = site.study(name)
    assert condition(study, "Succeeded")["status"] == "True", study["status"]
    counts = study["status"]["counts"]
    assert (counts["succeeded"], study["status"].get("doubled", 0)) == (tasks + 1, 0)
    assert sum(step.get("lost", 0) for step in study["status"]["steps"]) == 0, "given back, not missed"
    lines = (workspace_of(study, site.root / "work") / "executions").read_text().split()
    assert sorted(map(int, lines)) == list(range(1, tasks + 1))


@pytest.mark.parametrize("how", ["scancel", "requeue", "walltime"])
def test_an_allocation_that_ends_in_mid_study_costs_nothing(site: Site, how: str) -> None:
    """What has not started is given back at once, what runs is ended and given back; the next allocation goes on."""
    name, tasks = f"ends-by-{how.strip('-')}", 24
    job = site.allocate(time="1:00" if how == "walltime" else "10:00", requeue=how == "requeue")
    site.apply(LONG.format(name=name, seconds=1 if how == "scancel" else 3, tasks=tasks))
    eventually(lambda: site.done(name) > 2, message="the first allocation works")
    match how:
        case "scancel":
            site.slurm.scancel(job)
        case "requeue":
            site.slurm.requeue(job)
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
