"""What is asked of the API server: a few requests, in threads, each with a limit of time, and one kind of failure."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import urllib3.exceptions
from kubernetes import client

from merlin_operator import family
from merlin_operator.allocations import Tell
from merlin_operator.board import Submission
from merlin_operator.contents import ContentError
from merlin_operator.view import StudyRef
from merlin_study import failpoints

logger = logging.getLogger(__name__)

GROUP: Final = "merlin.dev"
VERSION: Final = "v1alpha1"
STUDIES: Final = "studies"
ALLOCATIONS: Final = "allocations"
PAGE: Final = 500
CHANGED: Final = (409, 422)
"""What the server answers where the object is not the one that a write is for: 422 is that of a JSON patch's test."""
TIMEOUT: Final = (5, 10)
"""Seconds to connect and to answer; a request that takes longer is tried again later."""
NAMESPACE_ENDS: Final = "NamespaceTerminating"
"""The cause that the server names where it takes nothing new into a namespace."""
_METADATA: Final = "application/json;as={kind};g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """The API server refused (`status` is HTTP's) or could not be reached (0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status


def submission_of(raw: Mapping[str, Any]) -> Submission:
    """Parse a Study as the API server gives it."""
    metadata = raw["metadata"]
    return Submission(
        ref=StudyRef(metadata["namespace"], metadata["name"], metadata["uid"]),
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]).timestamp(),
        spec=dict(raw.get("spec") or {}),
        status=dict(raw.get("status") or {}),
        lineage=family.lineage(metadata.get("labels") or {}, metadata.get("annotations") or {}),
    )


@dataclass(slots=True)
class Traffic:
    """How much we asked of the API server, for metrics."""

    status_writes: int = 0
    allocation_writes: int = 0
    conflicts: int = 0
    errors: int = 0


class Api:
    """The few requests that we make, in threads; every failure is an `ApiError`."""

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        self.configuration = configuration
        self.namespace = namespace
        self.traffic = Traffic()
        self.revision = 0
        """Of the state that the last list showed; later states have higher ones (KEP-5504)."""
        self._client = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()

    async def study(self, name: str) -> dict[str, Any]:
        """Read one Study."""
        return await self._call(self._objects.get_namespaced_custom_object, STUDIES, name)

    async def create_study(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a Study; 409 where the name is taken."""
        # Strict, or the server would drop what it does not know and run something else.
        return await self._call(self._objects.create_namespaced_custom_object, STUDIES, body, field_validation="Strict")

    async def patch_study(self, name: str, uid: str, changes: dict[str, Any]) -> None:
        """Set fields of a Study's spec, of that uid and no other: 422 where it is another."""
        patch = [{"op": "test", "path": "/metadata/uid", "value": uid}]
        patch += [{"op": "add", "path": f"/spec/{key}", "value": value} for key, value in changes.items()]
        change = self._objects.patch_namespaced_custom_object
        await self._call(change, STUDIES, name, patch, _content_type="application/json-patch+json")

    async def delete_study(self, ref: StudyRef) -> None:
        """Delete a Study; 409 where another one has its name by now."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": ref.uid}}
        await self._call(self._objects.delete_namespaced_custom_object, STUDIES, ref.name, body=body)

    async def studies(self) -> list[dict[str, Any]]:
        """Return the metadata of all Studies, and nothing else of them."""
        return await self._list(STUDIES, accept=_METADATA.format(kind="PartialObjectMetadataList"))

    async def release_study(self, name: str, uid: str, *, held: list[str], kept: list[str]) -> None:
        """Replace a Study's finalizers: 422 where it is another study, or has others than ``held``."""
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": "/metadata/finalizers", "value": held},
            {"op": "replace", "path": "/metadata/finalizers", "value": kept},
        ]
        change = self._objects.patch_namespaced_custom_object
        await self._call(change, STUDIES, name, patch, _content_type="application/json-patch+json")

    async def namespace_ends(self) -> bool:
        """Whether the namespace is being deleted: the server then takes nothing new into it, not even for a try."""
        event = client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name="merlin-operator."),
            involved_object=client.V1ObjectReference(kind="Namespace", namespace=self.namespace, name=self.namespace),
        )
        create = client.CoreV1Api(self._client).create_namespaced_event
        try:
            await asyncio.to_thread(create, self.namespace, event, dry_run="All", _request_timeout=TIMEOUT)
        except client.ApiException as error:
            return NAMESPACE_ENDS in _causes(error)
        except (urllib3.exceptions.HTTPError, OSError):
            self.traffic.errors += 1
        return False

    async def patch_study_status(self, name: str, patch: list[dict[str, Any]]) -> None:
        """Apply a JSON patch to a Study's status; 422 where one of its tests fails."""
        failpoints.reach("operator.status")
        await self._patch_status(STUDIES, name, patch, "application/json-patch+json")
        self.traffic.status_writes += 1

    async def content(self, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap; see `contents.Reader`."""
        core = client.CoreV1Api(self._client)
        try:
            found = await asyncio.to_thread(
                core.read_namespaced_config_map, name, self.namespace, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            answer = "none; create it" if error.status == 404 else f"{error.status}: {_message(error)}"
            raise ContentError(
                f"ConfigMap {name}: expected it in namespace {self.namespace}, found {answer}"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.traffic.errors += 1
            raise ContentError(f"ConfigMap {name}: can't be read now: {error}") from error
        binary, text = found.binary_data or {}, found.data or {}
        if key in binary:
            return base64.b64decode(binary[key])
        if key in text:
            return str(text[key]).encode()
        raise ContentError(f"ConfigMap {name}: expected a key {key!r}, found {', '.join((*binary, *text)) or 'none'}")

    async def allocations(self) -> list[dict[str, Any]]:
        """Read all Allocations."""
        return await self._list(ALLOCATIONS)

    async def create_allocation(self, body: dict[str, Any]) -> str:
        """Make an Allocation, still without a status; return its uid."""
        self.traffic.allocation_writes += 1
        made = await self._call(self._objects.create_namespaced_custom_object, ALLOCATIONS, body)
        return str(made["metadata"]["uid"])

    async def allocation(self, name: str) -> dict[str, Any]:
        """Read one Allocation."""
        return await self._call(self._objects.get_namespaced_custom_object, ALLOCATIONS, name)

    async def patch_allocation(self, name: str, body: dict[str, Any]) -> None:
        """Merge into an Allocation; 409 where its resourceVersion is named and another one by now."""
        self.traffic.allocation_writes += 1
        patch = self._objects.patch_namespaced_custom_object
        await self._call(patch, ALLOCATIONS, name, body, _content_type="application/merge-patch+json")

    async def patch_allocation_status(self, name: str, body: dict[str, Any]) -> None:
        """Merge a status into an Allocation's."""
        self.traffic.allocation_writes += 1
        await self._patch_status(ALLOCATIONS, name, body, "application/merge-patch+json")

    async def tell_of_allocation(self, told: Tell) -> None:
        """Make a warning Event of an Allocation; one that can't be made is left out, for the status says it too."""
        event = client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name=f"{told.name}."),
            involved_object=client.V1ObjectReference(
                api_version=f"{GROUP}/{VERSION}",
                kind="Allocation",
                namespace=self.namespace,
                name=told.name,
                uid=told.uid,
            ),
            reason=told.reason,
            message=told.message,
            type="Warning",
            source=client.V1EventSource(component="merlin-operator"),
            first_timestamp=(now := datetime.now(UTC)),
            last_timestamp=now,
            count=1,
        )
        core = client.CoreV1Api(self._client)
        try:
            await asyncio.to_thread(core.create_namespaced_event, self.namespace, event, _request_timeout=TIMEOUT)
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            self.traffic.errors += 1
            logger.warning("event not made: allocation=%s error=%s", told.name, error)

    async def delete_allocation(self, name: str) -> None:
        """Remove an Allocation."""
        self.traffic.allocation_writes += 1
        await self._call(self._objects.delete_namespaced_custom_object, ALLOCATIONS, name)

    async def _patch_status(self, plural: str, name: str, body: object, content: str) -> None:
        # The answer without the spec: it may be large, and we know it.
        accept = {"Accept": _METADATA.format(kind="PartialObjectMetadata")}
        patch = self._objects.patch_namespaced_custom_object_status
        await self._call(patch, plural, name, body, _content_type=content, _headers=accept)

    async def _list(self, plural: str, accept: str = "application/json") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        more = ""
        while True:
            options = {"limit": PAGE, "_headers": {"Accept": accept}} | ({"_continue": more} if more else {})
            page = await self._call(self._objects.list_namespaced_custom_object, plural, **options)
            items += page.get("items") or []
            metadata = page.get("metadata", {})
            more = metadata.get("continue", "")
            if not more:
                self.revision = int(metadata.get("resourceVersion") or 0)
                return items

    async def _call(self, function: Callable[..., Any], *arguments: object, **options: object) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await asyncio.to_thread(
                function, GROUP, VERSION, self.namespace, *arguments, _request_timeout=TIMEOUT, **options
            )
        except client.ApiException as error:
            self.traffic.errors += error.status not in (404, *CHANGED)
            self.traffic.conflicts += error.status in CHANGED
            raise ApiError(error.status or 0, _message(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.traffic.errors += 1
            raise ApiError(0, str(error)) from error
        return found


def _causes(error: client.ApiException) -> list[str]:
    """The reasons among the details of the API server's Status object."""
    try:
        return [str(cause["reason"]) for cause in json.loads(error.body or "")["details"]["causes"]]
    except (KeyError, TypeError, ValueError):
        return []


def _message(error: client.ApiException) -> str:
    """What the API server says in its Status object, else whatever came."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (KeyError, TypeError, ValueError):
        return str(error.body or error.reason)
