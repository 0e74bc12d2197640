"""The cluster of the current kubeconfig, or the one that this process runs in: only here the command line speaks to an API server.

Nothing is decided here. Each method is one request; what the API server refuses becomes a sentence for the user.
"""

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from merlin_cli import contexts
from merlin_cli.exits import CliError, Exit

GROUP: Final = "merlin.dev"
VERSION: Final = "v1alpha1"
STUDIES: Final = "studies"
ALLOCATIONS: Final = "allocations"
MISSING: Final = 404
CONFLICT: Final = 409
FORBIDDEN: Final = 403
_ATTEMPTS: Final = 10
"""How often what others changed meanwhile is read again: the operator writes an Allocation's status at its pace."""
PAGE: Final = 500
"""Objects of one answer; a namespace may hold 10,000 studies."""
_IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_MERGE: Final = "application/merge-patch+json"
_STRATEGIC: Final = "application/strategic-merge-patch+json"


class KubeConfig:
    """See the module; ``namespace`` is the one that is meant where the user names none."""

    def __init__(self, *, instead: str = "") -> None:
        """Read the configuration.

        Args:
            instead: What the user may do without a cluster, as the end of a sentence.

        Raises:
            CliError: there is none.
        """
        from kubernetes import config as untyped

        config: Any = untyped  # the client comes without types
        file = contexts.chosen()
        try:
            config.load_kube_config(config_file=None if file is None else str(file))
            _, active = config.list_kube_config_contexts(None if file is None else str(file))
            self.namespace = str(active["context"].get("namespace") or "default")
        except config.ConfigException as missing:
            if file is not None:
                cure = "start it with `merlin server start`, or choose another with `merlin context use`"
                raise CliError(Exit.CANNOT_RUN, f"{file}: expected the kubeconfig of a context; {cure}") from missing
            if not _IN_CLUSTER.exists():
                cure = "set KUBECONFIG" + (f", or {instead}" if instead else "")
                raise CliError(Exit.CANNOT_RUN, f"found no cluster ({missing}); {cure}") from missing
            config.load_incluster_config()
            self.namespace = _IN_CLUSTER.read_text().strip()

    def whoami(self) -> str:
        """Return who the API server says that we are; empty where it does not say."""
        from kubernetes import client

        review = client.V1SelfSubjectReview()
        try:
            found = _ask(client.AuthenticationV1Api().create_self_subject_review, review)
        except client.ApiException:
            return ""
        return str(found.status.user_info.username or "")

    # Studies

    def create(self, namespace: str, body: Mapping[str, Any]) -> str:
        """Create a Study and return its uid.

        Raises:
            CliError: it was refused, or the cluster cannot be reached.
        """
        from kubernetes import client

        create = client.CustomObjectsApi().create_namespaced_custom_object
        try:
            # Strict because the client drops unknown fields silently otherwise.
            made = _ask(create, GROUP, VERSION, namespace, STUDIES, dict(body), field_validation="Strict")
        except client.ApiException as refused:
            raise not_created(refused.status, refused.body, namespace, body) from refused
        return str(made["metadata"]["uid"])

    def study(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a Study; None where there is none of this name.

        Raises:
            CliError: we may not read it, or the cluster cannot be reached.
        """
        from kubernetes import client

        get = client.CustomObjectsApi().get_namespaced_custom_object
        try:
            return dict(_ask(get, GROUP, VERSION, namespace, STUDIES, name))
        except client.ApiException as refused:
            if refused.status == MISSING and name in _message(refused.body):
                return None
            raise _unread(refused, STUDIES, namespace) from refused

    def studies(self, namespace: str) -> list[dict[str, Any]]:
        """Return all Studies of a namespace.

        Raises:
            CliError: we may not list them, or the cluster cannot be reached.
        """
        return self._all(STUDIES, namespace)

    def allocations(self, namespace: str) -> list[dict[str, Any]]:
        """Return all Allocations of a namespace.

        Raises:
            CliError: as `studies`.
        """
        return self._all(ALLOCATIONS, namespace)

    def change(self, namespace: str, name: str, uid: str, spec: Mapping[str, Any]) -> None:
        """Change switches of a Study that still has this uid; a key that is None goes.

        Raises:
            CliError: it was refused, or the cluster cannot be reached.
        """
        from kubernetes import client

        patch = client.CustomObjectsApi().patch_namespaced_custom_object
        body = {"metadata": {"uid": uid}, "spec": dict(spec)}
        try:
            _ask(
                *(patch, GROUP, VERSION, namespace, STUDIES, name, body),
                field_validation="Strict",
                _content_type=_MERGE,
            )
        except client.ApiException as refused:
            said = _message(refused.body)
            code = Exit.REFUSED if refused.status in (400, 422) else Exit.CANNOT_RUN
            raise CliError(code, f"study {name} was not changed (HTTP {refused.status}): {said}") from refused

    def direct(
        self, namespace: str, name: str, changes: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, instead: str = ""
    ) -> None:
        """Change what an Allocation wishes of its agents; nothing is overwritten that somebody else wrote meanwhile.

        Args:
            namespace: Where.
            name: The Allocation.
            changes: Makes the changes from the ``spec`` as it is.
            instead: What the user may do who has no right to this.

        Raises:
            CliError: it was refused, or the cluster cannot be reached.
        """
        from kubernetes import client

        objects = client.CustomObjectsApi()
        where = (GROUP, VERSION, namespace, ALLOCATIONS, name)
        for attempt in range(_ATTEMPTS):
            try:
                found = _ask(objects.get_namespaced_custom_object, *where)
                body: dict[str, Any] = {"spec": dict(changes(found["spec"]))}
                if version := found["metadata"].get("resourceVersion"):
                    body["metadata"] = {"resourceVersion": version}
                patch = objects.patch_namespaced_custom_object
                _ask(patch, *where, body, field_validation="Strict", _content_type=_MERGE)
            except client.ApiException as refused:
                if refused.status == CONFLICT and attempt + 1 < _ATTEMPTS:
                    continue
                cure = f"; {instead}" if instead and refused.status == FORBIDDEN else ""
                said = f"allocation {name} was not changed (HTTP {refused.status}): {_message(refused.body)}{cure}"
                raise CliError(Exit.CANNOT_RUN, said) from refused
            else:
                return

    @staticmethod
    def _all(plural: str, namespace: str) -> list[dict[str, Any]]:
        from kubernetes import client

        found: list[dict[str, Any]] = []
        token = ""
        try:
            while True:
                ask = client.CustomObjectsApi().list_namespaced_custom_object
                page = _ask(ask, GROUP, VERSION, namespace, plural, limit=PAGE, _continue=token)
                found += page["items"]
                token = page["metadata"].get("continue") or ""
                if not token:
                    return found
        except client.ApiException as refused:
            raise _unread(refused, plural, namespace) from refused

    # ConfigMaps with a study's files

    def create_part(self, namespace: str, body: Mapping[str, Any]) -> bool:
        """Create a ConfigMap; False where there is one of its name already.

        Raises:
            CliError: as `create`.
        """
        from kubernetes import client

        try:
            _ask(client.CoreV1Api().create_namespaced_config_map, namespace, dict(body))
        except client.ApiException as refused:
            if refused.status == CONFLICT:
                return False
            raise _untaken(refused, namespace) from refused
        return True

    def own_part(self, namespace: str, name: str, owner: Mapping[str, Any]) -> bool:
        """Add an owner to a ConfigMap, so that it goes with the last of them; False where there is none.

        Raises:
            CliError: as `create`.
        """
        from kubernetes import client

        patch = {"metadata": {"ownerReferences": [dict(owner)]}}  # merged by uid: earlier owners stay
        ask = client.CoreV1Api().patch_namespaced_config_map
        try:
            _ask(ask, name, namespace, patch, _content_type=_STRATEGIC)
        except client.ApiException as refused:
            if refused.status == MISSING:
                return False
            raise _untaken(refused, namespace) from refused
        return True

    def drop_part(self, namespace: str, name: str) -> None:
        """Remove a ConfigMap that nobody owns; what stands in the way is no matter."""
        from kubernetes import client

        with contextlib.suppress(client.ApiException, CliError):
            _ask(client.CoreV1Api().delete_namespaced_config_map, name, namespace)

    # The Secret with the site file

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Read a Secret.

        Raises:
            CliError: it is not there, we may not, or the cluster cannot be reached.
        """
        from kubernetes import client

        try:
            found = _ask(client.CoreV1Api().read_namespaced_secret, name, namespace)
        except client.ApiException as error:
            cure = {
                403: "you may not read it; ask for the Role of the release that ends in -site-credentials",
                404: "it is not there; is the chart installed, under this --release and in this namespace?",
            }.get(error.status or 0, f"the cluster refused (HTTP {error.status})")
            raise CliError(Exit.CANNOT_RUN, f"secret {name} in namespace {namespace}: {cure}") from error
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}


def _ask(call: Callable[..., Any], *arguments: object, **options: object) -> Any:
    """Make a request; what the API server refuses is the client's own exception.

    Raises:
        CliError: it cannot be reached.
    """
    from kubernetes import client
    from urllib3.exceptions import HTTPError

    try:
        return call(*arguments, _request_timeout=30, **options)
    except (HTTPError, OSError) as error:
        host = client.Configuration.get_default_copy().host
        raise CliError(Exit.CANNOT_RUN, f"can't reach the cluster at {host}: {error}") from error


def _unread(refused: Any, plural: str, namespace: str) -> CliError:
    said = _message(refused.body)
    cure = {
        403: f"you may not read {plural} there; ask who set up the cluster for that right, or choose another namespace with -n",
        404: "the cluster knows none; install the CRDs (crds/ of this project)",
    }.get(refused.status, "try again")
    message = f"{plural} in namespace {namespace} can't be read (HTTP {refused.status}: {said}); {cure}"
    return CliError(Exit.CANNOT_RUN, message)


def _untaken(refused: Any, namespace: str) -> CliError:
    said = _message(refused.body)
    return CliError(
        Exit.CANNOT_RUN,
        f"the cluster did not take the study's files as ConfigMaps in namespace {namespace} (HTTP {refused.status}): {said}; "
        "ask for the right to create, patch and delete ConfigMaps there",
    )


def not_created(status: int | None, answer: str | bytes | None, namespace: str, body: Mapping[str, Any]) -> CliError:
    """Turn the API server's refusal of a new Study into a sentence for the user."""
    said = _message(answer)
    match status:
        case 400 | 422:
            return CliError(Exit.REFUSED, f"the cluster refused the study: {said}")
        case 404:
            return CliError(
                Exit.CANNOT_RUN,
                f"the cluster knows no Studies, or has no namespace {namespace} ({said}); "
                "install the CRDs (crds/ of this project), or choose another with -n",
            )
        case 409:
            name = body["metadata"]["name"]
            return CliError(Exit.CANNOT_RUN, f"namespace {namespace} has a study {name} already; choose another --name")
        case _:
            return CliError(Exit.CANNOT_RUN, f"the cluster did not take the study (HTTP {status}): {said}")


def _message(answer: str | bytes | None) -> str:
    """The sentence in the API server's answer."""
    try:
        return str(json.loads(answer or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer or "no answer")[:500]
