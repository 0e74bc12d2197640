"""What kopf remembers of a Study on the Study itself: which version of it was handed to the engine, and failed attempts.

kopf's own storages copy the whole spec into an annotation, which may hold 256 KiB in all, while a Study's scripts alone
may take 400,000 characters. Only *whether* something changed matters here, never what: handlers are level-triggered. So
the essence that kopf compares is one digest.

The digest covers uid and generation beside the spec. Without the uid, a Study restored or copied with its annotations
(``kubectl get -o yaml | kubectl create``) would look handled and never start; without the generation, a change that is
taken back before kopf sees it would leave a generation that nobody ever observes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, cast

import kopf

SPEC_HASH: Final = "merlin.dev/spec-hash"
PROGRESS_PREFIX: Final = "merlin.dev/progress."
TOUCHED: Final = "merlin.dev/touched"
MAX_MESSAGE: Final = 200
"""Of a failed attempt; the log has it in full. Bounds what a handler can put into an annotation."""


class SpecHashStorage(kopf.DiffBaseStorage):
    """The last handled state as a SHA-256 in one annotation; labels and annotations are nothing that we react to."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[str, int], str] = {}

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """Reduce an object to its digest."""
        del extra_fields  # handlers of single fields would need it; there are none
        return _essence(self._digest(body))

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return the essence of the last handled state, or None for an object that is new to us."""
        digest = body.metadata.annotations.get(SPEC_HASH)
        return None if digest is None else _essence(digest)

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Remember an essence as handled."""
        del body
        patch.metadata.annotations[SPEC_HASH] = cast("dict[str, str]", essence)["spec-hash"]

    def _digest(self, body: kopf.Body) -> str:
        # Each status write comes back as an event; a generation names one spec, so a large one is hashed once only.
        key = (body.metadata.get("uid", ""), body.metadata.get("generation", 0))
        if key not in self._known:
            if len(self._known) >= 10_000:
                self._known.clear()
            spec = json.dumps([*key, dict(body.spec)], sort_keys=True, separators=(",", ":"))
            self._known[key] = hashlib.sha256(spec.encode()).hexdigest()
        return self._known[key]


class SmallProgressStorage(kopf.ProgressStorage):
    """One short annotation for each handler that failed and will be tried again; none in the ordinary case.

    kopf's own (`kopf.AnnotationsProgressStorage`) does not bound the message of an exception and leaves a marker for
    ever, which only its own diff-base storage reads.
    """

    def fetch(self, *, key: str, body: kopf.Body) -> kopf.ProgressRecord | None:
        """Return what is remembered of a handler."""
        text = body.metadata.annotations.get(PROGRESS_PREFIX + key)
        return None if text is None else cast("kopf.ProgressRecord", json.loads(text))

    def store(self, *, key: str, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch) -> None:
        """Remember how far a handler is."""
        del body
        kept: dict[str, Any] = {name: value for name, value in record.items() if value is not None}
        if "message" in kept:
            kept["message"] = str(kept["message"])[:MAX_MESSAGE]
        patch.metadata.annotations[PROGRESS_PREFIX + key] = json.dumps(kept, separators=(",", ":"))

    def purge(self, *, key: str, body: kopf.Body, patch: kopf.Patch) -> None:
        """Forget a handler that is done."""
        _forget(PROGRESS_PREFIX + key, body=body, patch=patch)

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Change the object, so that the server sends an event when a delayed handler is due."""
        if value is not None:
            patch.metadata.annotations[TOUCHED] = value
        else:
            _forget(TOUCHED, body=body, patch=patch)

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Return the essence without what this storage wrote: it never contains any."""
        return essence


def _essence(digest: str) -> kopf.BodyEssence:
    return cast("kopf.BodyEssence", {"spec-hash": digest})


def _forget(name: str, *, body: kopf.Body, patch: kopf.Patch) -> None:
    """Remove an annotation from the object if it is there, and from the patch if it was only about to be."""
    annotations = cast("dict[str, str | None]", patch.metadata.annotations)
    if name in body.metadata.annotations:
        annotations[name] = None
    elif name in annotations:
        del annotations[name]
