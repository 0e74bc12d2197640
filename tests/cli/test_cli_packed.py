"""``outputs: packed`` comes to what ``full`` does: outcomes, logs, files; and no task is lost or doubled when its agent dies."""

import re
import zipfile
from pathlib import Path

from merlin_cli import remote
from tests.cli.test_cli_lean import WALK, counted, files, killed, merlin
from tests.cli.test_cli_local import Merlin, outputs, place, spec

__all__ = ["place"]

MIXED = """\
description: {{name: mixed, description: every way to end}}
outputs: {layout}
global.parameters: {{P: {{values: [x, y], label: P.%%}}}}
study:
  - name: sim
    description: prints, writes files now and then, and ends in its own way
    run:
      cmd: |
        echo "hello $(N)"
        echo "care $(N)" >&2
        [ $(N) -gt 3 ] || {{ mkdir -p deep/empty; echo "$(N)" > deep/file; ln -s deep/file link; chmod 700 deep/file; }}
        [ $(N) -ne 3 ] || chmod 0 deep/file
        [ $(N) -ne 4 ] || echo "here" > "$(WORKSPACE)/$(MERLIN_SAMPLE_PATH)/there"
        [ $(N) -ne 5 ] || sleep 30
        [ $(N) -ne 6 ] || exit $(MERLIN_SOFT_FAIL)
        [ $(N) -ne 7 ] || kill -9 $$
      walltime: 2
  - name: again
    description: succeeds when it is restarted, from what it left
    run:
      cmd: 'echo "first $(N) $(P)" > state; touch gone; echo one; exit $(MERLIN_RESTART)'
      restart: 'cat state again_P.$(P).out; rm gone; echo two'
      max_retries: 2
      retry_delay: 0
  - name: retried
    description: succeeds the second time
    run:
      cmd: "[ -e there ] || {{ touch there; echo $(N); exit $(MERLIN_RETRY); }}; echo done"
      max_retries: 2
      retry_delay: 0
  - name: last
    description: looks at nothing of theirs, and has no samples
    run: {{depends: [retried_*], cmd: 'echo last > last.txt'}}
merlin:
  samples:
    generate: {{cmd: 'seq 1 8 > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""
PACKED = WALK.format(layout="packed", into=" > own")

OWN_DISK = re.compile(r"/[^\n]*/merlin-own-\w+/[-0-9a-f]+")
"""Where a task ran, as its script has it."""


def archives(directory: Path) -> list[Path]:
    return sorted((directory / "merlin_info" / "tasks").rglob("*.zip"))


def test_packed_comes_to_the_same_outcomes_and_extracts_to_the_same_files_as_full(place: Path) -> None:
    found = {}
    scratch = place / "scratch"
    scratch.mkdir()
    for layout in ("full", "packed"):
        here = place / layout
        here.mkdir()
        text = MIXED.format(layout=layout)
        run = Merlin(here, "run", spec(here, text), "--local", "--slots", "2", environ={"TMPDIR": str(scratch)})
        code, lines, said = run.ended()
        directory = outputs(lines)
        assert code == 3, (lines, said)
        shown = merlin("logs", str(directory), "--failed", "--steps", "sim")
        heads = sorted(re.findall(r"==> sim, task (\d+)", shown.stdout))
        status = counted(merlin("status", str(directory)).stdout.splitlines())
        if layout == "packed":
            assert sorted(path.name for path in directory.iterdir()) == ["last", "merlin_info"], "nothing but archives"
            assert archives(directory)
            assert all(zipfile.ZipFile(path).testzip() is None for path in archives(directory))
            assert not [path for path in scratch.rglob("*") if path.is_file()], "the agent's own disk is empty again"
            assert merlin("extract", str(directory)).returncode == 0
            assert merlin("extract", str(directory)).returncode == 0, "it may be called again"
        links = sorted(str(path.relative_to(directory)) for path in directory.rglob("link") if path.is_symlink())
        modes = [(directory / "sim" / task / "deep/file").stat().st_mode for task in ("00", "02")]
        empty = (directory / "sim/00/deep/empty").is_dir()
        (directory / "sim/02/deep/file").chmod(0o600)
        texts = {name: OWN_DISK.sub("DIR", text) for name, text in files(directory).items()}
        found[layout] = (counted(lines), status, heads, links, modes, empty, texts)
    for packed, full in zip(found["packed"], found["full"], strict=True):
        assert packed == full


def test_an_agent_that_is_killed_in_mid_chunk_loses_what_it_had_not_told_and_nothing_else(place: Path) -> None:
    runs = "walk_*/runs"
    directory = killed(place, PACKED, lambda: [path for path in place.glob(runs) if len(path.read_text().split()) > 30])
    assert merlin("extract", str(directory)).returncode == 0
    assert sorted(int(path.read_text()) for path in directory.glob("step/**/own")) == list(range(1, 81))
    ran = (directory / "runs").read_text().split()
    assert {ran.count(str(n)) for n in range(1, 81)} <= {1, 2}


def test_a_restart_runs_what_did_not_succeed_and_unzip_alone_finds_the_files(place: Path) -> None:
    text = PACKED.replace("sleep 0.05", '[ $(N) -ne 5 ] || [ -e "$(MERLIN_WORKSPACE)/good" ]')
    code, lines, _ = Merlin(place, "run", spec(place, text), "--local").ended()
    directory = outputs(lines)
    assert code == 3
    (directory / "good").touch()
    code, lines, said = Merlin(place, "restart", str(directory), "--local", "--scan").ended()
    assert code == 0, (lines, said)
    ran = (directory / "runs").read_text().split()
    assert (len(ran), ran.count("5")) == (81, 2)
    for path in archives(directory):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(directory)
    assert sorted(int(path.read_text()) for path in directory.glob("step/**/own")) == list(range(1, 81))
    assert list((directory / "merlin_info").glob("tasks/step/*/*.log")), "what lean would have left"


READ = """\
description: {name: chain, description: two steps with samples and one that reads what the first left}
outputs: packed
study:
  - {name: sim, description: leaves a file, run: {cmd: 'echo "$(N)" > own'}}
  - name: after
    description: reads its own sample's file, and is packed
    run: {depends: [sim], cmd: 'cp "$(sim.workspace)/$(MERLIN_SAMPLE_PATH)/own" copy; cat copy'}
  - name: sum
    description: reads the files of all
    run: {depends: [sim_*], cmd: 'cat "$(sim.workspace)"/$(MERLIN_GLOB_PATH)own | sort -n > all'}
merlin:
  samples:
    generate: {cmd: 'seq 1 12 > "$(MERLIN_INFO)/n.csv"'}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""


def test_a_step_that_a_later_one_reads_is_not_packed_and_the_user_is_told_once(place: Path) -> None:
    run = Merlin(place, "run", spec(place, READ), "--local", "--slots", "2")
    code, lines, said = run.ended()
    assert code == 0, (lines, said)
    directory = outputs(lines)
    assert (directory / "sum/all").read_text().split() == [str(n) for n in range(1, 13)]
    told = "step 'after': names $(sim.workspace), so under outputs: packed the tasks of step 'sim' are not packed"
    assert said.count(told) == 1
    assert {path.parts[-3] for path in archives(directory)} == {"after"}
    assert merlin("extract", str(directory), "--steps", "after").returncode == 0
    assert sorted(int(path.read_text()) for path in directory.glob("after/**/copy")) == list(range(1, 13))
    (directory / "merlin_info/outcome.json").unlink()
    assert told in " ".join(merlin("status", str(directory)).stdout.split()), "as long as it runs"


def test_the_status_of_a_study_in_a_cluster_tells_what_its_author_should_know() -> None:
    """The message of the condition Accepted, which is empty where there is nothing to say."""
    conditions = [{"type": "Accepted", "status": "True", "reason": "Compiled", "message": "one\ntwo"}]
    assert remote.remarks({"status": {"conditions": conditions}}) == ["one", "two"]
    assert remote.remarks({"status": {"conditions": [{**conditions[0], "message": ""}]}}) == []
