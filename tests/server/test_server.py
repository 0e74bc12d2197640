"""A server without Kubernetes: allocations of a real Slurm work on its studies, commands reach it, and a restart loses nothing.

Upstream's own example is that of its wheel, as `tests.compat` installs it.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.compat import running
from tests.ground import Slurm, eventually
from tests.server.commands import Home

ROOT = Path(__file__).resolve().parents[2]
WAITS = """\
description: {name: waits, description: says hello in two languages}
global.parameters: {WORD: {values: [hello, salut], label: WORD.%%}}
study:
- {name: greet, description: d, run: {cmd: echo $(WORD) > said}}
- {name: collect, description: d, run: {cmd: cat $(greet.workspace)/*/said > all, depends: [greet_*]}}
"""
SAMPLED = """\
description: {name: sampled, description: a step with samples}
study:
- {name: sim, description: d, run: {cmd: 'echo $(X) > x; sleep 0.3'}}
- {name: count, description: d, run: {cmd: cat $(sim.workspace)/$(MERLIN_GLOB_PATH)/x | wc -l > n, depends: [sim_*]}}
merlin:
  samples: {generate: {cmd: seq 40 > $(MERLIN_INFO)/s.csv}, file: $(MERLIN_INFO)/s.csv, column_labels: [X]}
"""


class Site(Home):
    """A user's home, a workspace, and commands in the Slurm's network."""

    def __init__(self, slurm: Slurm, root: Path) -> None:
        super().__init__(slurm.network, root)
        self.slurm = slurm

    def allocate(self, agent: str) -> str:
        script = (
            f"exec {agent} --credentials {self.directory}/site.yaml --slots 2 --workspace {self.root}/ws --site here "
            "--drain-grace 1"
        )
        path = f"{running.environment() / 'bin'}:{os.environ['PATH']}"  # what upstream's example imports
        return self.slurm.sbatch(script, cpus_per_task=2, env={"PATH": path})


@pytest.fixture(scope="module")
def site(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(slurm, tmp_path_factory.mktemp("server"))
    made.merlin("server", "start", "--address", "127.0.0.1", "--state", str(made.root / "state"))
    try:
        yield made
    finally:
        made.merlin("server", "stop")


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent as one file, built from the locked packages."""
    made = tmp_path_factory.mktemp("file") / "merlin-agent.pyz"
    subprocess.run([sys.executable, str(ROOT / "tools" / "onefile"), str(made)], check=True, timeout=300)
    return made


def test_the_one_file_runs_in_a_bare_environment_and_refuses_a_place_that_is_open(
    one_file: Path, tmp_path: Path
) -> None:
    python = str(Path(sys.executable).resolve())

    def version(cache: Path) -> subprocess.CompletedProcess[str]:
        bare = ["env", "-i", f"MERLIN_CACHE={cache}", python, str(one_file), "--version"]
        return subprocess.run(bare, cwd="/", capture_output=True, text=True, check=False, timeout=180)

    (tmp_path / "fresh").mkdir()
    many = [version(tmp_path / "fresh") for _ in range(2)]
    assert [each.stdout for each in many] == ["merlin-agent 0.1.0\n"] * 2, many[0].stderr
    (own,) = (tmp_path / "fresh").iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert len(list(own.iterdir())) == 1, "unpacked once, and nothing half is left"
    own.chmod(0o777)
    elsewhere = version(tmp_path / "fresh")
    assert elsewhere.stdout == "merlin-agent 0.1.0\n", "another place is taken"


@pytest.mark.slurm
def test_two_allocations_run_studies_of_a_server_that_is_restarted_under_them(site: Site, one_file: Path) -> None:
    shutil.copytree(running.environment() / "examples" / "workflows" / "hello", site.root / "hello")
    (site.root / "sampled.yaml").write_text(SAMPLED)
    agent = f"{Path(sys.executable).resolve()} {one_file}"
    jobs = [site.allocate(agent), site.allocate(agent)]
    eventually(lambda: site.merlin("query-workers").count("here") >= 2, interval=0.5, message="both agents are there")
    said = site.merlin("run", "hello/hello.yaml") + site.merlin("run", "hello/hello_samples.yaml")
    hello, with_samples = re.findall(r"merlin status (\S+)", said)
    for study, tasks in ((hello, 3), (with_samples, 8)):
        eventually(partial(has_succeeded, site, study), interval=0.5)
        assert f"all {tasks} tasks succeeded" in site.merlin("status", study)
    assert outputs(site, "hello_[0-9]*/step_1/*/step_1_*.out") == ["hello, world!", "hola, mundo!"]
    greeted = [line.partition(", ")[0] for line in outputs(site, "hello_samples_*/step_1/*/*/step_1_*.out")]
    assert greeted == ["hello"] * 3 + ["hola"] * 3
    assert outputs(site, "hello_*/step_2/step_2.out") == ["Hurrah, we did it!"] * 2
    site.merlin("run", "sampled.yaml")
    eventually(lambda: any((site.root / "ws").glob("sampled_*/sim/*/*/x")), message="the samples run")
    site.merlin("server", "stop")
    assert "does not answer" in site.merlin("server", "status", code=4)
    site.merlin("server", "start")
    eventually(lambda: site.phase(hello) == "Succeeded", message="the log is read again")
    eventually(lambda: site.phase("sampled-") == "Succeeded", interval=0.5)
    (count,) = (site.root / "ws").glob("sampled_*/count/n")
    assert count.read_text().strip() == "40"
    agents = {log.name for log in (site.root / "ws").glob("*/merlin_info/outcomes/*")}
    assert len(agents) == 2, "both allocations had a part in it"
    site.merlin("queues", "set", "nothing")
    eventually(
        lambda: site.merlin("query-workers", "--queues", "nothing").count("nothing") == 2, timeout=180, interval=0.5
    )
    assert "Told 2 agents to leave" in site.merlin("stop-workers")
    for job in jobs:
        assert site.slurm.wait(job) == "COMPLETED"


def has_succeeded(site: Site, study: str) -> bool:
    return site.phase(study) == "Succeeded"


def outputs(site: Site, pattern: str) -> list[str]:
    """The lines of all files of that pattern in the workspace, sorted."""
    return sorted(line for path in (site.root / "ws").glob(pattern) for line in path.read_text().splitlines())


def test_everything_secret_is_for_its_owner_alone(site: Site) -> None:
    assert stat.S_IMODE(site.directory.stat().st_mode) == 0o700
    for path in site.directory.rglob("*"):
        if path.is_file() and path.suffix != ".log":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_study_is_cancelled_and_its_name_is_not_taken_twice(site: Site) -> None:
    (site.root / "waits.yaml").write_text(WAITS)
    site.merlin("run", "waits.yaml", "--name", "waits")
    site.merlin("run", "waits.yaml", "--name", "waits", code=4)
    site.merlin("cancel", "waits")
    eventually(lambda: site.phase("waits") == "Cancelled", interval=0.5)


def test_a_study_is_suspended_and_goes_on_at_a_word(site: Site) -> None:
    site.merlin("run", "waits.yaml", "--name", "rests")
    site.merlin("suspend", "rests")
    eventually(lambda: site.phase("rests") == "Suspended", interval=0.5)
    site.merlin("resume", "rests")
    eventually(lambda: site.phase("rests") != "Suspended", interval=0.5)


def test_a_server_that_was_stopped_goes_on_on_another_machine_from_a_copy_of_its_state(site: Site) -> None:
    before = site.merlin("server", "status")
    assert "use that one, or run there" in site.merlin("server", "start", code=4, host="another")
    site.merlin("server", "stop")
    shutil.copytree(site.root / "state", site.root / "copy")
    flags = ("--address", "127.0.0.1", "--state", str(site.root / "copy"))
    assert "that was copied" not in site.merlin("server", "start", *flags, host="another")
    studies = [line.split()[:2] for line in before.splitlines() if "waits" in line]
    assert studies == [["waits", "Cancelled"]]
    eventually(lambda: site.phase("waits") == "Cancelled", message="the log is read from the copy")
    assert "the server runs on another; run there" in site.merlin("server", "stop", code=4)
    site.merlin("server", "stop", host="another")
    said = site.merlin("server", "start", "--address", "127.0.0.1", "--state", str(site.root / "state"))
    assert "that was copied" in said, "its own store is older by now"
    assert (site.root / "state" / "broker.old").is_dir()
    eventually(lambda: site.phase("waits") == "Cancelled", message="the log is read from the snapshot")


def test_a_context_says_which_server_counts(site: Site) -> None:
    assert "* server" in site.merlin("context", "list")
    site.merlin("context", "use", "cluster")
    assert "found no cluster" in site.merlin("run", "waits.yaml", code=4)
    site.environ["MERLIN_CONTEXT"] = "server"
    assert "* server" in site.merlin("context", "list")
    del site.environ["MERLIN_CONTEXT"]
    site.merlin("context", "use", "server")
    assert "there is none of this name" in site.merlin("context", "use", "nobody", code=2)


def test_a_directory_that_is_open_to_others_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    said = site.merlin("server", "start", "--directory", str(tmp_path / "open"), code=4)
    assert "expected a directory of yours with mode 0700" in said
