"""What travels: subjects that can't be misread, envelopes that can't be moved, messages that are closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from merlin_study import seal, subjects, wire
from merlin_study.outcome import Outcome
from merlin_study.taskset import TaskSet

NAMES = st.text(min_size=0, max_size=40).filter(lambda text: text.isprintable())
CHUNK = wire.Chunk(study="u", plan="p", epoch=1, fence=7, step=0, tasks=TaskSet.of([2, 5, 9]), attempt=2)


@given(text=NAMES)
def test_any_name_becomes_one_token_and_comes_back(text: str) -> None:
    """Queues and sites keep the names that Merlin accepts; no name adds a token, a wildcard or a line to a subject."""
    token = subjects.escape(text)
    assert subjects.unescape(token) == text
    assert token
    assert not set(token) & set(". *>\r\n\t")


@given(left=NAMES, right=NAMES)
def test_two_names_never_share_a_token(left: str, right: str) -> None:
    """Otherwise one queue's agents would take another queue's work."""
    assert (subjects.escape(left) == subjects.escape(right)) == (left == right)


@given(site=NAMES, queue=NAMES)
def test_a_chunk_s_subject_says_where_it_belongs(site: str, queue: str) -> None:
    """Site, queue, shape, band, study and fence are read back from the subject as they were put in."""
    route = subjects.Route(site, queue, "n1-c1-g0-m0-w0", "bulk")
    subject = subjects.Space("a-namespace").chunk(route, "uid", 12)
    assert subjects.parse_chunk(subject) == subjects.ChunkAddress(route, "uid", 12)


@pytest.mark.parametrize("subject", ["", "merlin.v1.ns.task.a.b", "merlin.v1.ns.report.u.1.x.y.z.q.w"])
def test_what_is_no_chunk_s_subject_is_refused(subject: str) -> None:
    with pytest.raises(ValueError, match="not the subject of a chunk"):
        subjects.parse_chunk(subject)


def test_whose_a_stored_message_is_stands_in_its_subject() -> None:
    space = subjects.Space("a.namespace")
    stored = [
        *(space.chunk(subjects.Route("s", "q", "n1-c1-g0-m0-w0", "bulk"), "uid", 12), space.cursor("uid")),
        *(space.reports("uid", 12), space.verdicts("uid"), space.child("uid", "k"), space.born("uid", "k")),
        *(space.plan("uid", "h"), space.file("uid", "h"), space.kept("uid", "h")),
        *(space.family("uid"), space.snapshot("uid"), space.finale("uid")),
    ]
    assert {subjects.study_of(subject) for subject in stored} == {"uid"}
    assert not any(map(subjects.study_of, (space.origin, space.rollcall, f"{space.all_chunks[:-1]}x", "a")))
    assert subjects.is_literal("7d1c6a1e-0000-4000-8000-000000000000")
    assert not any(map(subjects.is_literal, ("*", ">", "a*", "a.b", "", "a b", "ä")))


def test_an_envelope_opens_where_it_belongs() -> None:
    ring = seal.Keyring.generate()
    envelope = ring.seal(b"payload", scope="study", context="subject")
    assert ring.open(envelope, scope="study", context="subject", signer=seal.Signer.OPERATOR) == b"payload"
    assert b"payload" not in envelope


@pytest.mark.parametrize(("scope", "context"), [("other", "subject"), ("study", "other")])
def test_an_envelope_opens_nowhere_else(scope: str, context: str) -> None:
    """A message moved to another study or another subject is refused."""
    ring = seal.Keyring.generate()
    envelope = ring.seal(b"payload", scope="study", context="subject")
    with pytest.raises(seal.SealError):
        ring.open(envelope, scope=scope, context=context, signer=seal.Signer.OPERATOR)


@given(at=st.integers(0, 115))
def test_a_flipped_bit_is_noticed_wherever_it_is(at: int) -> None:
    ring = seal.Keyring.generate()
    envelope = bytearray(ring.seal(b"0123456789abcdef", scope="s", context="c"))
    envelope[at % len(envelope)] ^= 1
    with pytest.raises(seal.SealError):
        ring.open(bytes(envelope), scope="s", context="c", signer=seal.Signer.OPERATOR)


def test_a_stranger_with_the_seal_key_can_t_sign() -> None:
    """Whoever reads the seal key still makes nothing that others run."""
    ours, theirs = seal.Keyring.generate(), seal.Keyring.generate()
    stranger = seal.Keyring(ours.seal_key, theirs.signing_key, theirs.operators, theirs.agents)
    with pytest.raises(seal.SealError, match="not trusted"):
        ours.open(stranger.seal(b"x", scope="s", context="c"), scope="s", context="c", signer=seal.Signer.OPERATOR)


def test_no_role_can_sign_in_the_other_s_place(tmp_path: Path) -> None:
    """Operator and agents read each other, each as what it is; keys on disk keep the roles."""
    operator, agents = seal.Keyring.generate_pair()
    agents.save(tmp_path / "agents")
    operator.save(tmp_path / "operator")
    for reader in (operator, agents, seal.Keyring.load(tmp_path / "agents"), seal.Keyring.load(tmp_path / "operator")):
        for writer, role in ((operator, seal.Signer.OPERATOR), (agents, seal.Signer.AGENT)):
            envelope = writer.seal(b"x", scope="s", context="c")
            for claimed in seal.Signer:
                if claimed is role:
                    assert reader.open(envelope, scope="s", context="c", signer=claimed) == b"x"
                else:
                    with pytest.raises(seal.SealError, match=f"not trusted as {claimed.value}"):
                        reader.open(envelope, scope="s", context="c", signer=claimed)


def test_keys_come_back_from_their_files_and_are_private(tmp_path: Path) -> None:
    ring = seal.Keyring.generate()
    ring.save(tmp_path / "keys")
    again = seal.Keyring.load(tmp_path / "keys")
    assert (
        again.open(ring.seal(b"x", scope="s", context="c"), scope="s", context="c", signer=seal.Signer.OPERATOR) == b"x"
    )
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    with pytest.raises(FileExistsError):
        ring.save(tmp_path / "keys")


def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    seal.Keyring.generate().save(tmp_path)
    (tmp_path / seal.SEAL_KEY_FILE).chmod(0o644)
    with pytest.raises(seal.KeyFileError, match="chmod 600"):
        seal.Keyring.load(tmp_path)


def test_keys_don_t_show_in_reprs() -> None:
    ring = seal.Keyring.generate()
    assert ring.seal_key.hex() not in repr(ring)


@pytest.mark.parametrize(
    "entry",
    [
        wire.Bound(site="s", agent="a", mark="m", workspace="/w"),
        wire.Start(agent="a", chunk=CHUNK),
        wire.Report(
            agent="a", fence=7, serial=1, step=0, attempt=2,
            results=(wire.Result(outcome=Outcome.SOFT_FAILED, code=-9, tasks=TaskSet.of([5])),),
            failures=(wire.Failure(task=5, outcome=Outcome.SOFT_FAILED, code=-9, host="h", directory="d", tail="t"),),
        ),
        wire.Lost(fence=7, agent="a"),
    ],
)  # fmt: skip
def test_log_entries_come_back_as_what_they_were(entry: wire.Bound | wire.Start | wire.Report | wire.Lost) -> None:
    assert wire.decode_log(entry.encode()) == entry


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"kind":"lost"}',
        b'{"kind":"lost","fence":1,"agent":"a","more":1}',
        b'{"kind":"found"}',
        b"\x00",
    ],
)
def test_what_is_no_log_entry_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        wire.decode_log(data)


def test_a_chunk_of_masks_stays_small() -> None:
    """A message carries bits, not indices: 4,096 tasks with gaps fit in under 2 KB."""
    chunk = CHUNK.model_copy(update={"tasks": TaskSet.of(range(0, 4096, 3))})
    assert len(chunk.encode()) < 2048
