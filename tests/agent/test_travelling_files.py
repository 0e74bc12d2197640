"""Files that came with a study lie below ``$(SPECROOT)`` before its first task runs, or nothing runs."""

import hashlib
import os
from pathlib import Path

from merlin_study import blob, wire
from merlin_study.bundle import Entry, pack
from merlin_study.finale import FILE, Finale
from merlin_study.plan import PlannedFile
from tests.agent.standin import STUDY, Standin, a_plan, a_step
from tests.ground import Broker, eventually

QUICK = wire.Timing(heartbeat=0.2, presence=0.3, presence_stale=2.0)
LARGE = os.urandom(2 * blob.PART)


def store(operator: Standin, content: bytes) -> str:
    """Put content where agents read it, in parts."""
    digest = hashlib.sha256(content).hexdigest()
    subject = operator.space.file(STUDY, digest)
    head, rest = blob.split(content)
    for number, part in enumerate(rest, start=1):
        operator.put(blob.part(subject, number), part)
    operator.put(subject, head)
    return digest


def test_files_of_all_kinds_lie_there_before_the_first_task(broker: Broker, tmp_path: Path) -> None:
    """An archive with modes, a file in several parts, and a path of the site in place; the end is written down, too."""
    (tmp_path / "there.txt").write_text("on the site")
    with Standin(broker, tmp_path) as operator:
        operator.open_streams()
        packed = pack(
            [
                Entry("bin/x.sh", executable=True, data=b"#!/bin/sh\necho ran\n"),
                Entry("l", executable=False, data=LARGE),
            ]
        )
        plain = store(operator, b"plain")
        site = hashlib.sha256(b"on the site").hexdigest()
        files = (
            PlannedFile(name="", sha256=store(operator, packed), parts=(("m", "part"),), archive=True),
            PlannedFile(name="deep/plain.txt", sha256=plain, parts=(("m", "p"),)),
            PlannedFile(name="site.txt", sha256=site, path=str(tmp_path / "there.txt")),
        )
        cmd = "$(SPECROOT)/bin/x.sh > out; cat $(SPECROOT)/deep/plain.txt $(SPECROOT)/site.txt >> out"
        operator.up(a_plan(a_step("sim", cmd), files=files), timing=QUICK)
        operator.agent()
        assert operator.counts(operator.final(operator.issue(range(1)))) == {("succeeded", 0): 1}
        assert (operator.root / "sim" / "out").read_text() == "ran\nplainon the site"
        specroot = operator.root / "merlin_info" / "specroot"
        assert (specroot / "l").read_bytes() == LARGE
        assert (specroot / "site.txt").readlink() == tmp_path / "there.txt"
        assert [each.name for each in specroot.parent.glob("specroot*")] == ["specroot"]
        end = Finale(study=STUDY, plan="p", succeeded=True, finished_at="2026-01-01T00:00:00+00:00", steps=())
        operator.put(operator.space.finale(STUDY), end.encode())
        written = operator.root / "merlin_info" / FILE
        eventually(written.exists)
        assert Finale.model_validate_json(written.read_bytes()) == end


def refused(broker: Broker, directory: Path, file: PlannedFile, content: bytes | None) -> str:
    """What an agent says of a study with such a file; none of its tasks runs."""
    with Standin(broker, directory) as operator:
        operator.open_streams()
        if content is not None:
            subject = operator.space.file(STUDY, file.sha256)
            operator.put(subject, blob.split(content)[0])
        operator.up(a_plan(a_step("sim", "touch ran"), files=(file,)), timing=QUICK)
        name = operator.id_of(operator.agent())
        chunk = operator.issue(range(1))
        [report] = operator.final(chunk)
        assert not report.results
        eventually(lambda: any(report.refused in text for text in operator.heartbeats[name][-1].problems))
        assert not (operator.root / "sim").exists()
        assert not (operator.root / "merlin_info" / "specroot").exists()
        return report.refused


def test_content_of_another_digest_is_refused(broker: Broker, tmp_path: Path) -> None:
    said = refused(broker, tmp_path, PlannedFile(name="a", sha256="0" * 64, parts=(("m", "p"),)), b"other")
    assert "expected content of this digest" in said


def test_an_archive_that_leads_out_of_its_place_is_refused(broker: Broker, tmp_path: Path) -> None:
    from tests.spec.test_bundles import archive, member

    hostile = archive((member("../../../out"), b"x"))
    digest = hashlib.sha256(hostile).hexdigest()
    said = refused(broker, tmp_path, PlannedFile(name="", sha256=digest, parts=(("m", "p"),), archive=True), hostile)
    assert "without '..'" in said
    assert not list(tmp_path.rglob("out"))


def test_a_path_of_the_site_that_changed_is_refused(broker: Broker, tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("changed")
    said = refused(broker, tmp_path, PlannedFile(name="a", sha256="0" * 64, path=str(there)), None)
    assert said.startswith(f"{there}: expected the SHA-256 0000000000000000…, found ")
