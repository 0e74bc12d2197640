"""What a study's steps asked for, as it is kept beside a snapshot of the study's ledger: submissions and orders with what became of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from merlin_operator.family import Child, Ordered
from merlin_operator.study import Study
from merlin_study import nested, wire


class KeptChild(wire.Message):
    """A submission; its specification is left out where nothing more has to be made of it."""

    key: str
    asked: nested.Submission
    born: nested.Born | None


class KeptOrder(wire.Message):
    """An order."""

    key: str
    order: Annotated[nested.AnyOrder, Field(discriminator="kind")]
    born: nested.Born | None


class Kin(wire.Message):
    """All of a study."""

    children: tuple[KeptChild, ...] = ()
    orders: tuple[KeptOrder, ...] = ()

    def give(self, study: Study) -> None:
        """Let a study know of all of them; what it knows already stands."""
        for child in self.children:
            study.children.setdefault(child.key, Child(child.key, child.asked, child.born))
        for each in self.orders:
            study.orders.setdefault(each.key, Ordered(each.key, each.order, each.born))


def of(study: Study) -> Kin | None:
    """Return what a study's steps asked for; None where that is nothing."""
    if not study.children and not study.orders:
        return None
    children = (KeptChild(key=each.key, asked=_short(each), born=each.born) for each in study.children.values())
    orders = (KeptOrder(key=each.key, order=each.order, born=each.born) for each in study.orders.values())
    return Kin(children=tuple(children), orders=tuple(orders))


def _short(child: Child) -> nested.Submission:
    return child.asked if child.born is None else child.asked.model_copy(update={"spec": ""})
