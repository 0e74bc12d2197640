"""Schedulers' commands on PATH that know their own flags and no others: an unknown one, or one without its value, ends with 64.

What they take stands in `FLAGS`, from the manuals of flux-core 0.60 (and 0.12, 0.47), LSF 10.1 with jsrun 10.4, OpenPBS 23, MPICH 4, PALS 1.2, Open MPI 4.1, ALPS 5.2 and
Slurm 22.05. They do what
the real ones do as far as a test can see: the command that is handed over runs once for each place that it would run on,
in the environment that it would find there. Each call is noted in ``calls``, one JSON list of words a line.
"""

import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

FLAGS: Mapping[str, Mapping[str, int]] = {
    # name of the command (and sub-command): flag -> values that follow; a flag that ends in = carries its value
    "flux alloc": {"-o": 1, "-N": 1, "-n": 1, "-t": 1, "-q": 1, "-B": 1, "--exclusive": 0, "--job-name=": 0, "--setattr=": 0},
    "flux mini alloc": {"-o": 1, "-N": 1, "-n": 1, "-t": 1, "--exclusive": 0, "--job-name=": 0, "--setattr=": 0},
    "flux batch": {
        "-N": 1, "-n": 1, "-g": 1, "-t": 1, "-q": 1, "-B": 1, "--exclusive": 0, "--job-name=": 0, "--output=": 0,
        "--signal=": 0,
    },
    "flux exec": {"-r": 1, "--rank=": 0, "-x": 1, "-d": 1, "--dir": 1, "-l": 0, "-n": 0, "--noinput": 0},
    "blaunch": {"-n": 0, "-u": 1, "-z": 1, "-no-shell": 0, "-use-login-shell": 0},
    "flux start": {"-o": 1, "-s": 1, "--wrap=": 0, "-v": 0},
    "flux run": {"-n": 1, "-N": 1, "-t": 1, "-g": 1, "-c": 1, "-o": 1, "--requires=": 0},
    "flux mini run": {"-n": 1, "-N": 1, "-t": 1, "-g": 1, "-c": 1, "-o": 1},
    "flux wreckrun": {"-n": 1, "-N": 1, "-T": 1, "-g": 1, "-c": 1, "-o": 1},
    "flux version": {},
    "flux resource": {"-s": 1, "-n": 0, "-o": 1},
    "flux getattr": {},
    "flux job": {},
    "jsrun": {
        "-a": 1, "-c": 1, "-g": 1, "-n": 1, "-r": 1, "-d": 1, "-b": 1, "-X": 1, "--bind=": 0, "--np": 1, "--nrs": 1,
        "--smpiargs=": 0, "--help": 0, "--version": 0,
    },
    "bsub": {"-nnodes": 1, "-W": 1, "-G": 1, "-q": 1, "-J": 1, "-o": 1, "-e": 1, "-wa": 1, "-wt": 1, "-alloc_flags": 1, "-P": 1, "-n": 1, "-R": 1},
    "bjobs": {"-noheader": 0, "-o": 1},
    "qsub": {"-l": 1, "-A": 1, "-q": 1, "-N": 1, "-o": 1, "-j": 1, "-k": 1, "-S": 1, "--version": 0},
    "qstat": {"-f": 0, "-F": 1},
    "mpiexec": {"-n": 1, "-ppn": 1, "-hosts": 1, "-bind-to": 1, "--version": 0},
    "mpiexec PALS": {"-n": 1, "--ppn": 1, "--hosts": 1, "--depth=": 0, "--cpu-bind=": 0, "--version": 0},
    "mpiexec Open MPI": {"-n": 1, "--host": 1, "--map-by": 1, "--bind-to": 1, "--version": 0},
    "aprun": {"-n": 1, "-N": 1, "-d": 1, "-L": 1, "-cc": 1, "-V": 0},
    "srun": {
        "-n": 1, "-N": 1, "-w": 1, "-t": 1, "-c": 1, "-A": 1, "-p": 1, "--gpus=": 0, "--gpus-per-task=": 0, "--overlap": 0,
        "--mpibind=": 0, "--cpu-bind=": 0, "--version": 0, "--wait=": 0, "--kill-on-bad-exit=": 0, "--no-kill": 0, "--input=": 0,
        "--nodes=": 0, "--ntasks=": 0, "--ntasks-per-node=": 0, "--nodelist=": 0,
    },
}  # fmt: skip
DIRECTIVES = {"bsub": "#BSUB ", "qsub": "#PBS ", "flux batch": "#flux: "}
"""How a script that is submitted says further flags."""

_PROGRAM = '''\
#!{python} -IS
import json, os, subprocess, sys
FLAGS, DIRECTIVES, HERE, NODES = {flags!r}, {directives!r}, {here!r}, {nodes}
name, words = {name!r}, sys.argv[1:]
with open(HERE + "/calls", "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")


def refuse(why):
    print(name + ": " + why, file=sys.stderr)
    sys.exit(64)


if name == "flux":
    for size in (2, 1):
        if " ".join([name, *words[:size]]) in FLAGS:
            name, words = " ".join([name, *words[:size]]), words[size:]
            break
    else:
        refuse("no such command: " + " ".join(words[:1]))


def taken(words):
    """The flags' values by name, and the words behind them."""
    known, values, at = FLAGS[name], {{}}, 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if equals and flag + "=" in known:
            values[flag] = value
        elif word in known:
            if at + known[word] > len(words):
                refuse("option " + word + " wants a value")
            values[word] = words[at] if known[word] else ""
            at += known[word]
        else:
            refuse("unknown option " + word)
    return values, words[at:]


def run(command, times, **more):
    if not command:
        refuse("no command to run")
    for key in os.environ.get("DROPPED", "").split():
        os.environ.pop(key, None)
    started = [subprocess.Popen(command, env={{**os.environ, **more}}) for _ in range(times)]
    sys.exit(max(abs(each.wait()) for each in started))


def script(text, **more):
    """Submit a script: its directives are flags, too; it runs at once."""
    for line in text.splitlines():
        if line.startswith(DIRECTIVES[name]):
            import shlex
            _, rest = taken(shlex.split(line[len(DIRECTIVES[name]):]))
            if rest:
                refuse("what is " + rest[0])
    done = subprocess.run(["/bin/bash"], input=text, text=True, env={{**os.environ, **more}})
    sys.exit(done.returncode)


if name == "mpiexec" and os.environ.get("FAKE_MPI"):
    name += " " + os.environ["FAKE_MPI"]
VERSIONS = {{
    "qsub": "pbs_version = 23.06.06", "mpiexec": "HYDRA build details:\\n    Version:   4.0.2", "mpiexec PALS": "PALS 1.2.12",
    "mpiexec Open MPI": "mpiexec (OpenRTE) 4.1.5", "aprun": "aprun 5.2", "srun": "slurm-wlm 22.05.8",
    "jsrun": "jsrun version 10.03.0.1",
}}
values, rest = taken(words)
if "--version" in values or "--help" in values or name == "flux version":
    print(VERSIONS.get(name, "commands: " + os.environ.get("FAKE_FLUX", "0.60.0")))
elif "-V" in values:
    print(VERSIONS[name])
elif name in ("flux alloc", "flux mini alloc"):
    run(rest, 1, FLUX_URI="local:///tmp/nested")
elif name == "flux start":
    run(rest, 1, FLUX_URI="local:///tmp/inner")
elif name == "flux exec":
    ranks = values.get("-r") or values.get("--rank", "all")
    low, dash, high = ranks.partition("-")
    run(rest, NODES if ranks == "all" else int(high or low) - int(low) + 1)
elif name == "flux resource":
    print("{nodes}|" + str(2 * NODES) + "|0|n[1-" + str(NODES) + "]")
elif name == "flux getattr":
    print(NODES)
elif name == "flux job":
    print("600.0")
elif name == "jsrun":
    run(rest, int(values.get("--np") or values.get("-n") or values.get("--nrs") or 1))
elif name in ("flux run", "flux mini run", "flux wreckrun", "srun", "aprun") or name.startswith("mpiexec"):
    run(rest, int(values.get("-n") or values.get("--ntasks") or 1))
elif name == "bjobs":
    print("0:10 L")
elif name == "qstat" and values.get("-F") == "json":
    print(json.dumps({{"Jobs": {{rest[0]: {{"Resource_List": {{"walltime": "00:10:00"}}}}}}}}))
elif name == "blaunch":
    run(rest, len(values["-z"].split()))
elif name == "qsub" and rest:
    run(rest, 1, PBS_JOBID="7.server")
elif name in ("bsub", "qsub"):
    script(sys.stdin.read(), **({{"LSB_JOBID": "7"}} if name == "bsub" else {{"PBS_JOBID": "7.server"}}))
elif name == "flux batch":
    script(open(rest[0]).read(), FLUX_URI="local:///tmp/job")
'''


class Fakes:
    """A directory to be put first on PATH; only the commands that are named are in it."""

    def __init__(self, directory: Path, *names: str, nodes: int = 2) -> None:
        """Write the commands of a machine whose allocation has so many nodes."""
        self.directory = directory
        directory.mkdir()
        for name in names:
            path = directory / name
            text = _PROGRAM.format(
                python=sys.executable,
                flags={key: dict(value) for key, value in FLAGS.items()},
                directives=DIRECTIVES,
                here=str(directory),
                nodes=nodes,
                name=name,
            )
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the commands on PATH, and in no batch job."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "FLUX", "LSB", "PBS"))}
        return {**kept, "PATH": f"{self.directory}:{kept.get('PATH', '/usr/bin:/bin')}"}

    def calls(self, name: str) -> list[list[str]]:
        """The words of each call of a command, in their order."""
        file = self.directory / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == name]
