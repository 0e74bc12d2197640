"""Studies that steps ask for, as objects of the cluster: created under the operator's own account, for the root's owner."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from merlin_operator import assignments, family
from merlin_operator.births import NotNowError
from merlin_operator.cluster import ApiError
from merlin_operator.view import StudyRef
from merlin_study import nested

TAKEN: Final = 409
GONE: Final = 404
REFUSED: Final = (400, 403, 413, 422)
"""What the API server answers where it will never take this Study: malformed, forbidden, too large."""


class Objects(Protocol):
    """Where Studies are kept; each method raises `ApiError` where it is refused."""

    async def create_study(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a Study."""

    async def patch_study(self, name: str, uid: str, changes: dict[str, Any]) -> None:
        """Set fields of a Study's spec."""

    async def study(self, name: str) -> dict[str, Any]:
        """Return a Study."""

    async def allocation(self, name: str) -> dict[str, Any]:
        """Return an Allocation."""

    async def patch_allocation(self, name: str, body: dict[str, Any]) -> None:
        """Merge into an Allocation; 409 where it has changed since."""


class ClusterNursery:
    """A `births.Nursery` that makes Studies."""

    remembers = True

    def __init__(self, api: Objects) -> None:
        self._api = api

    async def bear(self, parent: StudyRef, own: family.Lineage, child: family.Child) -> nested.Born:
        """See `births.Nursery`."""
        body = family.manifest(parent, own, child)
        name = str(body["metadata"]["name"])
        try:
            made = await self._api.create_study(body)
        except ApiError as error:
            if error.status == TAKEN:
                return await self._found(name, parent, child)
            if error.status in REFUSED:
                return nested.Born(name=name, refused=f"the cluster refused study {name}: {error}")
            raise NotNowError(f"study {name}: {error}") from error
        return nested.Born(name=name, uid=str(made["metadata"]["uid"]))

    async def change(self, ref: StudyRef, changes: Mapping[str, Any]) -> str:
        """See `births.Nursery`."""
        try:
            await self._api.patch_study(ref.name, ref.uid, dict(changes))
        except ApiError as error:
            if error.status in (*REFUSED, GONE):
                return f"the cluster refused it: {error}"
            raise NotNowError(f"study {ref.name}: {error}") from error
        return ""

    async def dismiss(self, agents: Mapping[str, Collection[str]]) -> str:
        """See `births.Nursery`."""
        for name, each in agents.items():
            try:
                found = await self._api.allocation(name)
                many = len(each) > assignments.MOST_NAMED
                wish = {"drain": True} if many else {"agents": assignments.drained(found["spec"], each)}
                body: dict[str, Any] = {"spec": wish}
                if version := found["metadata"].get("resourceVersion"):
                    body["metadata"] = {"resourceVersion": version}
                await self._api.patch_allocation(name, body)
            except ApiError as error:
                if error.status in (*REFUSED, GONE):
                    return f"agents of allocation {name} can't be told: {error}"
                raise NotNowError(f"allocation {name}: {error}") from error
        return ""

    async def _found(self, name: str, parent: StudyRef, child: family.Child) -> nested.Born:
        """The Study that has the name already: it is the one that was asked for, or somebody's who took its name."""
        try:
            metadata = (await self._api.study(name))["metadata"]
        except ApiError as error:
            raise NotNowError(f"study {name}: {error}") from error
        labels = metadata.get("labels") or {}
        if (labels.get(family.SUBMISSION), labels.get(family.PARENT)) == (child.key, parent.uid):
            return nested.Born(name=name, uid=str(metadata["uid"]))
        return nested.Born(name=name, refused=f"there is another study {name} already")
