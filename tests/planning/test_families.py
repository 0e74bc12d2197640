"""Studies that studies start: how they are named, whose they are, and what is refused."""

import json
import re
from typing import Any

import pytest

from merlin_operator import expiry, family
from merlin_operator.family import Child, Lineage
from merlin_operator.view import StudyRef, StudyView
from merlin_study import nested

REF = StudyRef("ns", "sweep", "11111111-2222-3333-4444-555555555555")
ASKED = nested.Submission(
    agent="a",
    site="quartz",
    step="iterate",
    task=3,
    turn=0,
    number=1,
    name="Next round!",
    spec='{"study": []}',
    workspace="/w",
)


def child(**changes: Any) -> Child:
    asked = ASKED.model_copy(update=changes)
    return Child(asked.key(REF.uid), asked)


def test_who_asks_decides_the_name_and_nothing_else_does() -> None:
    """The same task in its order finds the same; anything that differs in who asks is another study."""
    again = ASKED.model_copy(update={"agent": "b", "name": "other", "spec": "{}", "workspace": "/x"})
    assert again.key(REF.uid) == ASKED.key(REF.uid)
    others: list[dict[str, Any]] = [{"step": "x"}, {"task": 4}, {"turn": 2}, {"number": 2}]
    keys = {ASKED.model_copy(update=other).key(REF.uid) for other in others}
    assert len({ASKED.key(REF.uid), ASKED.key("another"), *keys}) == len(others) + 2
    assert nested.is_key(ASKED.key(REF.uid))


def test_parts_of_a_name_do_not_run_into_each_other() -> None:
    one = nested.submission_key("u", step="a", task=11, turn=1, number=1)
    assert one != nested.submission_key("u", step="a", task=1, turn=11, number=1)


@pytest.mark.parametrize("name", ["Next round!", "x" * 300, "", "--", "Ünïcode", "a" * 34 + "-" * 9, "../..", "a.b"])
def test_any_name_makes_one_that_the_cluster_takes(name: str) -> None:
    made = nested.child_name(name, "0123456789abcdef")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= nested.MAX_NAME


def test_a_childs_metadata_says_where_it_comes_from() -> None:
    """Root, parent, generation and creator are read back from the object as they were written; the root owns all."""
    own = Lineage(creator="ada")
    for depth in (1, 2, 3):
        body = family.manifest(StudyRef("ns", f"s{depth}", f"uid-{depth}"), own, child())
        metadata = body["metadata"]
        own = family.lineage(metadata["labels"], metadata["annotations"])
        assert own == Lineage("uid-1", "s1", f"uid-{depth}", depth, "ada")
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Study", "s1", "uid-1")
        assert metadata["annotations"][family.STARTED_BY] == "iterate/3"


def test_a_child_runs_at_the_site_whose_paths_it_names() -> None:
    assert family.manifest(REF, Lineage(), child())["spec"] == {"site": "quartz", "study": []}
    assert family.manifest(REF, Lineage(), child(spec='{"site": "zinc"}'))["spec"]["site"] == "zinc"


def test_metadata_that_makes_no_sense_is_no_family() -> None:
    labels = {family.ROOT: "r", family.PARENT: "p"}
    assert family.lineage(labels, {family.DEPTH: "-1"}) == Lineage()
    assert family.lineage({}, {family.DEPTH: "1"}) == Lineage()


@pytest.mark.parametrize(
    ("changes", "own", "members", "ended", "words"),
    [
        ({}, Lineage(), 0, False, ""),
        ({}, Lineage(), 0, True, "cancelled"),
        ({}, Lineage("r", "r", "p", nested.MAX_DEPTH), 0, False, "generations"),
        ({}, Lineage("r", "r", "p", nested.MAX_DEPTH - 1), nested.MAX_FAMILY - 1, False, ""),
        ({}, Lineage("r", "boss", "p", 1), nested.MAX_FAMILY, False, "family of study boss"),
        ({"spec": "[]"}, Lineage(), 0, False, "no specification"),
        ({"spec": "{"}, Lineage(), 0, False, "no specification"),
    ],
)
def test_bounds(changes: dict[str, str], own: Lineage, members: int, *, ended: bool, words: str) -> None:
    """A family has bounds, and what was cancelled has no more children."""
    found = family.refusal(child(**changes), own, members=members, ended=ended)
    assert bool(found) == bool(words)
    assert words in found


def test_the_socket_speaks_strict_json() -> None:
    """What is unknown or too long is refused by the model, before anything happens."""
    good = {"token": "t", "kind": "submit", "name": "n", "spec": "{}", "workspace": "/w"}
    assert nested.Request.model_validate_json(json.dumps(good)).workspace == "/w"
    for change in ({"more": 1}, {"workspace": "w"}, {"name": "n" * 201}, {"kind": "other"}, {"token": "t" * 201}):
        with pytest.raises(ValueError, match="validation error"):
            nested.Request.model_validate_json(json.dumps(good | change))


def test_a_root_outlives_its_time_while_anything_below_it_runs_or_is_to_be_made() -> None:
    """A grandchild at work, or one that was asked for, keeps its ancestors; nobody else."""

    def view(uid: str, parent: str = "", *, finished: bool = True, unborn: int = 0) -> StudyView:
        over = 1.0 if finished else None
        ref = StudyRef("ns", uid, uid)
        return StudyView(ref, 1, finished=finished, finished_at=over, ttl=0, parent=parent, unborn=unborn)

    def kept(*last: StudyView) -> set[str]:
        views = [view("root"), view("child", "root"), view("other"), *last]
        return {each.ref.uid for each in views} - {ref.uid for ref in expiry.expired(views, 10.0)}

    assert kept() == set()
    assert kept(view("grandchild", "child")) == set()
    assert kept(view("grandchild", "child", finished=False)) == {"root", "child", "grandchild"}
    assert kept(view("grandchild", "child", unborn=1)) == {"root", "child", "grandchild"}
