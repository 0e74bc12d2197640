"""`merlin run --local` and `merlin restart --local` with everything real: broker, engine, agent, shells."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.ground.needs import ROOT
from tests.ground.waiting import eventually

TASKS = 60
SPEC = f"""\
description: {{name: walk, description: a study that takes a few seconds}}
study:
  - name: step
    description: leaves a line for each time it runs
    run:
      cmd: |
        echo "$(N)" >> runs.txt
        sleep 0.1
  - name: sum
    description: waits for all
    run:
      depends: [step_*]
      cmd: cat "$(step.workspace)"/$(MERLIN_GLOB_PATH)runs.txt | wc -l > lines.txt
merlin:
  samples:
    generate: {{cmd: 'seq 1 {TASKS} > "$(MERLIN_INFO)/n.csv"'}}
    file: $(MERLIN_INFO)/n.csv
    column_labels: [N]
"""
ENDLESS = """\
description: {name: endless, description: a task that does not listen}
study:
  - name: deaf
    description: ignores what it is told
    run: {cmd: "trap '' INT TERM; touch up; while :; do sleep 1; done"}
"""
PARTS = {"broker": "nats-server", "engine": "merlin_operator.local", "agent": "merlin_agent"}


class Merlin:
    """One command, running in a directory of its own; what a test leaves running, the fixture `place` kills."""

    started: ClassVar[list["Merlin"]] = []

    def __init__(self, directory: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "merlin_cli", *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
            process_group=0,
        )
        self.started.append(self)

    def ended(self, timeout: float = 180) -> tuple[int, list[str], str]:
        """Exit code, lines of standard output, standard error."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out.splitlines(), err

    def children(self) -> dict[str, int]:
        """The pid of each part that runs."""
        pid = self.process.pid
        found = {}
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            except FileNotFoundError:
                continue
            for name, word in PARTS.items():
                if any(each == word or each.endswith(f"/{word}") for each in words) and "guard.py" not in str(words):
                    found[name] = child
        return found

    def kill(self, part: str) -> None:
        """SIGKILL to one part, once it is there."""
        pid = eventually(lambda: self.children().get(part), message=f"the {part} is there")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to run in; whatever ran in it is gone afterwards, with its private files."""
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setenv("TMPDIR", str(private))
    here = tmp_path / "here with space"
    here.mkdir()
    yield here
    while Merlin.started:
        with Merlin.started.pop().process as process:  # closes its pipes and waits
            process.kill()
    eventually(lambda: not running_below(tmp_path), message=f"no process is left below {tmp_path}")
    eventually(lambda: not list(private.glob("merlin-*")), message="no private directory is left")


def running_below(directory: Path) -> list[str]:
    """The command lines of processes whose arguments or working directory lie in a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cwd = str((entry / "cwd").readlink())
        except OSError:
            continue
        if int(entry.name) != os.getpid() and (str(directory) in line or cwd.startswith(str(directory))):
            found.append(f"{entry.name} {line} in {cwd}")
    return found


def spec(place: Path, text: str = SPEC) -> str:
    (place / "spec.yaml").write_text(text)
    return "spec.yaml"


def slowly(place: Path) -> str:
    """`SPEC` with tasks that take a second until there is a file ``hurry``: so long is work left, however slow the machine is."""
    waits = f'for tenth in 1 2 3 4 5 6 7 8 9 10; do [ -e "{place}/hurry" ] || sleep 0.1; done'
    return spec(place, SPEC.replace("sleep 0.1", waits))


def finished(place: Path) -> list[Path]:
    """The sampled tasks that have succeeded."""
    return sorted(mark.parent for mark in place.glob("walk_*/step/**/MERLIN_FINISHED"))


def runs(place: Path) -> dict[Path, int]:
    """How often each sampled task ran."""
    return {file.parent: len(file.read_text().splitlines()) for file in place.glob("walk_*/step/**/runs.txt")}


def outputs(lines: list[str]) -> Path:
    assert lines[-1].startswith("Outputs: /"), lines
    return Path(lines[-1].removeprefix("Outputs: "))


def test_hello_runs_and_its_last_line_names_the_outputs(place: Path) -> None:
    code, lines, err = Merlin(place, "run", str(ROOT / "docs/examples/hello.yaml"), "--local").ended()
    assert (code, err) == (0, "")
    directory = outputs(lines)
    assert directory.parent == place
    assert re.fullmatch(r"hello_\d{8}-\d{6}", directory.name)
    assert (directory / "collect/greetings.txt").read_text() == "Greetings to Mercury\nGreetings to Venus\n"
    assert any(re.fullmatch(r"Finished in .*: all 3 tasks succeeded\.", line) for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_where_the_output_is_no_terminal_plain_lines_tell_the_progress(place: Path) -> None:
    code, lines, _ = Merlin(place, "run", spec(place), "--local", "--slots", "2").ended()
    assert code == 0
    told = [line for line in lines if re.match(r"[\d,]+ of [\d,]+( or more)? tasks? done", line)]
    assert len(told) >= 2
    assert told[-1].startswith(f"{TASKS + 2} of {TASKS + 2} tasks done (100 %)")


def test_on_a_terminal_there_are_bars(place: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "merlin_cli", "run", str(ROOT / "docs/examples/hello.yaml"), "--local"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, cwd=place, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other end is closed: how Linux tells the end of a terminal
                break
        assert process.wait(180) == 0
    os.close(ours)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert "━━━" in shown
    assert re.search(r"greet +━+ +2/2 done", shown)
    assert b"\x1b[32m" in said


def test_failed_tasks_are_told_with_their_tail_and_the_exit_code_is_3(place: Path) -> None:
    text = SPEC.replace("sleep 0.1", 'if [ "$(N)" = 7 ]; then echo "no licence" >&2; exit 42; fi')
    code, lines, _ = Merlin(place, "run", spec(place, text), "--local").ended()
    assert code == 3
    directory = outputs(lines)
    assert f"1 of {TASKS + 2} tasks did not succeed." in "\n".join(lines)
    at = lines.index("step, task 6: soft-failed, exit code 42")
    assert lines[at + 1 : at + 3] == [f"  in {directory}/step/00/06", "  | no licence"]
    assert (directory / "sum/lines.txt").read_text().split() == [str(TASKS)]


def test_variables_slots_and_the_place_of_the_outputs_are_the_command_lines(place: Path) -> None:
    text = SPEC.replace("study:", "env: {variables: {WORD: unset, OUTPUT_PATH: ./ignored}}\nstudy:", 1)
    text = text.replace("sleep 0.1", "echo $(WORD) > word.txt")
    code, lines, _ = Merlin(
        place, "run", spec(place, text), "--local", "--vars", "WORD=set", "--slots", "1", "-o", "some/where"
    ).ended()
    assert code == 0
    assert outputs(lines).parent == place / "some/where"
    assert (outputs(lines) / "step/00/00/word.txt").read_text() == "set\n"


def test_outputs_that_can_not_be_written_are_told_before_anything_starts(place: Path) -> None:
    (place / "file").touch()
    code, lines, err = Merlin(place, "run", spec(place), "--local", "-o", "file/below").ended()
    assert (code, lines) == (4, [])
    assert f"{place}/file is no directory" in err


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_killed_is_started_again_and_no_task_is_lost(place: Path, part: str) -> None:
    merlin = Merlin(place, "run", slowly(place), "--local", "--slots", "2")
    eventually(lambda: len(finished(place)) >= 5)
    merlin.kill(part)
    (place / "hurry").touch()
    code, lines, err = merlin.ended()
    assert (code, err) == (0, ""), lines
    assert f"The {part} died (SIGKILL); starting it again." in lines
    assert len(finished(place)) == TASKS
    again = [directory for directory, times in runs(place).items() if times > 1]
    assert len(again) <= (2 if part == "agent" else 0)  # what ran when its agent died
    assert not any("bug" in line for line in lines)


def test_all_parts_may_die_in_one_run(place: Path) -> None:
    merlin = Merlin(place, "run", slowly(place), "--local", "--slots", "2")
    for number, part in enumerate(PARTS):
        eventually(lambda number=number: len(finished(place)) >= 5 + 5 * number)  # type: ignore[misc]
        merlin.kill(part)
    (place / "hurry").touch()
    code, lines, _ = merlin.ended()
    assert code == 0, lines
    assert (outputs(lines) / "sum/lines.txt").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_goes_on_from_its_workspace_and_repeats_no_success(
    place: Path, number: signal.Signals, expected: int
) -> None:
    merlin = Merlin(place, "run", slowly(place), "--local", "--slots", "2")
    eventually(lambda: len(finished(place)) >= 5)
    os.killpg(merlin.process.pid, number)  # as a terminal does: to the whole group of the command
    code, lines, _ = merlin.ended()
    assert code == expected, lines
    directory = outputs(lines)
    assert f"go on with: merlin restart '{directory}' --local" in lines[-2]
    before = finished(place)
    assert 5 <= len(before) < TASKS
    code, said, _ = Merlin(place, "status", str(directory)).ended()
    assert code == 0
    assert f"not finished; {len(before) + 1} of {TASKS + 2} tasks done" in said[0]
    (place / "hurry").touch()
    code, lines, _ = Merlin(place, "restart", str(directory), "--local", "--slots", "2").ended()
    assert code == 0, lines
    assert outputs(lines) == directory
    assert len(finished(place)) == TASKS
    assert {runs(place)[done] for done in before} == {1}
    code, said, _ = Merlin(place, "status", str(directory)).ended()
    assert (code, said[0]) == (0, f"{directory.name}: finished; all {TASKS + 2} tasks succeeded")


def test_what_failed_runs_again_after_a_restart_also_in_a_moved_workspace(place: Path) -> None:
    cure = place / "cured"
    text = SPEC.replace("sleep 0.1", f'[ "$(N)" != 7 ] || [ -e "{cure}" ] || exit 1')
    code, lines, _ = Merlin(place, "run", spec(place, text), "--local").ended()
    assert code == 3
    cure.touch()
    moved = place / "archive" / "renamed"
    moved.parent.mkdir()
    shutil.move(outputs(lines), moved)
    code, lines, _ = Merlin(place, "restart", str(moved), "--local").ended()
    assert (code, outputs(lines)) == (0, moved), lines
    counts = {int(file.parent.name) + 25 * int(file.parent.parent.name): len(file.read_text().splitlines())
              for file in moved.glob("step/*/*/runs.txt")}  # fmt: skip
    assert counts == {task: 2 if task == 6 else 1 for task in range(TASKS)}
    code, said, _ = Merlin(place, "status", str(moved)).ended()
    assert "all 62 tasks succeeded" in said[0]


def test_a_study_that_runs_is_not_restarted_beside_it(place: Path) -> None:
    """Neither while its command lives, nor while what the killed command left is ending."""
    merlin = Merlin(place, "run", spec(place, ENDLESS), "--local")
    (up,) = eventually(lambda: list(place.glob("endless_*/deaf/up")))
    directory = up.parent.parent
    code, lines, err = Merlin(place, "restart", str(directory), "--local").ended()
    assert (code, lines) == (4, [])
    assert f"another merlin run works in {directory} (pid {merlin.process.pid})" in err
    (present,) = (directory / "merlin_info/agents").iterdir()
    merlin.process.kill()
    merlin.ended()
    eventually(lambda: not present.exists())  # the agent takes it along when it goes, and so does its reaper
    other = present.with_name("another")
    other.touch()
    code, lines, err = Merlin(place, "restart", str(directory), "--local").ended()
    assert (code, lines) == (4, [])
    assert f"an agent is still at work in {directory} ({other.name}" in err


def test_a_run_leaves_no_lock(place: Path) -> None:
    """What lies in merlin_info stays as upstream's and the agents' have it."""
    code, lines, _ = Merlin(place, "run", str(ROOT / "docs/examples/hello.yaml"), "--local").ended()
    assert code == 0
    assert not (outputs(lines) / "merlin_info/run.lock").exists()


def test_the_second_interrupt_kills_at_once(place: Path) -> None:
    merlin = Merlin(place, "run", spec(place, ENDLESS), "--local")
    eventually(lambda: list(place.glob("endless_*/deaf/up")))
    assert merlin.process.stdout is not None
    merlin.process.send_signal(signal.SIGINT)
    while not (line := merlin.process.stdout.readline()).startswith("Stopping"):
        assert line, "the command ended without a word"
    merlin.process.send_signal(signal.SIGINT)
    code, lines, _ = merlin.ended()
    assert code == 130
    assert "Killing everything at once." in lines


def test_nothing_outlives_a_command_that_was_killed(place: Path) -> None:
    merlin = Merlin(place, "run", spec(place), "--local")
    eventually(lambda: finished(place))
    parts = merlin.children()
    assert set(parts) == set(PARTS)
    merlin.process.kill()
    merlin.ended()  # the fixture waits until nothing is left


def test_a_reader_that_leaves_does_not_stop_the_study(place: Path) -> None:
    merlin = Merlin(place, "run", spec(place), "--local")
    assert merlin.process.stdout is not None
    merlin.process.stdout.close()
    assert merlin.process.stderr is not None
    said = merlin.process.stderr.read()
    assert (merlin.process.wait(180), said) == (0, "")
    merlin.process.stderr.close()
    assert len(finished(place)) == TASKS


def test_an_agent_that_was_set_up_for_a_site_does_not_disturb(place: Path) -> None:
    home = place / "home"
    (home / ".merlin").mkdir(parents=True)
    (home / ".merlin/agent.yaml").write_text("queues: other\nidle_exit: 1\n")
    environ = {"HOME": str(home), "MERLIN_AGENT_QUEUES": "elsewhere"}
    code, lines, _ = Merlin(place, "run", spec(place), "--local", environ=environ).ended()
    assert code == 0, lines


def test_a_samples_file_takes_the_place_of_generated_samples(place: Path) -> None:
    """Its copy lies in the workspace, so that the file itself may go; nothing is generated."""
    (place / "walk.yaml").write_text(SPEC)
    (place / "mine.csv").write_text("\ufeff7\r\n8\r\n9\r\n")
    code, out, err = Merlin(place, "run", "walk.yaml", "--local", "--samplesfile", "mine.csv").ended()
    assert code == 0, err
    outputs = Path(out[-1].removeprefix("Outputs: "))
    assert (outputs / "merlin_info" / "mine.csv").read_bytes() == (place / "mine.csv").read_bytes()
    assert not (outputs / "merlin_info" / "n.csv").exists()
    assert [(outputs / "step" / at / "runs.txt").read_text() for at in ("00", "01", "02")] == ["7\n", "8\n", "9\n"]


@pytest.mark.parametrize(
    ("file", "says"),
    [("none.csv", "there is no such file"), ("walk.yaml", "expected a file that ends in one of .csv, .tab, .npy")],
)
def test_a_samples_file_that_cannot_be_one_is_wrong_usage(place: Path, file: str, says: str) -> None:
    (place / "walk.yaml").write_text(SPEC)
    code, _, err = Merlin(place, "run", "walk.yaml", "--local", "--samplesfile", file).ended()
    assert (code, says in err) == (2, True)


STOPS = """\
description: {name: stops, description: a task that stops the agents once}
global.parameters: {N: {values: [1, 2, 3, 4, 5, 6], label: N.%%}}
study:
  - name: a
    description: stops the agents until a file is there
    run:
      cmd: |
        echo run >> runs.txt
        [ "$(N)" != 1 ] || [ -e "$(SPECROOT)/go" ] || exit $(MERLIN_STOP_WORKERS)
        sleep 0.3
"""
HARD = """\
description: {name: hard, description: one task gives its whole queue up}
global.parameters: {N: {values: [1, 2, 3, 4, 5, 6, 7, 8, 9], label: N.%%}}
study:
  - name: bad
    description: fails hard at once
    run: {cmd: 'touch ran; [ $(N) != 1 ] || exit $(MERLIN_HARD_FAIL); sleep 1', task_queue: one}
  - name: after
    description: waits for it
    run: {cmd: touch ran, depends: [bad_*], task_queue: two}
  - name: other
    description: has nothing to do with it
    run: {cmd: touch ran, task_queue: two}
"""


def test_a_task_that_stops_the_agents_ends_the_run_and_a_restart_goes_on(place: Path) -> None:
    """Nothing new starts after exit code 105; what it left, the task itself included, runs after a restart."""
    code, lines, _ = Merlin(place, "run", spec(place, STOPS), "--local", "--slots", "1").ended()
    assert code == 3
    assert any(line.startswith("Stopped with ") for line in lines)
    directory = outputs(lines)
    assert len(list(directory.glob("a/*/runs.txt"))) < 6
    (place / "go").touch()
    code, lines, _ = Merlin(place, "restart", str(directory), "--local", "--slots", "2").ended()
    assert code == 0
    ran = {path.parent.name: len(path.read_text().split()) for path in directory.glob("a/*/runs.txt")}
    assert ran == {"N.1": 2, **{f"N.{n}": 1 for n in range(2, 7)}}


def test_a_hard_failure_gives_up_its_queue_and_other_queues_go_on(place: Path) -> None:
    code, lines, _ = Merlin(place, "run", spec(place, HARD), "--local", "--slots", "1").ended()
    assert code == 3
    directory = outputs(lines)
    assert len(list(directory.glob("bad/*/ran"))) < 9
    assert not (directory / "after" / "ran").exists()
    assert (directory / "other" / "ran").exists()


def test_years_later_the_directory_alone_tells_how_it_went_and_goes_on(place: Path) -> None:
    """Specification, scripts and samples are gone, and the directory lies elsewhere: status tells, restart goes on."""
    source = place / "source"
    (source / "tools").mkdir(parents=True)
    (source / "tools" / "check.sh").write_text('[ -e "$1/go" ] || exit 3\necho went > "$2"\n')
    (source / "spec.yaml").write_text(
        "description: {name: late, description: d}\nenv: {variables: {TOOLS: $(SPECROOT)/tools, OUTPUT_PATH: out}}\n"
        "study:\n- {name: early, description: d, run: {cmd: echo $(N) > n}}\n"
        '- {name: check, description: d, run: {cmd: \'sh "$(TOOLS)/check.sh" "$(MERLIN_INFO)" $(N)\'}}\n'
        "merlin: {samples: {file: $(SPECROOT)/s.csv, column_labels: [N]}}\n"
    )
    (source / "samples.csv").write_text("1\n2\n")
    flags = ("--local", "--samplesfile", str(source / "samples.csv"))
    code, out, err = Merlin(place, "run", str(source / "spec.yaml"), *flags).ended()
    assert code == 3, err
    outputs = Path(out[-1].removeprefix("Outputs: "))
    there = place / "archive" / "renamed"
    there.parent.mkdir()
    outputs.rename(there)
    shutil.rmtree(source)
    code, out, err = Merlin(place, "status", str(there)).ended()
    assert (code, out[0]) == (0, "renamed: finished; 2 of 5 tasks did not succeed"), err
    (there / "merlin_info" / "go").touch()
    code, out, err = Merlin(place, "restart", str(there), "--local").ended()
    assert code == 0, err
    assert (there / "check" / "00" / "1").read_text() == "went\n"
    code, out, err = Merlin(place, "status", str(there)).ended()
    assert out[0] == "renamed: finished; all 5 tasks succeeded"
