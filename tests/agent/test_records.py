"""Logs, presence, files, problems: what is left for others."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from merlin_agent import files, presence
from merlin_agent.beat import REMEMBERED, Problems
from merlin_agent.binding import RefusedError, prepare
from merlin_agent.record import HolderLogs, Recorder
from merlin_study import outcomelog, wire
from merlin_study.outcome import Outcome
from merlin_study.outcomelog import Decoded, Entry
from merlin_study.taskset import TaskSet
from tests.agent.standin import a_plan, a_step


def an_entry(first: int, *, fence: int = 1, study: str = "s", final: bool = False) -> Entry:
    """A report of one success."""
    result = wire.Result(outcome=Outcome.SUCCEEDED, code=0, tasks=TaskSet(first=first, width=1))
    report = wire.Report(agent="a", fence=fence, serial=1, step=0, attempt=1, results=(result,), final=final)
    return Entry(study=study, plan="p", report=report)


def a_start() -> Entry:
    """A won claim."""
    chunk = wire.Chunk(study="s", plan="p", epoch=1, fence=1, step=0, tasks=TaskSet.of([1, 5]), attempt=1)
    return Entry(study="s", plan="p", start=wire.Start(agent="a", chunk=chunk))


def test_what_is_logged_is_read_again() -> None:
    """A torn last line is no damage; anything else that is no entry is counted and skipped."""
    lines = [outcomelog.encode_line(entry) for entry in (a_start(), an_entry(3, final=True))]
    assert outcomelog.decode_lines(b"".join(lines) + lines[0][:40]) == Decoded((a_start(), an_entry(3, final=True)), 0)
    torn = lines[0] + lines[1][:30] + b"\n" + b"\n" + b"\xff\n" + b'{"study": "s", "plan": "p"}\n' + lines[1]
    assert outcomelog.decode_lines(torn) == Decoded((a_start(), an_entry(3, final=True)), 3)
    assert outcomelog.decode_lines(b"") == Decoded((), 0)


def test_lines_are_written_in_order_and_a_torn_one_is_ended_first(tmp_path: Path) -> None:
    """The log's directory is made on demand; a log that can't be written is told and keeps nobody waiting."""
    told: list[str] = []
    path = tmp_path / "outcomes" / "a.jsonl"

    async def write() -> None:
        recorder = Recorder(told.append)
        await asyncio.gather(*(recorder.append(str(path), b"%d\n" % number) for number in range(50)))
        with path.open("ab") as file:
            file.write(b"torn")
        await recorder.append(str(path), b"after\n")
        await recorder.append(str(tmp_path), b"no\n")
        recorder.close()

    asyncio.run(write())
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(50)) + b"torn\nafter\n"
    assert told == [f"{tmp_path}: the outcome log can't be written: Is a directory"]


def test_a_holders_log_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    """Only this study's and this fence's results, each once; its final report closes it."""
    path = tmp_path / "log"
    log = HolderLogs().of(str(path), "s", 1)
    assert log.news() == []
    line = outcomelog.encode_line(an_entry(1))
    path.write_bytes(outcomelog.encode_line(an_entry(0)) + outcomelog.encode_line(an_entry(8, fence=2)) + line[:20])
    assert [result.tasks.first for result in log.news()] == [0]
    with path.open("ab") as file:
        file.write(line[20:] + outcomelog.encode_line(an_entry(9, study="t")))
    assert [result.tasks.first for result in log.news()] == [1]
    assert (log.news(), log.closed) == ([], False)
    with path.open("ab") as file:
        file.write(outcomelog.encode_line(an_entry(2, final=True)))
    assert ([result.tasks.first for result in log.news()], log.closed) == ([2], True)


def test_a_lost_holders_log_is_read_once_for_all_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It left many; each hears of its own fence, whoever of them reads."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(outcomelog.encode_line(an_entry(n, fence=n, final=n == 7)) for n in range(1, 40)))
    parsed: list[int] = []
    decode = outcomelog.decode_lines

    def counted(data: bytes) -> Decoded:
        parsed.append(data.count(b"\n"))
        return decode(data)

    monkeypatch.setattr(outcomelog, "decode_lines", counted)
    logs = HolderLogs()
    found = {fence: logs.of(str(path), "s", fence) for fence in range(1, 40)}
    assert {fence: [r.tasks.first for r in log.news()] for fence, log in found.items()} == {n: [n] for n in found}
    assert [fence for fence, log in found.items() if log.closed] == [7]
    assert sum(parsed) == 39
    for number in range(50):
        logs.of(str(tmp_path / str(number)), "s", 1)
    assert len(logs._readers) <= 8


def test_a_directory_of_another_study_is_left_as_it_is(tmp_path: Path) -> None:
    """Two studies of one name: the second would find the first one's markers, and succeed without running."""
    first, second = (a_plan(a_step("sim", text), provenance={"study.orig.yaml": text}) for text in ("one", "two"))
    mark = prepare(str(tmp_path / "ws"), first, "first")
    info = tmp_path / "ws" / "merlin_info"
    before = {file.name: file.read_bytes() for file in info.iterdir() if file.is_file()}
    assert before["study.orig.yaml"] == b"one"
    with pytest.raises(RefusedError, match="ws: belongs to study first; give this one another runId or name"):
        prepare(str(tmp_path / "ws"), second, "second")
    assert {file.name: file.read_bytes() for file in info.iterdir() if file.is_file()} == before
    assert prepare(str(tmp_path / "ws"), first, "first") == mark


def test_ages_are_measured_by_the_file_systems_clock(tmp_path: Path) -> None:
    """Both times are the file system's; an absent file is old."""
    removed: list[str] = []
    mine, other = (presence.Presence(name, removed.append) for name in ("mine", "other"))
    mine.enter(str(tmp_path))
    other.enter(str(tmp_path))
    other.enter(str(tmp_path))
    assert removed == [presence.path_of(str(tmp_path), name) for name in ("mine", "other")]
    assert 0 <= presence.age(str(tmp_path), "mine", "other") < 30
    then = Path(removed[1]).stat().st_mtime - 1000
    os.utime(removed[1], (then, then))
    assert 1000 <= presence.age(str(tmp_path), "mine", "other") < 1030
    other.leave()
    assert presence.age(str(tmp_path), "mine", "other") == presence.FOREVER


def test_problems_are_told_once_and_forgotten_in_time() -> None:
    """The last five, and none older than ten minutes."""
    now = [0.0]
    problems = Problems(lambda: now[0])
    assert problems.note("a")
    assert not problems.note("a")
    now[0] = REMEMBERED / 2
    for text in "bcdef":
        problems.note(text)
    assert problems.current() == tuple("bcdef")
    problems.note("b")
    assert problems.current() == tuple("cdefb")
    now[0] = 2 * REMEMBERED
    assert problems.current() == ()
    assert problems.note("b")
    assert len(problems.current()[0]) == 1
    problems.note("x" * 5000)
    assert len(problems.current()[1]) == 300


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o744), (0o077, 0o700), (0o002, 0o764)])
def test_scripts_are_executable_within_the_users_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """As ``chmod u+x`` leaves a new file; an old one is replaced, not written into."""
    before = os.umask(umask)
    try:
        path = tmp_path / "s.sh"
        files.write_script(str(path), "/bin/bash", "a\udcff", replace=False)
        with path.open("rb") as reader:
            files.write_script(str(path), "/bin/bash", "b", replace=True)
            assert reader.read() == b"#!/bin/bash\n\na\xff\n"
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("#!/bin/bash\n\nb\n", mode)
    finally:
        os.umask(before)


def test_directories_are_made_with_what_they_lie_in(tmp_path: Path) -> None:
    """And it is said whether they are new."""
    deep = str(tmp_path / "a" / "b" / "c")
    assert [files.make_directory(deep), files.make_directory(deep)] == [True, False]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.make_directory(str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError):
        files.make_directory(str(tmp_path / "file" / "below"))


def test_only_one_writes_a_file_that_is_written_once(tmp_path: Path) -> None:
    """Readers see all of it; nothing is left beside it."""
    path = str(tmp_path / "mark")
    assert [files.write_once(path, b"first"), files.write_once(path, b"second")] == [True, False]
    files.write_whole(str(tmp_path / "plan"), b"text")
    assert sorted((entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()) == [
        ("mark", b"first"),
        ("plan", b"text"),
    ]


def test_tails_are_cut_in_characters(tmp_path: Path) -> None:
    """Not in the middle of one where it can be helped, and whatever the bytes are."""
    path = tmp_path / "err"
    path.write_bytes(b"x" * 5000 + "é".encode() * 100 + b"\xff")
    assert files.read_tail(str(path), 4) == "ééé\ufffd"
    assert files.read_tail(str(tmp_path / "none"), 4) == ""
