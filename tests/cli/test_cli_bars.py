"""What a user sees of a study's progress, on a terminal and in a log."""

import io
from pathlib import Path

from rich.console import Console

from merlin_cli import bars, summary, text
from merlin_cli.progress import Failed, Progress, StepCount, StepFailure

HALF = Progress(
    steps=(
        StepCount(name="merlin_info", total=1, succeeded=1),
        StepCount(name="throw", total=1000, succeeded=400, soft_failed=3, running=20, queued=30),
        StepCount(name="report", total=1),
    ),
    rate=410.4,
    remaining_seconds=75.0,
)
DONE = Progress(
    finished=True,
    steps=(
        StepCount(name="throw", total=1000, succeeded=997, soft_failed=2, timed_out=1),
        StepCount(name="report", total=1, succeeded=1),
    ),
    first_failures=(
        StepFailure(
            step="throw",
            failure=Failed(
                task=7, outcome="soft-failed", code=3, directory="throw/[x]/07", tail="one\ntwo\nthree\nfour\nfive\nsix"
            ),
        ),
    ),
)


def terminal(height: int = 25, **options: str) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=100, height=height, _environ={"TERM": "xterm", **options}
    )


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_line_says_how_far_it_is_and_what_runs() -> None:
    assert text.line(HALF) == (
        "404 of 1,002 tasks done (40 %); 3 did not succeed; 410/s; about 1 min 15 s left; in throw 403/1,000"
    )


def test_a_line_does_not_pretend_to_know_a_total_before_the_samples_are_measured() -> None:
    early = Progress(
        steps=(StepCount(name="merlin_info", total=1, running=1), StepCount(name="throw", total=None)),
    )
    assert text.line(early) == "0 of 1 or more tasks done; in merlin_info 0/1"


def test_a_line_says_why_nothing_moves() -> None:
    waiting = Progress(steps=(StepCount(name="a", total=1),), waiting_for="no agent serves the queue 'merlin'")
    assert text.line(waiting) == "0 of 1 tasks done (0 %); no agent serves the queue 'merlin'"


def test_lines_come_every_few_seconds_and_at_the_end() -> None:
    console, now = plain(), [0.0]
    lines = bars.Lines(console, clock=lambda: now[0])
    for second in range(8):
        now[0] = float(second)
        lines.update(Progress(steps=(StepCount(name="a", total=10, succeeded=second, running=1),)))
    lines.update(Progress(finished=True, succeeded=True, steps=(StepCount(name="a", total=10, succeeded=10),)))
    lines.close()
    assert [line.split()[0] for line in printed(console).splitlines()] == ["0", "3", "6", "10"]


def test_a_log_has_no_escape_sequences() -> None:
    console = plain()
    shown = bars.display(console)
    shown.update(HALF)
    shown.note("The engine died (SIGKILL); starting it again.")
    shown.close()
    assert isinstance(shown, bars.Lines)
    assert "\x1b" not in printed(console)


def test_a_terminal_shows_a_bar_for_each_step_with_words_for_what_went_wrong() -> None:
    console = terminal()
    shown = bars.display(console)
    shown.update(HALF)
    shown.close()
    said = printed(console)
    for words in ("merlin_info", "throw", "403/1,000", "3 soft-failed", "20 running", "report", "0/1", "410/s"):
        assert words in said
    assert "\x1b[" in said


def test_no_color_is_respected() -> None:
    console = terminal(NO_COLOR="1")
    console.print(bars.table(HALF.steps))
    assert "\x1b[31m" not in printed(console)
    assert "\x1b[32m" not in printed(console)


def test_where_the_steps_do_not_fit_those_in_work_are_shown() -> None:
    steps = [StepCount(name=f"over{at}", total=1, succeeded=1) for at in range(10)]
    steps += [StepCount(name="broken", total=1, failed=1), StepCount(name="busy", total=9, running=2)]
    steps += [StepCount(name=f"next{at}", total=1) for at in range(10)]
    assert [step.name for step in bars.chosen(steps, 5)] == ["broken", "busy", "next0", "next1"]
    assert bars.chosen(steps, 22) == steps


def test_the_summary_names_failures_and_its_last_line_the_outputs() -> None:
    console = plain()
    summary.show(console, DONE, elapsed=12.34, directory=Path("/data/darts_20260102-030405"))
    lines = [line.rstrip() for line in printed(console).splitlines()]
    assert lines == [
        "",
        "Finished in 12.3 s: 3 of 1,001 tasks did not succeed.",
        "step    tasks  succeeded  soft-failed  timed out",
        "throw   1,000        997            2          1",
        "report      1          1            0          0",
        "throw, task 7: soft-failed, exit code 3",
        "  in /data/darts_20260102-030405/throw/[x]/07",
        "  | two",
        "  | three",
        "  | four",
        "  | five",
        "  | six",
        "and 2 more",
        "Outputs: /data/darts_20260102-030405",
    ]


def test_a_directory_longer_than_the_terminal_stays_on_one_line() -> None:
    console = plain()
    long = Path("/data") / ("x" * 200)
    summary.outputs(console, long)
    assert printed(console) == f"Outputs: {long}\n"


def test_times_and_rates_are_for_people() -> None:
    assert [text.seconds(value) for value in (0.04, 59.96, 61, 3600, 200_000)] == [
        "0.0 s",
        "60.0 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 d 7 h",
    ]
    assert [text.rate(value) for value in (1234.5, 12.34, 0.05)] == ["1,234/s", "12.3/s", "3.0/min"]
    assert [text.count(number, "task") for number in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
