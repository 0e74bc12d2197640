"""Studies and the files that travel with them, as files in a directory: what a cluster's API server keeps, for one user's server.

An object is one JSON file that is replaced as a whole, so that whatever ends this process finds each as it was or as it became. Only
switches of a Study change (`acceptance.SWITCHES`), as in a cluster; refusals have the codes that an API server gives.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from merlin_operator.acceptance import SWITCHES
from merlin_operator.cluster import ApiError
from merlin_operator.contents import ContentError

STUDIES: Final = "studies"
CONFIG_MAPS: Final = "configmaps"
WISHES: Final = "wishes.json"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
INVALID, MISSING, TAKEN = 422, 404, 409


class Shelf:
    """The objects of one namespace."""

    def __init__(self, directory: Path, namespace: str) -> None:
        """Make the directories, and read what is there."""
        self.namespace, self._directory = namespace, directory
        self.studies: dict[str, dict[str, Any]] = {}
        for kind in (STUDIES, CONFIG_MAPS):
            (directory / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted((directory / STUDIES).glob("*.json")):
            self.studies[path.stem] = json.loads(path.read_bytes())
        self.wishes: dict[str, dict[str, Any]] = {}
        """What is wished of the agents of allocations, by their names."""
        with contextlib.suppress(FileNotFoundError):
            self.wishes = json.loads((directory / WISHES).read_bytes())

    def create(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object.

        Raises:
            ApiError: there is one of its name, or it has none that can be.
        """
        name = str((body.get("metadata") or {}).get("name", ""))
        if not _NAME.fullmatch(name):
            raise ApiError(INVALID, f"metadata.name: expected lower-case letters, digits, '-' and '.', found {name!r}")
        if self._path(kind, name).exists():
            raise ApiError(TAKEN, f'{kind} "{name}" already exists')
        metadata = {
            **body["metadata"],
            "namespace": self.namespace,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return self._keep(kind, {**body, "metadata": metadata})

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object.

        Raises:
            ApiError: there is none.
        """
        if kind == STUDIES and name in self.studies:
            return self.studies[name]
        path = self._path(kind, name)
        if kind == STUDIES or not _NAME.fullmatch(name) or not path.exists():
            raise ApiError(MISSING, f'{kind} "{name}" not found')
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def switch(self, name: str, changes: Mapping[str, Any], *, uid: str = "") -> dict[str, Any]:
        """Change switches of a Study; a value of None removes one.

        Raises:
            ApiError: there is none of this name and uid, or what is to be changed is no switch.
        """
        study = self.get(STUDIES, name)
        if uid and study["metadata"]["uid"] != uid:
            raise ApiError(TAKEN, f'studies "{name}": expected uid {uid}, found {study["metadata"]["uid"]}')
        if fixed := sorted(changes.keys() - SWITCHES):
            raise ApiError(INVALID, f"spec.{fixed[0]}: is immutable; submit another study")
        spec = dict(study["spec"])
        for key, value in changes.items():
            merged = (
                {**spec.get(key, {}), **value} if isinstance(value, dict) and isinstance(spec.get(key), dict) else value
            )
            spec[key] = {k: v for k, v in merged.items() if v is not None} if isinstance(merged, dict) else merged
        spec = {key: value for key, value in spec.items() if value is not None}
        metadata = {**study["metadata"], "generation": study["metadata"]["generation"] + 1}
        return self._keep(STUDIES, {**study, "metadata": metadata, "spec": spec})

    def tell(self, name: str, uid: str, status: Mapping[str, Any], *, keep: bool) -> None:
        """Set a Study's status, and write it down where it is to be kept."""
        study = self.studies.get(name)
        if study is not None and study["metadata"]["uid"] == uid:
            study["status"] = dict(status)
            if keep:
                self._keep(STUDIES, study)

    def wish(self, allocation: str, spec: Mapping[str, Any]) -> None:
        """Set what is wished of an allocation's agents; nothing: forget it."""
        self.wishes[allocation] = dict(spec)
        if not spec:
            del self.wishes[allocation]
        _write(self._directory / WISHES, self.wishes)

    def own(self, name: str, owners: list[dict[str, Any]]) -> dict[str, Any]:
        """Add owners to a ConfigMap.

        Raises:
            ApiError: there is none.
        """
        found = self.get(CONFIG_MAPS, name)
        known = {each["uid"]: each for each in (*found["metadata"].get("ownerReferences", ()), *owners)}
        return self._keep(
            CONFIG_MAPS, {**found, "metadata": {**found["metadata"], "ownerReferences": list(known.values())}}
        )

    def remove(self, kind: str, name: str) -> None:
        """Remove an object, and what belonged to nothing else."""
        gone = self.get(kind, name)
        self.studies.pop(name, None) if kind == STUDIES else None
        self._path(kind, name).unlink(missing_ok=True)
        for orphan in list(self._owned(gone["metadata"]["uid"])):
            self._path(CONFIG_MAPS, orphan).unlink(missing_ok=True)

    async def content(self, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap; see `contents.Reader`."""
        try:
            found = self.get(CONFIG_MAPS, name)
        except ApiError as error:
            raise ContentError(f"{error}; submit the study again") from error
        if key in (found.get("binaryData") or {}):
            return base64.b64decode(found["binaryData"][key])
        if key in (found.get("data") or {}):
            return str(found["data"][key]).encode()
        raise ContentError(f"ConfigMap {name}: expected a key {key!r}, found none")

    def _owned(self, uid: str) -> Iterator[str]:
        for path in (self._directory / CONFIG_MAPS).glob("*.json"):
            owners = json.loads(path.read_bytes())["metadata"].get("ownerReferences", ())
            if owners and all(each["uid"] == uid for each in owners):
                yield path.stem

    def _keep(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        _write(self._path(kind, body["metadata"]["name"]), body)
        with contextlib.suppress(KeyError):
            if kind == STUDIES:
                self.studies[body["metadata"]["name"]] = body
        return body

    def _path(self, kind: str, name: str) -> Path:
        return self._directory / kind / f"{name}.json"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as a whole."""
    partial = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
