"""``merlin run SPEC`` without ``--local``: create the Study in the cluster that the current kubeconfig names.

The study is compiled here first, so that most mistakes are told without a cluster; what the API server refuses besides is
told in its own words. ``fieldValidation=Strict`` because the client drops unknown fields silently otherwise.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console

from merlin_cli import freight, names, run
from merlin_cli.convert import manifest
from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say

GROUP: Final = "merlin.dev"
VERSION: Final = "v1alpha1"
PLURAL: Final = "studies"
MISSING: Final = 404
CONFLICT: Final = 409
_IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster(Protocol):
    """Where Studies are created."""

    namespace: str
    """The one that is meant where the user names none."""

    def create(self, namespace: str, body: Mapping[str, Any]) -> str:
        """Create a Study and return its uid.

        Raises:
            CliError: it was refused, or the cluster cannot be reached.
        """

    def create_part(self, namespace: str, body: Mapping[str, Any]) -> bool:
        """Create a ConfigMap; False where there is one of its name already.

        Raises:
            CliError: as `create`.
        """

    def own_part(self, namespace: str, name: str, owner: Mapping[str, Any]) -> bool:
        """Add an owner to a ConfigMap, so that it goes with the last of them; False where there is none.

        Raises:
            CliError: as `create`.
        """

    def drop_part(self, namespace: str, name: str) -> None:
        """Remove a ConfigMap that nobody owns; what stands in the way is no matter."""


def submit(request: run.Request, console: Console, cluster: Cluster | None = None) -> Exit:
    """Create the Study and say what to do next.

    Raises:
        SpecError: the study was refused here.
        CliError: wrong usage, refused by the cluster, or no cluster.
    """
    if request.slots or request.output_path:
        raise CliError(Exit.USAGE, "--slots and --output-path are for --local; in a cluster agents bring their own")
    if request.name and request.name != names.object_name(request.name):
        raise CliError(
            Exit.USAGE,
            f"--name {request.name}: expected at most {names.MAX_NAME} lower-case letters, digits and '-', "
            f"for instance {names.object_name(request.name)}",
        )
    load = freight.load(request)
    found, plan = load.found, load.plan
    stamp = run.stamp()
    name = request.name or found.metadata.get("name") or names.object_name(plan.name, stamp)
    kept = {key: value for key, value in found.metadata.items() if key in ("labels", "annotations")}
    body = manifest(load.spec, {**kept, "name": name})
    body["spec"] |= load.keys(body["spec"])
    body["spec"].setdefault("runId", stamp)  # the workspace carries the stamp that the Study's name does
    cluster = cluster or KubeConfig()
    namespace = request.namespace or found.metadata.get("namespace") or cluster.namespace
    freight.deliver(cluster, namespace, body, load.contents)
    place = f"study/{name} -n {namespace}"
    say(console, f"Created study {name} in namespace {namespace}.")
    say(console, f"  watch it:    kubectl get {place} -w")
    say(console, f"  wait for it: kubectl wait --for=condition=Finished --timeout=-1s {place}")
    return Exit.OK


class KubeConfig:
    """The cluster of the current kubeconfig, or the one that this process runs in."""

    def __init__(self) -> None:
        """Read the configuration.

        Raises:
            CliError: there is none.
        """
        from kubernetes import config as untyped

        config: Any = untyped  # the client comes without types
        try:
            config.load_kube_config()
            _, active = config.list_kube_config_contexts()
            self.namespace = str(active["context"].get("namespace") or "default")
        except config.ConfigException as missing:
            if not _IN_CLUSTER.exists():
                raise CliError(
                    Exit.CANNOT_RUN,
                    f"found no cluster to submit to ({missing}); set KUBECONFIG, or run here with --local",
                ) from missing
            config.load_incluster_config()
            self.namespace = _IN_CLUSTER.read_text().strip()

    def create(self, namespace: str, body: Mapping[str, Any]) -> str:
        """See `Cluster`."""
        from kubernetes import client

        create = client.CustomObjectsApi().create_namespaced_custom_object
        try:
            made = _ask(create, GROUP, VERSION, namespace, PLURAL, dict(body), field_validation="Strict")
        except client.ApiException as refused:
            raise _translated(refused.status, refused.body, namespace, body) from refused
        return str(made["metadata"]["uid"])

    def create_part(self, namespace: str, body: Mapping[str, Any]) -> bool:
        """See `Cluster`."""
        from kubernetes import client

        try:
            _ask(client.CoreV1Api().create_namespaced_config_map, namespace, dict(body))
        except client.ApiException as refused:
            if refused.status == CONFLICT:
                return False
            raise _untaken(refused, namespace) from refused
        return True

    def own_part(self, namespace: str, name: str, owner: Mapping[str, Any]) -> bool:
        """See `Cluster`."""
        from kubernetes import client

        patch = {"metadata": {"ownerReferences": [dict(owner)]}}  # merged by uid: earlier owners stay
        try:
            _ask(
                client.CoreV1Api().patch_namespaced_config_map,
                *(name, namespace, patch),
                _content_type="application/strategic-merge-patch+json",
            )
        except client.ApiException as refused:
            if refused.status == MISSING:
                return False
            raise _untaken(refused, namespace) from refused
        return True

    def drop_part(self, namespace: str, name: str) -> None:
        """See `Cluster`."""
        from kubernetes import client

        with contextlib.suppress(client.ApiException, CliError):
            _ask(client.CoreV1Api().delete_namespaced_config_map, name, namespace)


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


def _untaken(refused: Any, namespace: str) -> CliError:
    said = _message(refused.body)
    return CliError(
        Exit.CANNOT_RUN,
        f"the cluster did not take the study's files as ConfigMaps in namespace {namespace} (HTTP {refused.status}): {said}; "
        "ask for the right to create, patch and delete ConfigMaps there",
    )


def _translated(status: int | None, answer: str | bytes | None, namespace: str, body: Mapping[str, Any]) -> CliError:
    """Turn the API server's refusal into a sentence for the user."""
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
