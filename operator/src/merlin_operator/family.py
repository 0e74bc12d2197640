"""Studies that studies start: who descends from whom, what may be born, and the object that it becomes.

Pure. A *family* is a root, which a user made, and all that its tasks started, directly or not. Whose child a Study is stands
in its labels and annotations, so that any operator reads it there; deleting the root deletes the family (owner references).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from merlin_operator.view import StudyRef
from merlin_study import nested, wire

GROUP_VERSION: Final = "merlin.dev/v1alpha1"
ROOT: Final = "merlin.dev/root"
"""Label: the uid of the study that a user made."""
PARENT: Final = "merlin.dev/parent"
"""Label: the uid of the study whose task started this one."""
SUBMISSION: Final = "merlin.dev/submission"
"""Label: the submission's name below its parent; a Study that has it is the one that was asked for."""
ROOT_NAME: Final = "merlin.dev/root-name"
PARENT_NAME: Final = "merlin.dev/parent-name"
DEPTH: Final = "merlin.dev/generation"
"""Annotation: how many studies stand between this one and no study; 1 for a child of a root."""
STARTED_BY: Final = "merlin.dev/started-by"
"""Annotation: the step and the index of the task that started it."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a study comes from; all empty for one that a user made."""

    root: str = ""
    root_name: str = ""
    parent: str = ""
    depth: int = 0
    creator: str = ""


@dataclass(slots=True)
class Child:
    """A study that was asked for, and what became of it; None: nothing yet."""

    key: str
    asked: nested.Submission
    born: nested.Born | None = None


@dataclass(slots=True)
class Ordered:
    """What a step ordered, and what became of it; None: nothing yet."""

    key: str
    order: nested.AnyOrder
    born: nested.Born | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A study that may be meant by an order."""

    ref: StudyRef
    lineage: Lineage


def lineage(labels: Mapping[str, str], annotations: Mapping[str, str]) -> Lineage:
    """Return what a Study's metadata says of its family; what makes no sense counts as nothing."""
    creator = annotations.get(nested.CREATOR, "")
    root, parent, depth = labels.get(ROOT, ""), labels.get(PARENT, ""), annotations.get(DEPTH, "")
    if not root or not parent or not depth.isdecimal():
        return Lineage(creator=creator)
    return Lineage(root, annotations.get(ROOT_NAME, ""), parent, int(depth), creator)


def below(ref: StudyRef, own: Lineage) -> Lineage:
    """Return where a child of a study comes from."""
    return Lineage(own.root or ref.uid, own.root_name or ref.name, ref.uid, own.depth + 1, own.creator)


def refusal(child: Child, own: Lineage, *, members: int, ended: bool) -> str:
    """Say why a submission becomes no study; empty where it becomes one.

    Args:
        child: what was asked for.
        own: where the study that asks comes from.
        members: how many studies the family has had so far, the root left out.
        ended: whether the study that asks was cancelled.
    """
    if ended:
        return "the study that asked for it was cancelled"
    if own.depth >= nested.MAX_DEPTH:
        return f"it would be more than {nested.MAX_DEPTH} generations below its root"
    if full := fullness(own, members=members):
        return full
    try:
        spec = json.loads(child.asked.spec)
    except ValueError:
        spec = None
    if not isinstance(spec, dict):
        return "what was asked for is no specification"
    return ""


def fullness(own: Lineage, *, members: int) -> str:
    """Say why a family may grow no more; empty where it may."""
    if members < nested.MAX_FAMILY:
        return ""
    return f"the family of study {own.root_name or 'itself'} has had {members} studies, and more are not allowed"


def spec_of(asked: nested.Submission) -> dict[str, Any]:
    """Return the specification that was asked for; it runs where the step ran, whose paths it names."""
    spec: dict[str, Any] = json.loads(asked.spec)
    return {"site": asked.site, **spec}


def target(order: nested.Order, asks: Member, members: Iterable[Member]) -> Member | str:
    """Return the study that an order means, or say why there is none that it may change.

    A step may change the studies of its own family, and those whose creator is its own: neither knows one where users are not
    told apart, and then whoever may create a study there may change it.
    """
    found = [member for member in members if order.target in (member.ref.name, member.ref.uid)]
    if not found:
        return f"there is no study {order.target}"
    (meant,) = found[:1]
    same_family = (meant.lineage.root or meant.ref.uid) == (asks.lineage.root or asks.ref.uid)
    if same_family or meant.lineage.creator == asks.lineage.creator:
        return meant
    return f"study {order.target} belongs to somebody else"


def dismissed(
    order: nested.Dismissal, asks: wire.Heartbeat | None, agents: Iterable[wire.Heartbeat], *, queues: Collection[str]
) -> list[wire.Heartbeat] | str:
    """Return which agents a step sends away, or say why it may send none.

    A step may do to agents what its user may: so only those of its own site and user, and of these only such as serve its family.

    Args:
        order: what it asks for.
        asks: the agent that runs it.
        agents: all that take work.
        queues: those of the studies of its family.
    """
    if asks is None:
        return "the agent that passed it on is not known by now"
    unknown = sorted(set(order.queues) - set(queues))
    if unknown:
        return f"no step of this family of studies has queue {unknown[0]}"
    wanted = set(order.queues or queues)
    own = (beat for beat in agents if (beat.site, beat.user) == (asks.site, asks.user))
    return [beat for beat in own if not beat.queues or wanted & set(beat.queues)]


def manifest(parent: StudyRef, own: Lineage, child: Child) -> dict[str, Any]:
    """Return the Study that a submission becomes.

    Args:
        parent: the study whose task asked.
        own: where that one comes from.
        child: what was asked for.
    """
    origin = below(parent, own)
    annotations = {
        ROOT_NAME: origin.root_name,
        PARENT_NAME: parent.name,
        DEPTH: str(origin.depth),
        STARTED_BY: f"{child.asked.step}/{child.asked.task}",
    }
    if origin.creator:
        annotations[nested.CREATOR] = origin.creator
    owner = {"apiVersion": GROUP_VERSION, "kind": "Study", "name": origin.root_name, "uid": origin.root}
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "Study",
        "metadata": {
            "name": nested.child_name(child.asked.name, child.key),
            "namespace": parent.namespace,
            "labels": {ROOT: origin.root, PARENT: parent.uid, SUBMISSION: child.key},
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": spec_of(child.asked),
    }
