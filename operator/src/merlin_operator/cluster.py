"""The one module, beside kopf, that talks to the API server: it shows studies and agents as Kubernetes objects.

`ClusterBoard.show` only takes note of what is to be shown; `ClusterBoard.run` writes it at a pace. So neither a slow nor
an absent API server ever holds up the engine, and whatever could not be written is written when it can be: what counts
is the latest state, never a queue of changes.

A study's first status for a generation is *acceptance*: from then on its science cannot be changed. It is written with
the resourceVersion of an object that has just been read with exactly the generation that was compiled. (The version at
the time of compiling would not do: kopf's own annotation, written meanwhile, raises it.)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import kopf
import urllib3.exceptions
from kubernetes import client, config

from merlin_operator import allocations, conditions, expiry, family
from merlin_operator.allocations import Tell
from merlin_operator.board import AgentView, Submission
from merlin_operator.contents import ContentError
from merlin_operator.view import StudyRef, StudyView
from merlin_study import failpoints

logger = logging.getLogger(__name__)

GROUP: Final = "merlin.dev"
VERSION: Final = "v1alpha1"
STUDIES: Final = "studies"
ALLOCATIONS: Final = "allocations"
STUDY_INTERVAL: Final = 1.0
"""Seconds between two writes of one study's status."""
GONE_INTERVAL: Final = 60.0
"""Seconds until a study that the server does not have is looked for again: the engine forgets a deleted one before."""
EXPIRY_INTERVAL: Final = 5.0
"""Seconds between two looks for Studies that have outlived their end."""
STUDIES_PACE: Final = 1 / 20
"""Seconds between any two writes of statuses: an even pace, so that no second ever holds more than its share."""
ALLOCATIONS_PACE: Final = 1 / 5
PAGE: Final = 500
CHANGED: Final = (409, 422)
"""What the server answers where the object is not the one that a write is for: 422 is that of a JSON patch's test."""
TIMEOUT: Final = (5, 10)
"""Seconds to connect and to answer; a request that takes longer is tried again later."""
NAMESPACE_ENDS: Final = "NamespaceTerminating"
"""The cause that the server names where it takes nothing new into a namespace."""
_METADATA: Final = "application/json;as={kind};g=meta.k8s.io;v=v1"


class ClusterConfigError(Exception):
    """There is neither a service account nor a kubeconfig that could be used."""


class ApiError(Exception):
    """The API server refused (`status` is HTTP's) or could not be reached (0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status


def connect() -> client.Configuration:
    """Find the cluster: the service account of the pod that we are in, else the current kubeconfig.

    Raises:
        ClusterConfigError: there is neither.
    """
    found = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            # Read at every call: the library's own default is fixed when it is imported.
            path = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(path, client_configuration=found)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise ClusterConfigError(f"no usable service account or kubeconfig: {error}") from error
    # An absent server is our own schedule's business; the library's retries would multiply each timeout by four.
    found.retries = False
    return found


def login(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """Return the same way into the same cluster for kopf; called again whenever the server refuses the credentials."""
    header = configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


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


@dataclass(slots=True)
class _Shown:
    """What the server shows of a study, as far as we know: `status` None means that it has to be read first."""

    view: StudyView | None = None
    status: dict[str, Any] | None = None
    generation: int = -1
    version: str | None = None
    not_before: float = 0.0


def _is_shown(shown: StudyView | None, view: StudyView) -> bool:
    return shown is view or shown == view  # of ten thousand studies few have a new view


class ClusterBoard:
    """A `board.Board` that shows studies as their status and batch jobs as Allocations."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.views: Sequence[StudyView] = ()
        self.agents: Sequence[AgentView] = ()
        self._shown: dict[str, _Shown] = {}
        self._stale: list[StudyView] = []
        """Those of the views that the server does not show yet, when they came."""
        self._allocations = allocations.Ledger()
        self._news = asyncio.Event()

    @property
    def traffic(self) -> Traffic:
        """How much was asked of the API server."""
        return self.api.traffic

    async def show(self, views: Sequence[StudyView], agents: Sequence[AgentView]) -> None:
        """Take note of the present state; it is written soon."""
        self.views, self.agents = views, agents
        self._shown = {view.ref.uid: self._shown.get(view.ref.uid) or _Shown() for view in views}
        self._stale = [view for view in views if not _is_shown(self._shown[view.ref.uid].view, view)]
        self._allocations.note(agents)
        self._news.set()

    async def run(self) -> None:
        """Write what is to be shown, until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._write_studies())
            lanes.create_task(self._write_allocations())
            lanes.create_task(self._delete_expired())

    async def flush(self) -> None:
        """Write what is left of the studies, without regard to each study's own interval: the operator ends."""
        for view in self.views:
            if self._shown[view.ref.uid].view != view:
                await self._write_study(view)

    async def _write_studies(self) -> None:
        while True:
            view = self._most_urgent()
            if view is None:
                await self._wait_for_news()
            elif await self._write_study(view):
                await asyncio.sleep(STUDIES_PACE)

    async def _wait_for_news(self) -> None:
        # A study may be due without news: its interval is over, or the server was away.
        self._news.clear()
        # Not `asyncio.wait_for`: before Python 3.12 it drops a cancellation that comes together with the news.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUDY_INTERVAL / 4):
                await self._news.wait()

    def _most_urgent(self) -> StudyView | None:
        """What has just finished or was refused first, then what has waited longest."""
        now = time.monotonic()
        due = [view for view in self._stale if self._due(view, now)]
        return min(due, key=self._urgency, default=None)

    def _due(self, view: StudyView, now: float) -> bool:
        shown = self._shown[view.ref.uid]
        return now >= shown.not_before and not _is_shown(shown.view, view)

    def _urgency(self, view: StudyView) -> tuple[bool, float]:
        return not conditions.is_over(view), self._shown[view.ref.uid].not_before

    async def _write_study(self, view: StudyView) -> bool:
        """Bring a study's status up to date; False where nothing had to be asked of the server."""
        shown = self._shown[view.ref.uid]
        shown.not_before = time.monotonic() + STUDY_INTERVAL
        try:
            if shown.status is None or shown.generation != view.generation:
                await self._read_study(view, shown)
            return shown.status is not None and await self._patch_study(view, shown)
        except ApiError as error:
            shown.status = None  # whatever the server has now, it is read before the next attempt
            if error.status == 404:
                shown.not_before += GONE_INTERVAL
            elif error.status in CHANGED and shown.version:
                # Somebody was faster (kopf's annotation, mostly): nothing was written, so this was not our turn.
                shown.not_before = time.monotonic() + STUDY_INTERVAL / 10
            else:
                logger.warning("status not written, trying again: study=%s error=%s", view.ref.name, error)
            return True

    async def _read_study(self, view: StudyView, shown: _Shown) -> None:
        """Learn what the server shows; a status of another generation is nothing that we could add to yet."""
        shown.status = None
        found = submission_of(await self.api.study(view.ref.name))
        if found.ref != view.ref:
            raise ApiError(404, "there is another study of this name")
        if found.generation == view.generation:
            accepted = found.status.get("observedGeneration") == found.generation
            shown.status, shown.generation = found.status, found.generation
            shown.version = None if accepted else found.resource_version

    async def _patch_study(self, view: StudyView, shown: _Shown) -> bool:
        assert shown.status is not None, "the status was read before"
        status = conditions.status_of(view, shown.status, datetime.now(UTC))
        patch = status_patch(shown.status, status)
        if patch:
            # Only a test of the uid keeps this off another study of the same name: a merge patch's uid is ignored here.
            tests = {"uid": view.ref.uid} | ({"resourceVersion": shown.version} if shown.version else {})
            guard = [{"op": "test", "path": f"/metadata/{key}", "value": value} for key, value in tests.items()]
            await self.api.patch_study_status(view.ref.name, guard + patch)
        shown.view, shown.status, shown.version = view, status, None
        return bool(patch)

    async def _delete_expired(self) -> None:
        while True:
            for ref in expiry.expired(self.views, time.time()):
                try:
                    await self.api.delete_study(ref)
                except ApiError as error:
                    if error.status not in (404, *CHANGED):
                        logger.warning("study not deleted, trying again: study=%s error=%s", ref.name, error)
            await asyncio.sleep(EXPIRY_INTERVAL)

    async def _write_allocations(self) -> None:
        while True:
            try:
                await self._write_changes()
                await asyncio.sleep(1.0)
            except ApiError as error:
                self._allocations.learnt = False
                logger.warning("allocations not written, trying again: error=%s", error)
                await asyncio.sleep(10.0)

    async def _write_changes(self) -> None:
        if not self._allocations.learnt:
            self._allocations.learn(await self.api.allocations())
        for change in self._allocations.changes(datetime.now(UTC)):
            try:
                uid = await self._write_change(change)
            except ApiError as error:
                if error.status not in (400, 422):
                    raise
                logger.warning("allocation refused, not shown: change=%s error=%s", type(change).__name__, error)
                self._allocations.refused(change)
            else:
                self._allocations.done(change, datetime.now(UTC), uid=uid)
            await asyncio.sleep(ALLOCATIONS_PACE)

    async def _write_change(self, change: allocations.Change) -> str:
        """Carry a change out; return the uid of an object that was made."""
        match change:
            case allocations.Create(body):
                return await self.api.create_allocation(body)
            case allocations.Update(name, status):
                await self.api.patch_allocation_status(name, {"status": status})
            case allocations.Delete(name):
                await self.api.delete_allocation(name)
            case Tell():
                await self.api.tell_of_allocation(change)
        return ""


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


def status_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON patch (RFC 6902) that makes the status `new` of `old`, whole field by whole field."""
    if not old and new:
        return [{"op": "add", "path": "/status", "value": dict(new)}]
    gone = [{"op": "remove", "path": f"/status/{key}"} for key in old if key not in new]
    changed = [(key, value) for key, value in new.items() if key not in old or old[key] != value]
    return gone + [{"op": "add", "path": f"/status/{key}", "value": value} for key, value in changed]
