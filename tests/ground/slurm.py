"""A real Slurm of two virtual nodes on this machine, in a network namespace.

Both nodes are slurmd processes here (`n1`, `n2`; two CPUs each, whatever the machine has), so a job sees one file system
and one host name, and `SLURMD_NODENAME` tells the nodes apart. What is real: the queue, the allocation's environment,
signals at the time limit and on scancel, `srun` across nodes.

Invariants: configuration, keys, spool and pid files lie in one directory, so nothing meets a Slurm or a munge that this
machine may run otherwise; the daemons stay in the foreground as our children; a job that outlives them ends with the
namespace. slurmd and slurmctld bind every address, hence the namespace: there, every address is loopback.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ground.needs import debian, system_program
from tests.ground.network import NetworkNamespace
from tests.ground.processes import Process
from tests.ground.waiting import GENEROUS, eventually, free_port

NODES = ("n1", "n2")
# Between TERM and KILL, at the time limit and on scancel: enough for an agent to report, short enough for a test.
KILL_WAIT = 5

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
_ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


class Slurm:
    """`with NetworkNamespace() as network, Slurm(network) as slurm: job = slurm.sbatch("srun hostname", nodes=2)`."""

    def __init__(self, network: NetworkNamespace) -> None:
        """Choose ports; nothing runs yet."""
        self.network = network
        self._made = tempfile.TemporaryDirectory(prefix="merlin-slurm-")
        self.directory = Path(self._made.name)
        self.config = self.directory / "slurm.conf"
        # One process each: a test may kill a node (`slurm.nodes["n1"].kill()`) or the controller.
        self.munge = self._daemon("munged", "--foreground", *self._munge_files())
        self.controller = self._daemon("slurmctld", "-D", "-f", str(self.config))
        self.nodes = {
            name: self._daemon("slurmd", "-D", "-f", str(self.config), "-N", name, log=f"slurmd-{name}")
            for name in NODES
        }

    @staticmethod
    def require() -> None:
        """Install what is missing where this user may; else skip the test (fail it under CI)."""
        NetworkNamespace.require()
        debian(PACKAGES, _PROGRAMS)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of Slurm's commands: this one's, without what an allocation around the tests may have set."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**kept, "SLURM_CONF": str(self.config), **(extra or {})}

    def start(self) -> None:
        """Start the daemons and return when both nodes are idle."""
        # Munge wants its socket reachable for every user of the machine, and its key for none.
        self.directory.chmod(0o711)
        for name in ("state", "output", *(f"spool-{node}" for node in NODES)):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.config.write_text(self._configuration())
        # slurmd loads a cgroup plugin though nothing here asks for one. Left to choose, it fails where no cgroups are
        # mounted and moves itself about in the machine's tree where they are version 2; version 1 only looks the folder up.
        (self.directory / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.directory}\n")
        self.munge.start()
        self._await(self.munge, (self.directory / "munge.socket").exists, "munged listens")
        for daemon in (self.controller, *self.nodes.values()):
            daemon.start()
        self._await(self.controller, lambda: self.nodes_idle() == list(NODES), "both nodes are idle")

    def stop(self) -> None:
        """Kill the jobs, then end the daemons."""
        with contextlib.suppress(
            AssertionError
        ):  # a test may have left no controller: then the namespace ends the jobs
            if self.controller.alive and self.squeue():
                self._run("scancel", "--signal=KILL", "--full", *self.squeue())
                eventually(lambda: not self.squeue(), message="the jobs end")
        for daemon in (*self.nodes.values(), self.controller, self.munge):
            daemon.stop()

    def __enter__(self) -> Self:
        """Start it; end what started where one of the daemons does not."""
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove its directory."""
        self.stop()
        self._made.cleanup()

    def sbatch(
        self,
        script: str,
        *,
        nodes: int = 1,
        time: str = "10:00",
        env: Mapping[str, str] | None = None,
        **options: str | int | bool,
    ) -> str:
        """Submit a batch script and return the job's id.

        A script without `#!` is bash. Options are sbatch's (`cpus_per_task=2`, `exclusive=True`, `chdir=str(tmp_path)`);
        `env` is added to the environment that the job inherits.
        """
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        flags = [
            f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
            for key, value in options.items()
            if value is not False
        ]
        output = f"--output={self.directory / 'output' / '%j.out'}"
        return self._run(
            "sbatch", "--parsable", f"--nodes={nodes}", f"--time={time}", output, *flags, stdin=text, env=env
        ).strip()

    def squeue(self) -> dict[str, str]:
        """The state of each job that waits, runs or completes, by id."""
        return dict(line.split() for line in self._run("squeue", "--noheader", "--format=%A %T").splitlines())

    def job_state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, FAILED, TIMEOUT and so on; known for five minutes."""
        shown = self.show(job)
        found = re.search(r"JobState=(\w+)", shown)
        assert found is not None, f"scontrol shows no JobState:\n{shown}"
        return found[1]

    def wait(self, job: str, *states: str, timeout: float = GENEROUS) -> str:
        """Wait until the job is in one of the states (by default: in one that ends it) and return it."""
        wanted = set(states) or _ENDED
        eventually(lambda: self.job_state(job) in wanted, timeout=timeout, interval=0.1, message=f"job {job}: {wanted}")
        return self.job_state(job)

    def scancel(self, job: str, signal: str | None = None) -> None:
        """Cancel the job; with a signal (`"TERM"`), only send that to the batch script and all that it started."""
        self._run("scancel", *([f"--signal={signal}", "--full"] if signal else []), job)

    def signal_batch(self, job: str, signal: str) -> None:
        """Send a signal to the batch shell alone, as `--signal=B:` does before a job's end."""
        self._run("scancel", f"--signal={signal}", "--batch", job)

    def show(self, job: str) -> str:
        """What scontrol says of a job."""
        return self._run("scontrol", "show", "job", job)

    def requeue(self, job: str) -> None:
        """End the job and put it back into the queue, as preemption does."""
        self._run("scontrol", "requeue", job)

    def drain(self, node: str) -> None:
        """Let no further job start on a node; what runs there goes on. `resume` ends it."""
        self._run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    def resume(self, node: str) -> None:
        """Let jobs start on a node again."""
        self._run("scontrol", "update", f"nodename={node}", "state=resume")

    def kill_node(self, node: str) -> None:
        """Kill all that runs on a node, its slurmd first; `nodes[node].start()` brings an empty one back."""
        self.nodes[node].kill()
        doomed = set()
        for pid in self.network.pids():
            with contextlib.suppress(OSError):
                if f"SLURMD_NODENAME={node}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                    doomed.add(pid)
                    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
                    if Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd":
                        doomed.add(parent)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def nodes_idle(self) -> list[str]:
        """The names of the nodes that run nothing and answer."""
        lines = self._run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).splitlines()
        return sorted({name for name, state in (line.split() for line in lines) if state == "idle"})

    def output(self, job: str) -> str:
        """What the job has written so far (stdout and stderr), unless `output=` sent it elsewhere."""
        path = self.directory / "output" / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def _run(
        self, *argv: str, stdin: str | None = None, env: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        done = subprocess.run(
            self.network.enter(argv),
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    def _await(self, daemon: Process, ready: Callable[[], bool], what: str) -> None:
        def alive_and_ready() -> bool:
            assert daemon.alive, f"{daemon.describe()}"
            return ready()

        try:
            eventually(alive_and_ready, interval=0.1, message=what)
        except AssertionError as error:
            daemons = (self.munge, self.controller, *self.nodes.values())
            raise AssertionError("\n".join([str(error), *(each.describe() for each in daemons)])) from None

    def _daemon(self, name: str, *arguments: str, log: str | None = None) -> Process:
        return Process(
            [system_program(name) or name, *arguments],
            log=self.directory / f"{log or name}.log",
            netns=self.network.name,
            env=self.environment(),
        )

    def _munge_files(self) -> list[str]:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "munge-log", "seed-file": "seed"}
        return [f"--{option}={self.directory / f'munge.{end}'}" for option, end in files.items()]

    def _configuration(self) -> str:
        nodes = "".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs=2\n" for name in NODES
        )
        return f"""\
ClusterName=ground
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={self.directory}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={self.directory}/state
SlurmdSpoolDir={self.directory}/spool-%n
SlurmctldPidFile={self.directory}/slurmctld.pid
SlurmdPidFile={self.directory}/slurmd-%n.pid
# No cgroups: they would be the machine's, and a container may have none.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# The nodes have the CPUs that are written here, not the machine's.
SlurmdParameters=config_overrides
# Jobs start when they can, not at the next round of the scheduler.
SchedulerParameters=bf_interval=1,sched_interval=1
KillWait={KILL_WAIT}
ReturnToService=2
MailProg=/bin/true
# Jobs of the partition `urgent` take the nodes of others, which are put back into the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}PartitionName=batch Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1
PartitionName=urgent Nodes={",".join(NODES)} MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=2 PreemptMode=OFF
"""
