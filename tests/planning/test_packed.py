"""What `outputs: packed` packs, what keeps a step out of it, and how its archives are read."""

import zipfile
from pathlib import Path

import pytest

from merlin_study import archive, packed, tasklog
from merlin_study.compiler import compile_study
from merlin_study.parse import parse_spec
from merlin_study.plan import Plan
from tests.planning.test_lean import a_log


def planned(sim: str = "echo $(X)", last: str = "echo", *, more: str = "", **run: object) -> Plan:
    spec = {
        "description": {"name": "study", "description": "x"},
        "batch": {"type": "slurm"},
        "outputs": "packed",
        "env": {"variables": {"HERE": "$(MERLIN_WORKSPACE)/sim/$ABSENT"}},
        "global.parameters": {"P": {"values": ["$(MERLIN_WORKSPACE)/sim"], "label": "P.%%"}},
        "study": [
            {"name": "sim", "description": "x", "run": {"cmd": sim, **run}},
            *([{"name": "more", "description": "x", "run": {"cmd": more}}] if more else []),
            {"name": "last", "description": "x", "run": {"cmd": last, "depends": ["sim_*"]}},
        ],
        "merlin": {"samples": {"file": "/s.csv", "column_labels": ["X"]}},
    }
    return compile_study(parse_spec(spec)[0], stamp="20260101-000000")


def names(plan: Plan) -> list[str]:
    return [plan.steps[at].name for at in sorted(packed.steps(plan))]


def test_steps_with_samples_on_one_host_are_packed() -> None:
    assert names(planned()) == ["sim"]
    assert names(planned("$(LAUNCHER) a $(X)", nodes=2)) == []


@pytest.mark.parametrize(
    ("sim", "last", "named"),
    [
        ("echo $(X)", "cat $(sim.workspace)/$(MERLIN_GLOB_PATH)x", ("last", "$(sim.workspace)")),
        ("echo $(X)", 'cat "$(MERLIN_WORKSPACE)"/sim/*', ("last", '$(MERLIN_WORKSPACE)"/sim')),
        ("echo $(X)", "cat ../sim/*", ("last", "../sim")),
        ("echo $(X)", "find $(MERLIN_WORKSPACE) -name x", ("last", "$(MERLIN_WORKSPACE) without one directory in it")),
        ("echo $(X)", "ls $(MERLIN_WORKSPACE)/s*/x", ("last", "$(MERLIN_WORKSPACE) without one directory in it")),
        ("echo $(X)", "ls $(MERLIN_WORKSPACE)/./sim/x", ("last", "$(MERLIN_WORKSPACE) without one directory in it")),
        ("echo $(X)", "cat $(P)/x", ("last", "$(MERLIN_WORKSPACE)/sim")),
        ("echo $(X)", "cat $(HERE)/x", ("last", "$(MERLIN_WORKSPACE)/sim")),
        ("echo $(X) > $(MERLIN_WORKSPACE)/sim/x", "echo", ("sim", "$(MERLIN_WORKSPACE)/sim")),
        ("echo $(X) > $(WORKSPACE)/x", "echo", ("sim", "$(WORKSPACE), which all its samples share")),
        ("echo $(X) > $(WORKSPACE)/$(MERLIN_SAMPLE_PATH)/x", "ls $(MERLIN_WORKSPACE)/simple", None),
        ("echo $(X) > $(MERLIN_WORKSPACE)/x", 'cat "$(MERLIN_WORKSPACE)/results"/*', None),
        ("python tree.py $(MERLIN_WORKSPACE) $(X)", "echo", None),
    ],
)
def test_a_step_whose_directory_a_script_names_is_not_packed(
    sim: str, last: str, named: tuple[str, str] | None
) -> None:
    plan = planned(sim, last)
    found = packed.readings(plan)
    assert [(each.step, each.reader, each.what) for each in found] == ([("sim", *named)] if named else [])
    assert names(plan) == ([] if named else ["sim"])


def test_only_what_is_named_or_waited_for_is_not_packed() -> None:
    plan = planned("echo $(X); ls $(MERLIN_WORKSPACE)", "cat $(sim.workspace)/x", more="echo $(X)")
    assert names(plan) == ["more"]


def test_an_archive_is_read_by_its_log_and_by_the_task_and_by_anybody(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(a_log(b"one", b"two"))
    task = tmp_path / "task"
    (task / "deep/empty").mkdir(parents=True)
    (task / "deep/file").write_bytes(b"\x00PK\x03\x04")
    (task / "deep/file").chmod(0o640)
    (task / "link").symlink_to("deep/file")
    (task / "sim.out").write_text("ours")
    odd = bytes(task) + b"/caf\xe9"
    with open(odd, "w") as file:  # noqa: PTH123 - no text can name it
        file.write("odd")
    path = tmp_path / "0-1.7.a.zip"
    tree = archive.Tree("sim/00/01", str(task), {"sim.out"})
    assert archive.write(str(path), ("tasks/0-1.7.a.log", str(tmp_path / "log")), [tree]) == []
    with archive.open_log(str(path)) as file:
        read = tasklog.read(file)
        assert read is not None
        assert [(ran.task, ran.out) for ran in read[1]] == [(0, 3), (1, 3)], "and nothing of what follows"
    archive.unpack(str(path), {"sim/00/02": str(tmp_path / "no"), "sim/00/01": str(tmp_path / "found")})
    found = tmp_path / "found"
    assert sorted(str(each.relative_to(found)) for each in found.rglob("*")) == [
        "caf\\xe9",
        "deep",
        "deep/empty",
        "deep/file",
        "link",
    ]
    assert (found / "link").read_bytes() == b"\x00PK\x03\x04"
    assert (found / "deep/file").stat().st_mode & 0o777 == 0o640
    assert not (tmp_path / "no").exists()
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_damaged_archives_tell_what_is_whole_and_never_break_a_reader(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(a_log(b"one", b"two"))
    path = tmp_path / "0-1.7.a.zip"
    archive.write(str(path), ("log", str(tmp_path / "log")), [])
    data = path.read_bytes()
    for cut in (0, 5, 40, len(a_log()) + 60, len(data) - 1):
        path.write_bytes(data[:cut])
        with archive.open_log(str(path)) as file:
            read = tasklog.read(file)
            assert len(list(read[1]) if read else []) <= 2
        with pytest.raises(OSError, match="is no whole archive"):
            archive.unpack(str(path), {"sim/00": str(tmp_path)})
